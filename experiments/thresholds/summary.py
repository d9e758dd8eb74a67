"""Summarize ``thresholds``: the cells of its maps, the usable learning rates of each row, and the comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .comparisons import Losses, compare, losses_of, whole_seeds

Summary = dict[str, Any]
Level = float | str  # "none" is no clipping
NORMALIZED = 0.99  # smallest share of clipped steps of a normalized cell


def summarize(problems: Sequence[Summary], results: Sequence[Summary]) -> list[Summary]:
    """Return the settings of each problem that has results, with its cells, rows, best cells and comparisons."""
    found = []
    for problem in problems:
        mine = [result for result in results if result["problem"] == problem["name"]]
        if mine:
            found.append(problem | _of_problem(problem, mine))
    return found


def _of_problem(problem: Summary, results: Sequence[Summary]) -> Summary:
    levels: list[Level] = [*problem["levels"], "none"]
    cells = [_cell(lr, level, results) for level in levels for lr in problem["lrs"]]
    cells = [cell for cell in cells if cell["seeds"]]
    best, losses = _best(cells), losses_of(results)
    kinds = ("unclipped", "clipped", "normalized")
    rows = [[cell for cell in cells if cell["level"] == level] for level in levels]
    return {
        "best": {kind: _best([cell for cell in cells if cell["kind"] == kind]) for kind in kinds},
        "usable_up_to": best and problem["bar"] * best["validation_loss"],
        "rows": [_row(row, problem, best) | {"factors_by_seed": _factors(row, problem["bar"], losses)} for row in rows if row],
        "comparisons": [compare(kind, cells, results) for kind in kinds[1:]],
        "cells": cells,
    }


def _cell(lr: float, level: Level, results: Sequence[Summary]) -> Summary:
    """Summarize the seeds of a cell; a loss that is not finite counts as larger than all others, and such a median is None."""
    mine = [result for result in results if (result["lr"], result["level"]) == (lr, level)]
    losses = [math.inf if math.isnan(result["validation_loss"]) else result["validation_loss"] for result in mine]
    rates = [result["clip_rate"] for result in mine if result["clip_rate"] is not None]
    rate = float(np.mean(rates)) if rates else None
    low, median, high = (min(losses), np.median(losses), max(losses)) if losses else (math.inf,) * 3
    return {
        "lr": lr,
        "level": level,
        "seeds": len(mine),
        "validation_loss": _finite(median),
        "lowest": _finite(low),
        "highest": _finite(high),
        "diverged": sum(result["diverged"] for result in mine) / max(1, len(mine)),
        "clip_rate": rate,
        "normalized": rate is not None and rate >= NORMALIZED,
        "kind": _kind(level, rate),
    }


def _kind(level: Level, rate: float | None) -> str:
    """Return the kind of a cell; at a clip rate of 0 the training equals the unclipped one."""
    if level == "none":
        return "unclipped"
    if not rate:
        return "never clipped"
    return "normalized" if rate >= NORMALIZED else "clipped"


def _best(cells: Sequence[Summary]) -> Summary | None:
    known = [cell for cell in cells if cell["validation_loss"] is not None]
    return min(known, key=lambda cell: cell["validation_loss"], default=None)


def _row(cells: Sequence[Summary], problem: Summary, best: Summary | None) -> Summary:
    """Return the best learning rate of a level, and the ranges around it whose loss is within the bar.

    The bar is a multiple of the best loss of the row, or of the best loss of the whole map.
    """
    own = _best(cells)
    return {
        "level": cells[0]["level"],
        "best_lr": own and own["lr"],
        "best_loss": own and own["validation_loss"],
        "best_at_an_end": own and own["lr"] in (problem["lrs"][0], problem["lrs"][-1]),
        "usable_of_row": own and usable_range(cells, own, problem["bar"] * own["validation_loss"]),
        "usable_of_all": own and best and usable_range(cells, own, problem["bar"] * best["validation_loss"]),
        "normalized_cells": sum(cell["normalized"] for cell in cells),
        "cells": len(cells),
    }


def _factors(cells: Sequence[Summary], bar: float, losses: Losses) -> list[float]:
    """Return for each seed the factor of the usable range of a row, by the seed's best loss in the map; 0 for none."""
    found = []
    for seed in whole_seeds(losses):
        row = [{"lr": cell["lr"], "validation_loss": _finite(losses[(cell["lr"], cell["level"]), seed])} for cell in cells]
        lowest = min(loss for (_, one), loss in losses.items() if one == seed)
        own = _best(row)
        usable = own and usable_range(row, own, bar * lowest)
        found.append(usable["factor"] if usable else 0.0)
    return found


def usable_range(cells: Sequence[Summary], best: Summary, bar: float) -> Summary | None:
    """Return the learning rates around the best one whose median loss is at most ``bar``; None if the best is above it.

    Args:
        cells: cells of one row, by learning rate.
        best: the best of these cells.
        bar: the largest usable loss.
    """
    good = [cell["validation_loss"] is not None and cell["validation_loss"] <= bar for cell in cells]
    low = high = cells.index(best)
    if not good[low]:
        return None
    while low > 0 and good[low - 1]:
        low -= 1
    while high < len(cells) - 1 and good[high + 1]:
        high += 1
    lowest, highest = cells[low]["lr"], cells[high]["lr"]
    ends = low == 0 or high == len(cells) - 1
    return {"lowest": lowest, "highest": highest, "factor": highest / lowest, "reaches_an_end": ends}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
