"""Compare clipping with no clipping, seed by seed, each at the best cell over other seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

Summary = dict[str, Any]
Place = tuple[float, float | str]  # learning rate and level of a cell
Losses = Mapping[tuple[Place, int], float]  # by place and seed
CONFIDENCE = 0.95
UNKNOWN = "not known"


def compare(kind: str, cells: Sequence[Summary], results: Sequence[Summary]) -> Summary:
    """Return losses of the best cell of a kind and of the best unclipped one, and the interval of their difference.

    Both cells have the lowest median over the first half of the seeds. They are reported on the other seeds, so that no cell is
    judged by the losses it was chosen by. Only seeds that every cell has are used.

    Args:
        kind: kind of the clipped cells, ``"clipped"`` (at times) or ``"normalized"``.
        cells: cells of one problem.
        results: results of its trainings.

    Returns:
        ``difference``, ``low`` and ``high``: mean and t-interval of the loss minus the unclipped loss; None if there are
        fewer than three seeds or a loss is not finite. ``words``: better, worse, no difference shown or not known.
    """
    places = {name: [(cell["lr"], cell["level"]) for cell in cells if cell["kind"] == name] for name in (kind, "unclipped")}
    losses = losses_of(results)
    seeds = whole_seeds(losses)
    chosen_on, reported_on = seeds[: len(seeds) // 2], seeds[len(seeds) // 2 :]
    found: Summary = {
        "kind": kind,
        "candidates": len(places[kind]),
        "unclipped_candidates": len(places["unclipped"]),
        "chosen_on": chosen_on,
        "reported_on": reported_on,
    }
    if not chosen_on or not all(places.values()):
        return found | _interval([])
    chosen = {name: _chosen(places[name], losses, chosen_on) for name in places}
    ends = {name: [losses[chosen[name], seed] for seed in reported_on] for name in places}
    return found | {
        "lr": chosen[kind][0],
        "level": chosen[kind][1],
        "unclipped_lr": chosen["unclipped"][0],
        "losses": ends[kind],
        "unclipped_losses": ends["unclipped"],
        "loss": float(np.mean(ends[kind])),
        "unclipped_loss": float(np.mean(ends["unclipped"])),
        **_interval([one - other for one, other in zip(ends[kind], ends["unclipped"], strict=True)]),
    }


def _chosen(places: Sequence[Place], losses: Losses, seeds: Sequence[int]) -> Place:
    return min(places, key=lambda place: float(np.median([losses[place, seed] for seed in seeds])))


def losses_of(results: Sequence[Summary]) -> Losses:
    """Return the validation losses by place and seed; NaN becomes infinity, worse than any other loss."""
    ends = {((one["lr"], one["level"]), one["seed"]): one["validation_loss"] for one in results}
    return {key: math.inf if math.isnan(loss) else loss for key, loss in ends.items()}


def whole_seeds(losses: Losses) -> list[int]:
    """Return the seeds that every cell has."""
    places = {place for place, _ in losses}
    return [seed for seed in sorted({seed for _, seed in losses}) if all((place, seed) in losses for place in places)]


def _interval(differences: Sequence[float]) -> Summary:
    """Return mean and t-interval of differences of losses, and their verdict."""
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return {"difference": None, "low": None, "high": None, "words": UNKNOWN}
    mean, std = float(np.mean(differences)), float(np.std(differences, ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * std / math.sqrt(len(differences))
    words = "better" if mean + half < 0 else "worse" if mean - half > 0 else "no difference shown"
    return {"difference": mean, "low": mean - half, "high": mean + half, "words": words}
