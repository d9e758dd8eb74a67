"""Search of learning rates and levels for ``compare``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..common.command import TUNING_SEED
from .methods import Method
from .task import Grids
from .training import Training

TUNING_SEEDS = tuple(range(TUNING_SEED, TUNING_SEED + 3))  # not used for results
MOST_LRS = 10  # largest size of a grid that is widened
SHARE = 3  # the best 1 / SHARE of the candidates of the first seed are trained with the other seeds
ADAM_SHARE = 3  # the best 1 / ADAM_SHARE of the clippings with SGD are tried with Adam
Trained = Callable[[Method, float, float | None, int], Training]


@dataclass
class Outcome:
    """Trainings of a method: the candidates of the first tuning seed, the finalists of the others, and the results."""

    method: Method
    candidates: list[Training]
    finalists: list[Training]
    lr: float
    level: float | None
    tuning_score: float  # mean metric of the chosen candidate over the tuning seeds
    results: list[Training] = field(default_factory=list)


def tune(method: Method, lrs: Sequence[float], levels: Sequence[float | None], trained: Trained) -> Outcome:
    """Choose learning rate and level by halving: all candidates with one seed, the best third with all tuning seeds.

    While the best learning rate is an end of the grid, with one seed or with all, the grid is widened there by a factor of 2.

    Args:
        method: method to tune.
        lrs: first grid of learning rates, ascending.
        levels: levels to try with each learning rate.
        trained: returns the training of a method, learning rate, level and seed.
    """
    first, *others = TUNING_SEEDS
    grid = list(lrs)
    found = {(lr, level): trained(method, lr, level, first) for lr in grid for level in levels}
    while len(grid) < MOST_LRS:
        best = max(found, key=lambda candidate: found[candidate].score())[0]
        if best not in (grid[0], grid[-1]) or all(math.isinf(one.score()[0]) for one in found.values()):
            break
        new = best / 2 if best == grid[0] else best * 2
        grid = sorted([*grid, new])
        found |= {(new, level): trained(method, new, level, first) for level in levels}
    ranked = sorted(found, key=lambda candidate: found[candidate].score(), reverse=True)
    scores, finalists = {}, []
    for lr, level in ranked[: math.ceil(len(ranked) / SHARE)]:
        again = [trained(method, lr, level, seed) for seed in others]
        finalists += again
        scores[lr, level] = float(np.mean([one.score()[0] for one in (found[lr, level], *again)]))
    lr, level = max(scores, key=lambda candidate: scores[candidate])
    while (
        lr in (grid[0], grid[-1]) and len(grid) < MOST_LRS and not math.isinf(scores[lr, level])
    ):  # an end is best over all seeds
        new = lr / 2 if lr == grid[0] else lr * 2
        grid = sorted([*grid, new])
        found[new, level] = trained(method, new, level, first)
        again = [trained(method, new, level, seed) for seed in others]
        finalists += again
        scores[new, level] = float(np.mean([one.score()[0] for one in (found[new, level], *again)]))
        lr, level = max(scores, key=lambda candidate: scores[candidate])
    return Outcome(method, list(found.values()), finalists, lr, level, scores[lr, level])


def outcomes(clippings: Sequence[str], grids: Grids, seeds: Sequence[int], trained: Trained) -> list[Outcome]:
    """Run the whole comparison: SGD and Adam without clipping, SGD with each clipping, Adam with the best of them.

    Args:
        clippings: keys of ``CLIPPINGS``.
        grids: first grids of learning rates, for SGD and Adam.
        seeds: seeds of the results.
        trained: returns the training of a method, learning rate, level and seed.
    """
    found: dict[str, Outcome] = {}

    def take(method: Method) -> None:
        length = 1.0
        if method.clipping is not None:  # a level for the gradients of the unclipped method at its learning rate
            baseline = found[method.baseline]
            found_level = next(one.suggested_level for one in baseline.candidates if one.lr == baseline.lr)
            length = found_level if math.isfinite(found_level) else 1.0  # no gradient was finite
        outcome = tune(method, grids[method.baseline], method.levels(length), trained)
        outcome.results = [trained(method, outcome.lr, outcome.level, seed) for seed in seeds]
        found[method.label] = outcome

    for method in (Method("SGD"), Method("Adam"), *(Method("SGD", clipping) for clipping in clippings)):
        take(method)
    clipped = [outcome for outcome in found.values() if outcome.method.clipping is not None]
    for outcome in sorted(clipped, key=lambda one: one.tuning_score, reverse=True)[: math.ceil(len(clippings) / ADAM_SHARE)]:
        take(Method("Adam", outcome.method.clipping))
    return list(found.values())
