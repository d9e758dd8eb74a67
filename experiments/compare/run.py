"""Clipping types against torch's SGD and Adam on a task, each with its own learning rate and level.

``python -m experiments compare --task TASK`` trains all methods from the same start on the same batches. Learning rates differ
by factors of 2, levels by factors of 3. They are chosen by the metric on validation data: all candidates with one seed, then the
best third with three seeds. The grid of learning rates is widened while one of its ends is best. Results are from other seeds, on
test data. The clippings that are best with SGD are also tried with Adam.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch_clipped import ClippingWarning

from ..common.command import TUNING_SEED, Plan, command, parser_of
from ..common.files import write_csv, write_json
from ..common.journal import Journal, Result
from ..common.machine import check_device, machine, versions
from .methods import CLIPPINGS, Method
from .picture import plot, plot_details
from .summary import rows, summarize
from .table import table
from .task import TASKS, Task, load
from .to_wandb import load_wandb, log_results
from .training import Training, train
from .tuning import TUNING_SEEDS, outcomes

FEW = ("norm", "auto", "skip")  # clippings of a quick run
POINTS = 10  # measurements of the validation metric in each training of the results
QUICK = {"quick": True, "seeds": 2}


def plan(
    task: str,
    data: Path | None = None,
    pretrained: Path | None = None,
    seeds: int = 6,
    steps: int | None = None,
    device: str = "cpu",
    wandb: bool = False,
    quick: bool = False,
) -> Plan:
    """Return the plan of a task; ``steps`` None means the default of the task."""
    if not 1 <= seeds <= TUNING_SEED:
        raise ValueError(f"seeds must be at least 1 and at most {TUNING_SEED}, got {seeds}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if pretrained is not None and (task != "text" or data is None):
        raise ValueError(f"pretrained is for task text with data, got {str(pretrained)!r} for task {task}")
    check_device(device)
    if wandb:
        load_wandb()
    loaded = load(task, data, pretrained, 0, quick)
    settings = {
        "task": task,
        "source": loaded.source + (", learning rate decays to 0" if loaded.decays else ""),
        "metric": loaded.metric,
        "batch": loaded.batch,
        "steps": steps or loaded.steps,
        "seeds": list(range(seeds)),
        "tuning_seeds": list(TUNING_SEEDS),
        "learning_rates": {name: list(grid) for name, grid in loaded.learning_rates.items()},
        "clippings": {name: CLIPPINGS[name] for name in (FEW if quick else CLIPPINGS)},
        "device": device,
        "quick": quick,
    }
    of_data = "" if data is None else f"_{data.stem if data.is_file() else data.resolve().name}"
    name = f"compare_{task}{of_data}"
    expected = 430 * settings["steps"]  # the grids may grow
    return Plan(
        name=name,
        settings=settings,
        steps=expected,
        train=partial(train_all, loaded, settings),
        write=partial(write, loaded, settings, name, wandb),
        writes_parts=False,  # methods are compared with others, which may be missing
        choices=("task", "data", "wandb"),
    )


def train_all(task: Task, settings: dict[str, Any], journal: Journal) -> None:
    """Run the trainings that :func:`experiments.compare.tuning.outcomes` needs, unless the journal has them."""
    steps = settings["steps"]

    def trained(method: Method, lr: float, level: float | None, seed: int) -> Training:
        is_result = seed in settings["seeds"]
        points = min(POINTS, max(1, steps // 5)) if is_result else 0
        new = partial(train, task, method, lr, level, seed, steps, settings["device"], journal.progress, points, is_result)
        return _read(journal.done(_name(method.label, lr, level, seed), steps, lambda: asdict(new())))

    with warnings.catch_warnings():
        # At the ends of a grid every gradient may overflow, or be clipped to nothing.
        warnings.simplefilter("ignore", ClippingWarning)
        outcomes([*settings["clippings"]], settings["learning_rates"], settings["seeds"], trained)


def _name(label: str, lr: float, level: float | None, seed: int) -> str:
    return f"{label}, lr {lr:g}{'' if level is None else f', level {level:g}'}, seed {seed}"


def _read(result: Result) -> Training:
    return Training(**result)


def write(task: Task, settings: dict[str, Any], name: str, wandb: bool, results: Sequence[Result], folder: Path) -> str:
    """Write compare_TASK.csv, .json, .png and _details.png, and log the trainings of the results; return the table."""
    trainings = {(one.method, one.lr, one.level, one.seed): one for one in map(_read, results)}
    found = outcomes(
        [*settings["clippings"]],
        settings["learning_rates"],
        settings["seeds"],
        lambda method, lr, level, seed: trainings[method.label, lr, level, seed],
    )
    baselines = {outcome.method.label: outcome for outcome in found if outcome.method.clipping is None}
    words, trivial = task.trivial
    summary = {
        "experiment": "compare",
        "settings": settings,
        "versions": versions(),
        "machine": machine(settings["device"]),
        "trivial": {"method": words, "test": trivial},
        "methods": [summarize(outcome, baselines[outcome.method.baseline], trivial) for outcome in found],
    }
    files = [folder / f"{name}.{kind}" for kind in ("csv", "json", "png")]
    write_csv(rows(found), files[0])
    write_json(summary, files[1])
    written = json.loads(files[1].read_text(encoding="utf-8"))
    plot(files[0], written, files[2])
    plot_details(written, folder / f"{name}_details.png")
    if wandb:
        log_results(name, settings, found)
    return table(written)


def main(arguments: Sequence[str]) -> int:
    """Train, write compare_TASK.csv, .json and .png, print the table; return 130 after an interruption, else 0."""
    parser = parser_of("compare", __doc__)
    add = parser.add_argument
    add("--task", choices=TASKS, required=True, help="task to train on")
    add("--data", type=Path, metavar="PATH", help="data set of your own (default: a small data set)")
    add("--pretrained", type=Path, metavar="FOLDER", help="weights and tokenizer to start from, for task text with --data")
    add("--seeds", type=int, help="number of seeds of the results (default: 6)")
    add("--steps", type=int, help="steps of each training (default: by task)")
    add("--device", help="default: cpu")
    add("--wandb", action="store_true", default=None, help="log the results as offline runs of Weights & Biases, in wandb/")
    return command(parser, plan, QUICK, arguments)
