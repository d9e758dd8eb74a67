"""Where things stand, and what may import what."""

import ast
import re
from pathlib import Path

import experiments
import torch_clipped

PACKAGE = Path(torch_clipped.__file__).parent
EXPERIMENTS = Path(experiments.__file__).parent
# A module may import from the levels below its own, and from its own level what stands before it
LEVELS = [
    {"_engine.types", "_engine.compat", "_engine.arrays", "_engine.validation"},
    {"_engine.norms", "_engine.scaling", "_engine.sharding"},
    {"measures", "thresholds", "decisions", "_engine.draws"},
    {"clipping", "history"},
    {"_engine.arguments", "_engine.monitor", "_engine.checks", "_engine.state", "_engine.statistics"},
    {"_engine.closure_steps", "_engine.step_hooks"},
    {"_engine.clip_sets", "_engine.current_sets", "_engine.fused"},
    {"_engine.step"},
    {"mixin"},
    {"_norm_log", "optimizers", "functional", "levels", "recorder", "_sstm_state", "sstm"},
    {"integrations.values", "integrations.tensorboard", "integrations.trainer", "integrations.lightning", "integrations"},
]
BESIDE = {  # uses of the engine no more than norms, arithmetic and validation
    *(f"heavy_tails.{name}" for name in ("samples", "resamples", "lengths", "outliers", "tail_indices", "statistics")),
    *("_running_means", "restarter", "properties", "lipschitz", "heavy_tails", "groups"),
}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(name, path):
    """The modules of this package that a module imports, also within functions."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = [p for p in package if p][: len(package) - node.level + 1]
            found = ".".join([*base, *(node.module or "").split(".")]).strip(".")
        elif (node.module or "").startswith("torch_clipped."):
            found = node.module.removeprefix("torch_clipped.")
        else:
            continue
        yield found or None, [alias.name for alias in node.names]


MODULES = dict(modules())
IMPORTS = {
    name: sorted({found if found in MODULES and found else names[0] for found, names in imports(name, path)})
    for name, path in MODULES.items()
}


def test_nothing_imports_what_stands_above_it():
    level = {name: i for i, names in enumerate(LEVELS) for name in names}
    wrong = [(name, other) for name in level for other in IMPORTS.get(name, ()) if level.get(other, -1) > level[name]]
    assert not wrong


def test_tails_and_restarts_use_norms_arithmetic_and_validation_only():
    allowed = {"_engine.types", "_engine.compat", "_engine.norms", "_engine.arrays", "_engine.validation", "_engine.sharding"}
    wrong = {name: [m for m in IMPORTS[name] if m.startswith("_engine") and m not in allowed] for name in BESIDE}
    assert not {name: found for name, found in wrong.items() if found}


def test_no_module_imports_itself_by_others():
    def reachable(name, seen):
        for other in IMPORTS.get(name, ()):
            if other not in seen:
                seen.add(other)
                reachable(other, seen)
        return seen

    assert not [name for name in IMPORTS if name and name in reachable(name, set())]


def test_every_module_has_its_place():
    known = set().union(*LEVELS) | BESIDE | {"", "_engine", "plots", "_plot_parts", "optimizers_collector"}
    known |= {"__main__", "_norm_files", "_report", "_older_names", "_curve_plots", "_metrics"}
    assert MODULES.keys() <= known


def test_any_stands_in_few_lines():
    lines = [line for path in MODULES.values() for line in path.read_text().splitlines() if re.search(r"\bAny\b", line)]
    assert len(lines) < 40


def is_of_all_or_itself(node, own):
    """Return whether an import in the folder ``own`` is from that folder, from what all share, or from another package."""
    if isinstance(node, ast.ImportFrom) and node.level > 1:
        return (node.level, (node.module or "").partition(".")[0]) == (2, "common") and own != "common"
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    return not any(name.partition(".")[0] in ("experiments", "tests") for name in names)


def test_experiment_imports_what_all_share_and_itself():
    wrong = []
    for path in sorted(EXPERIMENTS.glob("*/*.py")):
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))]
        found = [ast.unparse(node) for node in imports if not is_of_all_or_itself(node, path.parent.name)]
        wrong += [f"{path.parent.name}.{path.stem}: {line}" for line in found]
    assert wrong == []


def test_experiments_are_folders():
    assert {path.name for path in EXPERIMENTS.glob("*.py")} == {"__init__.py", "__main__.py"}
