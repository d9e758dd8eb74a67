"""What clipping buys on a task: every clipping type against torch's SGD and Adam.

``python -m experiments compare --task TASK`` trains all methods from the same start on the same batches. Each gets its learning
rate from a grid of the same size, by the validation metric at the end of a training with a seed that is used for nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from torch_clipped import ClippingWarning

from .benchmark import cpu_model
from .compare_journal import Journal
from .compare_methods import Method, learning_rates, methods
from .compare_picture import plot
from .compare_summary import choose, rows, summarize, written_every
from .compare_table import table
from .compare_task import TASKS, Task, load
from .compare_training import POINTS, Training, train
from .heavy_tails import INTERRUPTED, check_device
from .heavy_tails_summary import versions
from .toy_regression import TUNING_SEED
from .toy_table import write_csv, write_json


@dataclass(frozen=True, kw_only=True)
class Config:
    """How long and how often a task is trained; None steps are those of the task."""

    seeds: int = 3
    steps: int | None = None
    device: str = "cpu"
    quick: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= TUNING_SEED:
            raise ValueError(f"seeds must be at least 1 and at most {TUNING_SEED}, got {self.seeds}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        check_device(self.device)

    def settings(self, task: Task) -> dict[str, Any]:
        """All that the trainings depend on."""
        return {
            "task": task.name,
            "source": task.source,
            "metric": task.metric,
            "batch": task.batch,
            "steps": self.steps or task.steps,
            "seeds": list(range(self.seeds)),
            "tuning_seed": TUNING_SEED,
            "learning_rates": learning_rates(task),
            "methods": {method.label: method.arguments for method in methods()},
            "device": self.device,
            "quick": self.quick,
            "versions": versions(),
        }


def run(task: Task, config: Config, journal: Journal, folder: Path) -> dict[str, Any]:
    """Train everything that is not in the journal, write compare_TASK.csv and .json; returns what is in the latter."""
    settings = config.settings(task)
    steps, seeds, grids = settings["steps"], settings["seeds"], settings["learning_rates"]
    everyone = methods()
    total = steps * sum(len(grids[method.baseline]) + len(seeds) for method in everyone)
    found: dict[str, tuple[list[Training], list[Training]]] = {}
    with warnings.catch_warnings(), tqdm(total=total, unit="step", mininterval=0.5) as progress:
        warnings.simplefilter("ignore", ClippingWarning)  # the ends of a grid may well crush or overflow every gradient

        def trained(method: Method, lr: float, seed: int) -> Training:
            points = 1 if seed == TUNING_SEED else POINTS  # of the others the course is of interest, too
            training = journal.find(method.label, lr, seed)
            if training is None:
                training = train(task, method, lr, seed, steps, config.device, progress, points)
                journal.add(training)
            else:
                progress.update(steps)
            return training

        for method in everyone:
            grid = [trained(method, lr, TUNING_SEED) for lr in grids[method.baseline]]
            found[method.label] = grid, [trained(method, choose(grid).lr, seed) for seed in seeds]
    every = written_every(steps, len(seeds) * len(everyone))
    reported = [training for _, mine in found.values() for training in mine]
    summary = {
        "experiment": "compare",
        "settings": {name: value for name, value in settings.items() if name != "versions"},
        "versions": settings["versions"],
        "machine": machine(config.device),
        "steps_between_rows_of_the_csv": every,
        "methods": [summarize(one, *found[one.label], found[one.baseline][1]) for one in everyone],
    }
    write_csv([row for training in reported for row in rows(training, every)], folder / f"compare_{task.name}.csv")
    write_json(summary, folder / f"compare_{task.name}.json")
    return summary


def machine(device: str) -> dict[str, Any]:
    """What the trainings ran on."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return {"cpu": cpu_model(), "threads": torch.get_num_threads(), "device": name}


def main(arguments: Sequence[str]) -> int:
    """Train, write compare_TASK.csv, .json and .png, print the table; returns 130 after an interruption, else 0."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    folder, resume, name, quick = options.pop("out"), options.pop("resume"), options.pop("task"), options["quick"]
    data, pretrained = options.pop("data"), options.pop("pretrained")
    if resume and quick and folder is None:
        parser.error("resume needs out where quick is given: the folder of the interrupted run")
    if pretrained is not None and (name != "text" or data is None):
        parser.error(f"pretrained is for task text with data, got {str(pretrained)!r} for task {name}")
    try:
        config = Config(**options)
        folder = folder or Path(tempfile.mkdtemp(prefix="compare-") if quick else "figures")
        folder.mkdir(parents=True, exist_ok=True)
        task = load(name, data, pretrained, 0, quick)
        journal = Journal(folder / f"compare_{name}.partial.jsonl", config.settings(task), resume)
    except OSError as error:
        parser.error(f"out must be a folder that can be written, got {str(folder)!r} ({error.strerror})")
    except ValueError as error:
        parser.error(str(error))
    try:
        run(task, config, journal, folder)
    except KeyboardInterrupt:
        _say_how_to_go_on(journal, folder)
        return INTERRUPTED
    files = [folder / f"compare_{name}.{kind}" for kind in ("csv", "json", "png")]
    plot(*files)
    journal.remove()
    print(table(json.loads(files[1].read_text(encoding="utf-8"))))
    print(f"Written: {', '.join(file.name for file in files)} in {folder}")
    return 0


def _say_how_to_go_on(journal: Journal, folder: Path) -> None:
    if len(journal):
        words = (
            f"{len(journal)} finished trainings are kept in {journal.path}: the same command with --resume --out {folder} goes on"
        )
    else:
        words = "nothing was finished"
    print(f"Interrupted, {words}.", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments compare", description=__doc__)
    add = parser.add_argument
    add("--task", choices=TASKS, required=True, help="what is learned")
    add("--data", type=Path, metavar="FOLDER", help="the field's own data set (default: a small one that is always there)")
    add("--pretrained", type=Path, metavar="FOLDER", help="weights and tokenizer to start from, for task text with --data")
    add("--seeds", type=int, default=Config.seeds, help="how many seeds are reported (default: %(default)s)")
    add("--steps", type=int, help="steps of each training (default: by task)")
    add("--quick", action="store_true", help="less than a minute, written to a temporary folder unless --out names another")
    add("--resume", action="store_true", help="go on where an interruption ended the same command")
    add("--device", default=Config.device, help="default: %(default)s")
    add("--out", type=Path, metavar="FOLDER", help="where to write (default: figures)")
    return parser
