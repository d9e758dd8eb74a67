"""Map where clipping helps: the loss after training, over learning rate and clipping level.

``python -m experiments thresholds`` trains two small LSTMs, a forecaster of sine waves and a language model, by SGD with
momentum, with clipping type norm at several levels and unclipped. Learning rates differ by factors of 2, levels by factors of
about 3, up to a level at which nothing is clipped. Start and batches of a seed are the same in every cell of the map.

If at least 99 % of the steps are clipped, the step is normalized: only learning rate times level counts. Such cells are
separated from cells that are clipped at times. Each kind is compared with no clipping, seed by seed: the cell is chosen on the
first half of the seeds, and compared on the others.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torch_clipped import ClippedSGD, ClippingWarning

from ..common.command import Plan, check_at_least, command, parser_of
from ..common.files import write_csv, write_json
from ..common.journal import Journal, Result
from ..common.text import load_text
from .picture import plot
from .problems import Problem, language_model, sine_waves
from .summary import summarize
from .table import table

LAST = 10  # losses at the end of a training whose mean is kept


@dataclass(frozen=True, kw_only=True)
class Config:
    """Seeds, and the share of the grids and of the steps that is trained."""

    seed: int = 0
    seeds: int = 5
    every: int = 1  # take one in so many learning rates and levels
    shorter: int = 1  # divide the number of steps by this

    def __post_init__(self) -> None:
        check_at_least(self, {"seed": 0, "seeds": 1})


QUICK = {"seeds": 1, "every": 2, "shorter": 4}


def plan(**options: Any) -> Plan:
    """Return the plan of a :class:`Config` with these options."""
    config = Config(**options)
    problems = [_reduced(problem, config) for problem in (sine_waves(), language_model(load_text(None)))]
    settings = {**asdict(config), "problems": [problem.settings() for problem in problems]}
    trainings = _trainings(config, problems)

    def train_all(journal: Journal) -> None:
        for problem, lr, level, seed in trainings:
            name = f"seed {seed}, {problem.name}, lr {lr:g}, level {level}"
            journal.done(name, problem.steps, partial(train, problem, lr, level, seed))

    def write(results: Sequence[Result], folder: Path) -> str:
        summarized, interrupted = summarize(settings["problems"], results), len(results) < len(trainings)
        summary = {"experiment": "thresholds", "config": settings, "interrupted": interrupted, "problems": summarized}
        write_csv(results, folder / "thresholds.csv")
        write_json(summary, folder / "thresholds.json")
        plot(folder / "thresholds.json", folder / "thresholds.png")
        return table(summary)

    steps = sum(problem.steps for problem, *_ in trainings)
    return Plan(name="thresholds", settings=settings, steps=steps, train=train_all, write=write)


def _reduced(problem: Problem, config: Config) -> Problem:
    grids = {name: getattr(problem, name)[:: config.every] for name in ("lrs", "levels")}
    return replace(problem, steps=problem.steps // config.shorter, **grids)


def _trainings(config: Config, problems: Sequence[Problem]) -> list[tuple[Problem, float, float | None, int]]:
    """Return problem, learning rate, level and seed of each training, seed by seed; interrupted runs have complete maps."""
    return [
        (problem, lr, level, seed)
        for seed in range(config.seed, config.seed + config.seeds)
        for problem in problems
        for lr in problem.lrs
        for level in (None, *problem.levels)
    ]


def train(problem: Problem, lr: float, level: float | None, seed: int) -> Result:
    """Train with one learning rate, level and seed; return losses and clip rate.

    A training has diverged if a loss was not finite, or if its validation loss is above the first training loss. A loss that
    is not finite ends the training, and its losses become NaN.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = problem.model()
    clipping: dict[str, Any] = {"clipping_type": "none" if level is None else "norm", "clipping_level": level}
    optimizer = ClippedSGD(model.parameters(), lr=lr, momentum=problem.momentum, **clipping)
    generator = torch.Generator().manual_seed(seed)
    result: Result = {"problem": problem.name, "lr": lr, "level": "none" if level is None else level, "seed": seed}
    losses: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ClippingWarning
        )  # about the lowest levels, which may clip every gradient to almost nothing
        for _ in range(problem.steps):
            loss = problem.loss(model, problem.draw(generator))
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    validation = _validation_loss(problem, model)
    finite = math.isfinite(losses[-1]) and math.isfinite(validation)
    clip_rate = None if level is None else optimizer.clipping_stats()["clip_rate"]
    return result | {
        "training_loss": sum(losses[-LAST:]) / len(losses[-LAST:]) if finite else math.nan,
        "validation_loss": validation if finite else math.nan,
        "diverged": int(not finite or validation > losses[0]),
        "clip_rate": clip_rate,
    }


@torch.no_grad()
def _validation_loss(problem: Problem, model: nn.Module) -> float:
    return float(torch.stack([problem.loss(model, batch) for batch in problem.validation]).mean())


def main(arguments: Sequence[str]) -> int:
    """Train, write thresholds.csv, .json and .png, print the table; return 130 after an interruption, else 0."""
    torch.set_num_threads(1)  # the models are too small for a second one to help
    parser = parser_of("thresholds", __doc__)
    parser.add_argument("--seeds", type=int, help="number of seeds (default: 5)")
    parser.add_argument("--seed", type=int, help="the first seed (default: 0)")
    return command(parser, plan, QUICK, arguments)
