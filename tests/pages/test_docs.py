"""The pages: code that runs, links that lead somewhere, an API reference that is whole and builds without a warning."""

import contextlib
import importlib
import re
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from importlib.util import find_spec
from urllib.parse import urlsplit

import pytest
from support import pages

import torch_clipped
from experiments.__main__ import EXPERIMENTS
from torch_clipped import ClippingWarning

NAMES = [str(file.relative_to(pages.ROOT)) for file in pages.PAGES]
ELSEWHERE = {"README.md", "docs/choosing.md", "docs/integrations.md", "docs/migration.md"}  # their own tests run their blocks
WARNS = {"docs/spikes.md"}  # of the step that it skips
NEEDED = {"docs/getting_started.md": "tensorboard"}
BUILD = "python -m sphinx -W --keep-going -n -b html docs build/docs"
PYPROJECT = (pages.ROOT / "pyproject.toml").read_text()

# Code


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ELSEWHERE and pages.python_blocks(pages.page(name))])
def test_python_blocks_run(name, capsys, table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    if name in NEEDED:
        pytest.importorskip(NEEDED[name], reason=f"needs {NEEDED[name]}")
    blocks = pages.python_blocks(pages.page(name))
    with pytest.warns(ClippingWarning) if name in WARNS else contextlib.nullcontext():
        for block in blocks:
            pages.run([block], name)
    assert name != "docs/index.md" or "'steps': 100.0" in capsys.readouterr().out


def test_every_code_block_is_of_a_kind_that_is_looked_at():
    wrong = {}
    for name in NAMES:
        marks = re.findall(r"^```(\S*)", pages.page(name), flags=re.MULTILINE)
        opened, closed = marks[::2], marks[1::2]
        are_known = set(opened) <= {"python", "sh", "text", "", "{toctree}", "{eval-rst}"} and set(closed) <= {""}
        if not are_known or opened.count("python") != len(pages.python_blocks(pages.page(name))):
            wrong[name] = marks
    assert wrong == {}


def test_commands_name_extras_and_experiments_that_exist():
    wrong = []
    for name in NAMES:
        text = pages.page(name)
        extras = [extra for found in re.findall(r'"\.\[([\w,-]+)\]"', text) for extra in found.split(",")]
        wrong += [(name, extra) for extra in extras if f"\n{extra} = [" not in PYPROJECT]
        wrong += [(name, found) for found in re.findall(r"-m experiments ([a-z-]+)", text) if found not in EXPERIMENTS]
        wrong += [(name, found) for found in re.findall(r"-m (experiments\.\w+)", text) if not find_spec(found)]
    assert wrong == []


def test_example_of_the_front_page_fits_a_phone():
    (block,) = pages.python_blocks(pages.page("docs/index.md"))
    assert max(map(len, block.splitlines())) <= 43  # of 400 pixels


# Links


def inner_links():
    return [
        (name, target)
        for name in NAMES
        for target in pages.links((pages.ROOT / name).read_text())
        if not target.startswith("http")
    ]


def leads_somewhere(name, target):
    path, _, anchor = target.partition("#")
    file = (pages.ROOT / name).parent / path if path else pages.ROOT / name
    is_ours = file.is_file() and file.resolve().is_relative_to(pages.ROOT)
    return is_ours and (not anchor or anchor in pages.anchors(pages.page(file)))


def test_link_inside_leads_to_a_file_and_a_heading():
    links = inner_links()
    assert links
    assert [link for link in links if not leads_somewhere(*link)] == []


def test_headings_of_a_page_differ():
    found = {name: Counter(pages.anchors(pages.page(name))) for name in NAMES}
    assert [(name, anchor) for name, counts in found.items() for anchor, count in counts.items() if count > 1] == []


def outer_links():
    """Every address in the pages and in the code, and where it stands."""
    places = defaultdict(set)
    for name in NAMES:
        for target in pages.links((pages.ROOT / name).read_text()):
            if target.startswith("http"):
                places[target].add(name)
    for folder in ("torch_clipped", "experiments"):
        for file in sorted((pages.ROOT / folder).rglob("*.py")):
            for target in re.findall(r"https?://[^\s\"'`<>]+", file.read_text()):
                places[re.sub(r"[.,:;)]+$", "", target)].add(str(file.relative_to(pages.ROOT)))
    return places


def test_addresses_outside_are_well_formed():
    for address, places in outer_links().items():
        parts = urlsplit(address)
        assert parts.scheme == "https", (address, places)
        assert re.fullmatch(r"([\w-]+\.)+[a-z]{2,}", parts.netloc), (address, places)
        assert re.fullmatch(r"[\w\-./~%()+]*", parts.path), (address, places)
        assert "//" not in parts.path, (address, places)


def test_each_page_outside_has_one_address():
    found = defaultdict(set)
    for address in outer_links():
        parts = urlsplit(address)
        path = re.sub(r"(\.pdf|v\d+|/)*$", "", parts.path).replace("/pdf/", "/abs/")
        found[parts.netloc.removeprefix("www."), path, parts.fragment].add(address)
    assert [addresses for addresses in found.values() if len(addresses) > 1] == []


# The API reference


def described():
    """The names that the API reference describes."""
    found = []
    for name in NAMES:
        module = ""
        for kind, target in re.findall(r"^\.\. (currentmodule|auto\w+):: ([\w.]+)", pages.page(name), flags=re.MULTILINE):
            if kind in ("currentmodule", "automodule"):
                module = target
            else:
                found.append(target if target.startswith("torch_clipped.") else f"{module}.{target}")
    return found


@pytest.mark.parametrize(
    "module", ["torch_clipped", "torch_clipped.heavy_tails", "torch_clipped.plots", "torch_clipped.integrations"]
)
def test_every_public_name_is_described_once(module):
    public = [f"{module}.{name}" for name in importlib.import_module(module).__all__]
    assert [(name, described().count(name)) for name in public if described().count(name) != 1] == []


def test_documentation_builds_without_a_warning(tmp_path):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason=f"needs {package} (extra docs)")
    assert f"\t$(BIN)/{BUILD}\n" in (pages.ROOT / "Makefile").read_text()
    command = [sys.executable, *shlex.split(BUILD)[1:-1], str(tmp_path / "out"), "-d", str(tmp_path / "doctrees")]
    done = subprocess.run(command, cwd=pages.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    clipped = (tmp_path / "out" / "api" / "Clipped.html").read_text()
    assert re.search(r"<pre><span></span>alpha = threshold / length +g &lt;- g \* min\(1, alpha\)", clipped)


# What else speaks of the project


@pytest.mark.parametrize("tool", ["ruff", "mypy", "torch"])
def test_every_check_runs_the_same_release_of_a_tool(tool):
    files = [pages.ROOT / name for name in (".ci/run", "Makefile", ".pre-commit-config.yaml", "pyproject.toml", "README.md")]
    texts = [file.read_text() for file in files if file.is_file()]  # a source archive has no hidden ones
    assert len({release for text in texts for release in re.findall(rf'"{tool}==([\d.]+)"', text)}) == 1


def test_commands_of_contributing_are_those_of_the_makefile():
    targets = re.findall(r"^(\w+):$", (pages.ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert re.findall(r"^make (\w+)$", pages.page("CONTRIBUTING.md"), flags=re.MULTILINE) == targets


def test_citation_names_this_version_and_license():
    lines = (pages.ROOT / "CITATION.cff").read_text().splitlines()
    assert {"cff-version: 1.2.0", f"version: {torch_clipped.__version__}", "license: MIT", "title: torch-clipped"} <= set(lines)
    assert (pages.ROOT / "LICENSE").read_text().splitlines()[2].endswith("The torch-clipped authors")
    assert "  - name: The torch-clipped authors" in lines
