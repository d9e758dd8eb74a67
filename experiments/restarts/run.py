"""Measure the effect of restarts from averaged iterates on clipped SGD, on a language model and on a heavy-tailed regression.

``python -m experiments restarts`` trains without restarts, with restarts from the mean of the iterates in several windows, and
with restarts from the last iterate, which only clear the momentum. The learning rate of each is the one with the lowest final
training loss in the same grid, with a seed that is used only for this. Start and batches of a seed are the same for all. To
separate restarts from averaging, the mean of the iterates of the last quarter is measured too; no training continues from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn
from tqdm import tqdm

from torch_clipped import ClippedSGD, ClippingWarning, OptimizerProperties, OptimizersCollector, Restarter, RestartProperties

from ..common.command import TUNING_SEED, Plan, check_integer, command, parser_of
from ..common.files import write_csv, write_json
from ..common.journal import Journal, Result
from ..common.text import load_text
from .picture import plot
from .problems import Batch, Problem, Task, contender, language_model, regression
from .table import sentences, summarize, table

AVERAGED_SHARE = 4  # the last 1 / AVERAGED_SHARE of the steps are averaged for the measured mean
QUICK = {"shorter": 10}
Rows = list[dict[str, Any]]
Entrant = tuple[RestartProperties | None, float]  # restarts and learning rate


def plan(seed: int = 0, shorter: int = 1) -> Plan:
    """Return the plan for both problems, with ``shorter`` times fewer steps."""
    check_integer("seed", seed, 0)
    problems = [
        replace(problem, steps=problem.steps // shorter) for problem in (language_model(load_text(None), seed), regression(seed))
    ]
    if any(TUNING_SEED in range(problem.seed, problem.seed + problem.seeds) for problem in problems):
        raise ValueError(
            f"seed must not make the seeds include {TUNING_SEED}, which is kept for choosing the learning rates, got {seed}"
        )

    def train_all(journal: Journal) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ClippingWarning
            )  # about the ends of a grid, which may clip every gradient to almost nothing
            for problem in problems:
                candidates = [(schedule, lr) for schedule in problem.schedules for lr in problem.lrs]
                tuned = _trained(problem, candidates, TUNING_SEED, None, journal)
                entrants = best_of(problem, tuned["ends"])
                for seed in range(problem.seed, problem.seed + problem.seeds):
                    _trained(problem, entrants, seed, problem.measured_every, journal)

    def write(results: Sequence[Result], folder: Path) -> str:
        written = [_result(problem, [one for one in results if one["problem"] == problem.name]) for problem in problems]
        written = [one for one in written if one["ends"]]
        if not written:
            return "no seed was finished"
        files = [folder / f"restarts.{kind}" for kind in ("csv", "json", "png")]
        write_csv([row for one in results for row in one["curves"]], files[0])
        write_json(written, files[1])
        plot(*files)
        return "\n\n".join(map(table, written))

    steps = sum(len(p.schedules) * p.steps * (p.seeds + len(p.lrs)) for p in problems)
    settings = {"problems": [problem.settings() for problem in problems]}
    return Plan(name="restarts", settings=settings, steps=steps, train=train_all, write=write)


def _trained(problem: Problem, entrants: Sequence[Entrant], seed: int, measured_every: int | None, journal: Journal) -> Result:
    def new() -> Result:
        curves, ends = train(problem, entrants, seed, measured_every, journal.progress)
        return {"problem": problem.name, "seed": seed, "curves": curves, "ends": ends}

    return journal.done(f"{problem.name}, seed {seed}", len(entrants) * problem.steps, new)


def best_of(problem: Problem, ends: Rows) -> list[Entrant]:
    """Return each contender with the learning rate that has the lowest final training loss."""
    best = []
    for schedule in problem.schedules:
        mine = [end for end in ends if end["contender"] == contender(schedule)]
        best.append((schedule, min(mine, key=lambda end: end["training_loss"])["lr"]))
    return best


def _result(problem: Problem, trained: Sequence[Result]) -> dict[str, Any]:
    tuned = [end for one in trained if one["seed"] == TUNING_SEED for end in one["ends"]]
    ends = [end for one in trained if one["seed"] != TUNING_SEED for end in one["ends"]]
    chosen = [(contender(schedule), lr) for schedule, lr in best_of(problem, tuned)] if tuned else []
    grid = [{name: end[name] for name in ("contender", "lr", "training_loss", "validation_loss")} for end in tuned]
    grid = [row | {"chosen": (row["contender"], row["lr"]) in chosen} for row in grid]
    summary = summarize(ends) if ends else []
    result = {"problem": problem.name, "config": problem.settings(), "contenders": summary}
    return result | {"sentences": sentences(summary, grid) if ends else [], "grid": grid, "ends": ends}


def train(
    problem: Problem, entrants: Sequence[Entrant], seed: int, measured_every: int | None, progress: tqdm[Any]
) -> tuple[Rows, Rows]:
    """Train all entrants side by side; return the points of the curves and the final losses.

    Without ``measured_every`` there are no points. A step after which one entrant has restarted is a point of all curves.
    """
    task = problem.task(seed)
    collector = _collector(problem, task, entrants, seed)
    restarts = {label: _recorded_restarts(collector.restarters.get(label)) for label in collector.models}
    rows = [{"problem": problem.name, "contender": contender(schedule), "lr": lr, "seed": seed} for schedule, lr in entrants]
    rows_of = dict(zip(collector.models, rows, strict=True))
    means: dict[str, AveragedModel] = {}
    generator = torch.Generator().manual_seed(seed)
    curves: Rows = []
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
    """Return the losses of the last iterate, and of the mean of the iterates of the last quarter."""
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
    """Return a list to which the step of each restart is appended."""
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
    """Return the mean loss of these batches."""
    return float(torch.stack([task.loss(model, batch) for batch in batches]).mean())


def main(arguments: Sequence[str]) -> int:
    """Train, write restarts.csv, .json and .png, print the tables; return 130 after an interruption, else 0."""
    parser = parser_of("restarts", __doc__)
    parser.add_argument("--seed", type=int, help="the first seed (default: 0)")
    return command(parser, plan, QUICK, arguments)
