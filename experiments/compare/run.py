"""What clipping buys on a task: every clipping type against torch's SGD and Adam.

``python -m experiments compare --task TASK`` trains all methods from the same start on the same batches. Each gets its learning
rate from a grid of the same size, by the validation metric at the end of a training with a seed that is used for nothing else.
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
from .methods import Method, learning_rates, methods
from .picture import plot
from .summary import choose, rows, summarize, written_every
from .table import table
from .task import TASKS, Task, load
from .training import POINTS, Training, train


def plan(
    task: str,
    data: Path | None = None,
    pretrained: Path | None = None,
    seeds: int = 3,
    steps: int | None = None,
    device: str = "cpu",
    quick: bool = False,
) -> Plan:
    """The trainings of a task, and what they write; ``steps`` None are those of the task."""
    if not 1 <= seeds <= TUNING_SEED:
        raise ValueError(f"seeds must be at least 1 and at most {TUNING_SEED}, got {seeds}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if pretrained is not None and (task != "text" or data is None):
        raise ValueError(f"pretrained is for task text with data, got {str(pretrained)!r} for task {task}")
    check_device(device)
    loaded = load(task, data, pretrained, 0, quick)
    settings = _settings(loaded, seeds, steps or loaded.steps, device, quick)
    trainings = sum(len(settings["learning_rates"][method.baseline]) + seeds for method in methods())
    return Plan(
        name=f"compare_{task}",
        settings=settings | {"data": data and str(data), "pretrained": pretrained and str(pretrained)},
        steps=trainings * settings["steps"],
        train=partial(train_all, loaded, settings),
        write=partial(write, settings),
        writes_parts=False,  # a method is compared with others, which may be missing
        choices=("task",),
    )


def _settings(task: Task, seeds: int, steps: int, device: str, quick: bool) -> dict[str, Any]:
    """All that the trainings depend on."""
    return {
        "task": task.name,
        "source": task.source,
        "metric": task.metric,
        "batch": task.batch,
        "steps": steps,
        "seeds": list(range(seeds)),
        "tuning_seed": TUNING_SEED,
        "learning_rates": learning_rates(task),
        "methods": {method.label: method.arguments for method in methods()},
        "device": device,
        "quick": quick,
    }


def train_all(task: Task, settings: dict[str, Any], journal: Journal) -> None:
    """For each method the trainings of its grid, then those of all seeds with the learning rate chosen from it."""

    def trained(method: Method, lr: float, seed: int) -> Training:
        steps = settings["steps"]
        points = 1 if seed == TUNING_SEED else min(POINTS, max(1, steps // 5))  # of the others the course is of interest, too
        new = partial(train, task, method, lr, seed, steps, settings["device"], journal.progress, points)
        return Training(**journal.done(f"{method.label}, lr {lr}, seed {seed}", steps, lambda: asdict(new())))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClippingWarning)  # the ends of a grid may well crush or overflow every gradient
        for method in methods():
            lr = choose([trained(method, lr, TUNING_SEED) for lr in settings["learning_rates"][method.baseline]]).lr
            for seed in settings["seeds"]:
                trained(method, lr, seed)


def write(settings: dict[str, Any], results: Sequence[Result], folder: Path) -> str:
    """Write compare_TASK.csv, .json and .png; returns the table."""
    trainings = [Training(**result) for result in results]
    grids = [training for training in trainings if training.seed == TUNING_SEED]
    reported = [training for training in trainings if training.seed != TUNING_SEED]
    every = written_every(settings["steps"], len(reported))

    def of(label: str, some: Sequence[Training]) -> list[Training]:
        return [training for training in some if training.method == label]

    summary = {
        "experiment": "compare",
        "settings": settings,
        "versions": versions(),
        "machine": machine(settings["device"]),
        "steps_between_rows_of_the_csv": every,
        "methods": [
            summarize(one, of(one.label, grids), of(one.label, reported), of(one.baseline, reported)) for one in methods()
        ],
    }
    files = [folder / f"compare_{settings['task']}.{kind}" for kind in ("csv", "json", "png")]
    write_csv([row for training in reported for row in rows(training, every)], files[0])
    write_json(summary, files[1])
    plot(*files)
    return table(json.loads(files[1].read_text(encoding="utf-8")))


def main(arguments: Sequence[str]) -> int:
    """Train, write compare_TASK.csv, .json and .png, print the table; returns 130 after an interruption, else 0."""
    parser = parser_of("compare", __doc__)
    add = parser.add_argument
    add("--task", choices=TASKS, required=True, help="what is learned")
    add("--data", type=Path, metavar="FOLDER", help="the field's own data set (default: a small one that is always there)")
    add("--pretrained", type=Path, metavar="FOLDER", help="weights and tokenizer to start from, for task text with --data")
    add("--seeds", type=int, help="how many seeds (default: 3)")
    add("--steps", type=int, help="steps of each training (default: by task)")
    add("--device", help="default: cpu")
    return command(parser, plan, {"quick": True}, arguments)
