"""What ``thresholds`` measures: the median losses of its grids, and which learning rates are usable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..common.tables import aligned

Summary = dict[str, Any]
Level = float | str  # "none" is no clipping


def summarize(problems: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]]) -> list[Summary]:
    """For each problem that has results: its cells, the bar, and the usable learning rates of each level."""
    found = []
    for problem in problems:
        mine = [result for result in results if result["problem"] == problem["name"]]
        if mine:
            found.append(problem | _of_problem(problem, mine))
    return found


def _of_problem(problem: dict[str, Any], results: Sequence[dict[str, Any]]) -> Summary:
    levels: list[Level] = [*problem["levels"], "none"]
    cells = [_cell(lr, level, results) for level in levels for lr in problem["lrs"]]
    cells = [cell for cell in cells if cell["seeds"]]
    plain = [cell for cell in cells if cell["level"] == "none" and cell["validation_loss"] is not None]
    best = min(plain, key=lambda cell: cell["validation_loss"], default=None)
    bar = None if best is None else problem["bar"] * best["validation_loss"]
    by_level = [_of_level(level, [cell for cell in cells if cell["level"] == level], bar) for level in levels]
    return {
        "best_unclipped": best,
        "usable_up_to": bar,
        "best": min((c for c in cells if c["validation_loss"] is not None), key=lambda c: c["validation_loss"], default=None),
        "usable": by_level,
        "cells": cells,
    }


def _cell(lr: float, level: Level, results: Sequence[dict[str, Any]]) -> Summary:
    """A training that diverged counts as worse than all others; a median of such trainings is None."""
    mine = [result for result in results if (result["lr"], result["level"]) == (lr, level)]
    losses = [math.inf if math.isnan(result["validation_loss"]) else result["validation_loss"] for result in mine]
    rates = [result["clip_rate"] for result in mine if result["clip_rate"] is not None]
    low, median, high = (min(losses), np.median(losses), max(losses)) if losses else (math.inf,) * 3
    return {
        "lr": lr,
        "level": level,
        "seeds": len(mine),
        "diverged": sum(map(math.isinf, losses)),
        "validation_loss": _finite(median),
        "lowest": _finite(low),
        "highest": _finite(high),
        "clip_rate": float(np.median(rates)) if rates else None,
    }


def _of_level(level: Level, cells: Sequence[Summary], bar: float | None) -> Summary:
    known = [cell for cell in cells if cell["validation_loss"] is not None]
    best = min(known, key=lambda cell: cell["validation_loss"], default=None)
    return {
        "level": level,
        "best_lr": best and best["lr"],
        "best_loss": best and best["validation_loss"],
        "usable_lrs": [cell["lr"] for cell in known if bar is not None and cell["validation_loss"] <= bar],
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


HEADER = ("level", "lowest validation loss", "at lr", "usable learning rates")


def table(summary: Summary) -> str:
    """For each problem a line for every level."""
    parts = []
    for problem in summary["problems"]:
        rows = [
            (
                f"{one['level']}",
                "-" if one["best_loss"] is None else f"{one['best_loss']:.4g}",
                "-" if one["best_lr"] is None else f"{one['best_lr']:g}",
                ", ".join(f"{lr:g}" for lr in one["usable_lrs"]) or "none",
            )
            for one in problem["usable"]
        ]
        bar = "unknown" if problem["usable_up_to"] is None else f"{problem['usable_up_to']:.4g}"
        title = (
            f"{problem['data']}: {problem['steps']} steps of SGD, {problem['loss_name']}; "
            f"usable: at most {bar}, {problem['bar']:g} times the lowest without clipping"
        )
        parts.append("\n".join([title, "", *aligned([HEADER, *rows])]))
    return "\n\n".join(parts)
