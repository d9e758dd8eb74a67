"""What restarts from the average of the iterates do to clipped SGD, on a language model and on a heavy-tailed regression.

``python -m experiments restarts`` trains without restarts, with restarts from the mean of the iterates in several windows, and
with restarts from the last iterate, which only clear the momentum. Each gets its learning rate from one grid: the one with the
lowest training loss at the end, with a seed that is used for nothing else. Start and batches of a seed are the same for all.
To tell restarts from averages, the mean of the iterates of the last quarter is measured beside the last iterate, without going
on from there.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn
from tqdm import tqdm

from torch_clipped import ClippedSGD, ClippingWarning, OptimizerProperties, OptimizersCollector, Restarter, RestartProperties

from ..common.command import INTERRUPTED, TUNING_SEED, check_at_least, out_folder, parser_of, publishing
from ..common.files import write_csv, write_json
from ..common.text import load_text
from .picture import plot
from .problems import Batch, Problem, Task, contender, language_model, regression
from .table import sentences, summarize, table

AVERAGED_SHARE = 4  # one in so many steps, at the end, is in the mean that is measured without going on from there
Rows = list[dict[str, Any]]
Entrant = tuple[RestartProperties | None, float]  # restarts and learning rate


def run(problems: Sequence[Problem], folder: Path) -> list[dict[str, Any]]:
    """Train everything, write restarts.csv (the curves), .json (all else) and .png; returns what is in the json.

    An interruption from the keyboard ends it early: the seeds that were done are written as restarts.partial.*.
    """
    curves: Rows = []
    trained: list[tuple[Problem, Rows, Rows]] = []  # a problem, its grid and its final losses
    total = sum(len(p.schedules) * p.steps * (p.seeds + len(p.lrs)) for p in problems)
    with warnings.catch_warnings(), tqdm(total=total, unit="step", mininterval=0.5) as progress:
        warnings.simplefilter("ignore", ClippingWarning)  # the ends of a grid may well crush every gradient
        try:
            for problem in problems:
                entrants, grid = tune(problem, progress)
                ends: Rows = []
                trained.append((problem, grid, ends))
                for seed in range(problem.seed, problem.seed + problem.seeds):
                    rows, finals = train(problem, entrants, seed, problem.measured_every, progress)
                    curves += rows
                    ends += finals
        except KeyboardInterrupt:
            if not curves:
                raise
    results = [_result(*one) for one in trained if one[-1]]
    with publishing(folder, is_partial(results, problems)) as new:
        files = [new / f"restarts.{kind}" for kind in ("csv", "json", "png")]
        write_csv(curves, files[0])
        write_json(results, files[1])
        plot(*files)
    return results


def _result(problem: Problem, grid: Rows, ends: Rows) -> dict[str, Any]:
    summary = summarize(ends)
    result = {"problem": problem.name, "config": problem.settings(), "contenders": summary}
    return result | {"sentences": sentences(summary, grid), "grid": grid, "ends": ends}


def is_partial(results: Sequence[dict[str, Any]], problems: Sequence[Problem]) -> bool:
    """Return whether a seed of one of the problems is missing."""
    return sum(len(result["ends"]) for result in results) < sum(len(p.schedules) * p.seeds for p in problems)


def tune(problem: Problem, progress: tqdm[Any]) -> tuple[list[Entrant], Rows]:
    """Each contender with the learning rate of its lowest final training loss, and the losses of the whole grid."""
    entrants = [(schedule, lr) for schedule in problem.schedules for lr in problem.lrs]
    _, ends = train(problem, entrants, TUNING_SEED, None, progress)
    best = []
    for schedule in problem.schedules:
        mine = [end for end in ends if end["contender"] == contender(schedule)]
        best.append((schedule, min(mine, key=lambda end: end["training_loss"])["lr"]))
    chosen = [(contender(schedule), lr) for schedule, lr in best]
    grid = [{name: end[name] for name in ("contender", "lr", "training_loss", "validation_loss")} for end in ends]
    return best, [row | {"chosen": (row["contender"], row["lr"]) in chosen} for row in grid]


def train(
    problem: Problem, entrants: Sequence[Entrant], seed: int, measured_every: int | None, progress: tqdm[Any]
) -> tuple[Rows, Rows]:
    """The points of the curves, if any are wanted, and the final losses of all entrants, trained side by side.

    A step after which one of them has restarted is a point of the curves of all.
    """
    task = problem.task(seed)
    collector = _collector(problem, task, entrants, seed)
    restarts = {label: _recorded_restarts(collector.restarters.get(label)) for label in collector.models}
    rows = [{"problem": problem.name, "contender": contender(schedule), "lr": lr, "seed": seed} for schedule, lr in entrants]
    rows_of = dict(zip(collector.models, rows, strict=True))
    means: dict[str, AveragedModel] = {}
    generator = torch.Generator().manual_seed(seed)
    curves: Rows = []
    progress.set_description(f"{problem.name}, seed {seed}")
    for step in range(problem.steps + 1):
        if step:
            collector.step(task.draw(generator), task.loss)
            progress.update(len(entrants))
        if step > problem.steps - max(1, problem.steps // AVERAGED_SHARE):
            _take_in(means, collector.models)
        restarted = any(steps[-1:] == [step] for steps in restarts.values())
        if measured_every and (restarted or step % measured_every == 0 or step == problem.steps):
            for label, model in collector.models.items():
                loss = measure(task, model, task.training)
                curves.append(rows_of[label] | {"step": step, "loss": loss, "restarts": len(restarts[label])})
    ends = [
        rows_of[label] | _final_losses(task, model, means[label]) | {"restarts": restarts[label]}
        for label, model in collector.models.items()
    ]
    return curves, ends


def _final_losses(task: Task, last: nn.Module, mean: nn.Module) -> dict[str, float]:
    """Of the last iterate, and of the mean of the iterates of the last quarter."""
    return {
        f"{prefix}{kind}_loss": measure(task, model, batches)
        for prefix, model in (("", last), ("mean_", mean))
        for kind, batches in (("training", task.training), ("validation", task.validation))
    }


def _collector(problem: Problem, task: Task, entrants: Sequence[Entrant], seed: int) -> OptimizersCollector:
    arguments: dict[str, Any] = {"momentum": problem.momentum, "clipping_type": "norm", "clipping_level": problem.clipping_level}
    contenders = [(OptimizerProperties(ClippedSGD, lr=lr, **arguments), schedule) for schedule, lr in entrants]
    return OptimizersCollector(task.model, [(o, s) if s is not None else o for o, s in contenders], seed=seed)


def _recorded_restarts(restarter: Restarter | None) -> list[int]:
    """A list that gets the step of each restart."""
    steps: list[int] = []
    if restarter is not None:
        restarter.on_restart = lambda restarter: steps.append(restarter.steps)
    return steps


def _take_in(means: dict[str, AveragedModel], models: dict[str, nn.Module]) -> None:
    for label, model in models.items():
        if label not in means:
            means[label] = AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())
        means[label].update_parameters(model)


@torch.no_grad()
def measure(task: Task, model: nn.Module, batches: Sequence[Batch]) -> float:
    """The mean loss of these batches."""
    return float(torch.stack([task.loss(model, batch) for batch in batches]).mean())


def main(arguments: Sequence[str]) -> int:
    """Train, write restarts.csv, .json and .png, print the tables; returns 130 after an interruption, else 0."""
    parser = parser_of("restarts", __doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        check_at_least(options, {"seed": 0})
        problems = [language_model(load_text(None), options.seed), regression(options.seed)]
        if any(TUNING_SEED in range(problem.seed, problem.seed + problem.seeds) for problem in problems):
            raise ValueError(f"seed must leave out {TUNING_SEED}, with which the learning rates are chosen, got {options.seed}")
        folder = out_folder(parser, options, "restarts")
    except ValueError as error:
        parser.error(str(error))
    try:
        results = run(problems, folder)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    for result in results:
        print(table(result), end="\n\n")
    if is_partial(results, problems):
        print("Interrupted: these are the seeds that were done.", file=sys.stderr)
        return INTERRUPTED
    return 0
