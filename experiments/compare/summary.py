"""Summarize each method of ``compare``, and compare it with the method without clipping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from .training import Training
from .tuning import Outcome

CONFIDENCE = 0.95
USABLE = 0.1  # largest loss of a usable learning rate, as a share of the gain over the trivial method
Summary = dict[str, Any]


def rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return a row for each block of steps of each result; step 0 is before training, without a loss."""
    found = []
    for one in (result for outcome in outcomes for result in outcome.results):
        blocks, points = {block[0]: block[1:] for block in one.curve}, dict(one.points)
        for step in sorted({*blocks, *points}):
            loss, norm, clipped = blocks.get(step, ("", "", ""))
            row = {"method": one.method, "lr": one.lr, "level": "" if one.level is None else one.level, "seed": one.seed}
            row |= {"step": step, "loss": loss, "gradient_norm": norm, "clip_rate": clipped}
            found.append(row | {"validation_metric": points.get(step, "")})
    return found


def summarize(outcome: Outcome, baseline: Outcome, trivial: float) -> Summary:
    """Return the learning rate and level of a method, their tuning, its results, and its paired differences from the baseline."""
    method, results = outcome.method, outcome.results
    lrs = [one.lr for one in outcome.candidates]
    levels = [one.level for one in outcome.candidates if one.level is not None]
    return {
        "method": method.label,
        "baseline": None if method.clipping is None else method.baseline,
        "lr": outcome.lr,
        "level": outcome.level,
        "lr_is_an_end_of_the_grid": outcome.lr in (min(lrs), max(lrs)),
        "level_is_an_end_of_the_grid": bool(levels) and outcome.level in (min(levels), max(levels)),
        "usable_learning_rates": usable(outcome, trivial),
        "candidates": [_candidate(one) for one in outcome.candidates],
        "finalists": [_candidate(one) for one in outcome.finalists],
        "tuning_score": outcome.tuning_score,
        **{name: _spread([getattr(one, name) for one in results]) for name in ("test", "validation", "train", "training_loss")},
        "diverged": sum(one.diverged for one in results),
        "clip_rate": None if method.clipping is None else float(np.mean([one.clip_rate for one in results])),
        "difference": None if method.clipping is None else difference(results, baseline.results),
    }


def usable(outcome: Outcome, trivial: float) -> Summary:
    """Return the range of learning rates around the best one that are nearly as good, by the first tuning seed."""
    best = max(outcome.candidates, key=Training.score)
    own = sorted((one for one in outcome.candidates if one.level == best.level), key=lambda one: one.lr)
    bar = best.score()[0] - USABLE * (best.score()[0] - trivial)
    good = [one.score()[0] >= bar for one in own]
    low = high = own.index(best)
    while low > 0 and good[low - 1]:
        low -= 1
    while high < len(own) - 1 and good[high + 1]:
        high += 1
    return {"lowest": own[low].lr, "highest": own[high].lr, "reaches_an_end": low == 0 or high == len(own) - 1}


def difference(results: Sequence[Training], baseline: Sequence[Training]) -> Summary:
    """Return mean and t-interval of the differences in the test metric, over the seeds with which neither diverged.

    If clipping diverged with more seeds than its baseline, the verdict is neither better nor worse.
    """
    pairs = [(one.test, other.test) for one, other in zip(results, baseline, strict=True)]
    values = np.array([one - other for one, other in pairs if math.isfinite(one) and math.isfinite(other)])
    if len(values) < 2:
        return {"mean": math.nan, "low": math.nan, "high": math.nan, "pairs": len(values), "words": "too few pairs"}
    mean = float(values.mean())
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    lost, lost_without = (sum(not math.isfinite(one.test) for one in trainings) for trainings in (results, baseline))
    words = "better" if mean - half > 0 else "worse" if mean + half < 0 else "no difference shown"
    words = "diverged" if lost > lost_without else words
    return {"mean": mean, "low": mean - half, "high": mean + half, "pairs": len(values), "words": words}


def best_clipped(methods: Sequence[Summary], baseline: str) -> Summary | None:
    """Return the clipped method with the best tuning score for this optimizer; None if there is none."""
    own = [one for one in methods if one["baseline"] == baseline and one["test"]["mean"] is not None]
    return max(own, key=lambda one: float(one["tuning_score"]), default=None)


def _candidate(one: Training) -> Summary:
    names = ("lr", "level", "seed", "validation", "training_loss", "diverged", "clip_rate")
    return {name: getattr(one, name) for name in names}


def _spread(values: list[float]) -> Summary:
    """Return mean and range over the seeds; not finite, so null in the file, if one diverged."""
    return {"mean": float(np.mean(values)), "lowest": float(np.min(values)), "highest": float(np.max(values)), "by_seed": values}
