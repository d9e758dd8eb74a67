"""What ``compare`` writes: a row for every step, and a summary of each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .methods import Method
from .training import Training

LONGEST_CSV = 25_000  # rows, of some 60 bytes; of longer trainings only one step in so many is written
Summary = dict[str, Any]


def choose(trainings: Sequence[Training]) -> Training:
    """The best of a grid: the highest metric on validation data, among equals the lowest training loss.

    One that diverged loses; where all have, the lowest learning rate is taken.
    """
    sound = [training for training in trainings if not training.diverged and not math.isnan(training.validation)]
    if not sound:
        return min(trainings, key=lambda training: training.lr)
    return max(sound, key=lambda training: (training.validation, -training.training_loss))


def written_every(steps: int, trainings: int) -> int:
    """From one step of the csv file to the next."""
    return math.ceil(steps * trainings / LONGEST_CSV)


def rows(training: Training, every: int) -> list[dict[str, Any]]:
    """Of one training; step 0 is the start, whose metric is measured and whose loss is not."""
    points = dict(training.points)
    found = []
    for step in range(len(training.losses) + 1):
        if step % every == 0 or step in points or step == len(training.losses):
            metrics, measured = points.get(step, {}), step > 0
            row = {"method": training.method, "lr": training.lr, "seed": training.seed, "step": step}
            row["loss"] = training.losses[step - 1] if measured else ""
            row["gradient_norm"] = training.norms[step - 1] if measured else ""
            row["clipped"] = training.clipped[step - 1] if measured else ""
            found.append(row | {f"{name}_metric": metrics.get(name, "") for name in ("train", "validation")})
    return found


def summarize(method: Method, grid: Sequence[Training], reported: Sequence[Training], baseline: Sequence[Training]) -> Summary:
    """The learning rate and how it was found, then the ends of all seeds; ``baseline`` has the same seeds without clipping."""
    lrs, lr = [training.lr for training in grid], reported[0].lr
    others = [name for name in reported[0].points[0][1] if name not in ("train", "validation")]
    pairs = [(mine.validation, theirs.validation) for mine, theirs in zip(reported, baseline, strict=True)]
    return {
        "method": method.label,
        "baseline": method.baseline if method.clips else None,
        "lr": lr,
        "lr_is_an_end_of_the_grid": lr in (min(lrs), max(lrs)),
        "grid": [
            {name: getattr(one, name) for name in ("lr", "validation", "train", "training_loss", "diverged")} for one in grid
        ],
        "validation": _spread([one.validation for one in reported]),
        "train": _spread([one.train for one in reported]),
        "other_metrics": {name: _spread([one.metric(name) for one in reported]) for name in others},
        "training_loss": _spread([one.training_loss for one in reported]),
        "diverged": sum(one.diverged for one in reported),
        "clip_rate": float(np.mean([clipped for one in reported for clipped in one.clipped])) if method.clips else None,
        "seeds_above_baseline": sum(_above(mine, theirs) for mine, theirs in pairs) if method.clips else None,
        "seeds_below_baseline": sum(_above(theirs, mine) for mine, theirs in pairs) if method.clips else None,
        "unclipped_lengths": None if method.clips else _lengths(reported),
    }


def _spread(values: list[float]) -> Summary:
    """Over the seeds; not finite, and so null in the file, where one diverged."""
    return {"mean": float(np.mean(values)), "lowest": float(np.min(values)), "highest": float(np.max(values)), "by_seed": values}


def _above(mine: float, theirs: float) -> bool:
    """Also where theirs diverged and mine did not."""
    return mine > theirs or (math.isnan(theirs) and not math.isnan(mine))


def _lengths(trainings: Sequence[Training]) -> Summary:
    """Of the gradients that no clipping has touched, over all steps and seeds; null in the file where none is finite."""
    norms = np.array([norm for one in trainings for norm in one.norms if math.isfinite(norm)])
    if not len(norms):
        return {"count": 0} | dict.fromkeys(("mean", "std", "largest"), math.nan)
    return {"count": len(norms), "mean": float(norms.mean()), "std": float(norms.std()), "largest": float(norms.max())}
