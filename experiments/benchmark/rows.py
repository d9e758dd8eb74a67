"""Make, write and read the rows of ``benchmark``: one for every contender, with its ratios to torch's steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..common.files import read_csv, write_csv
from .contenders import FLOOR, NORM_DEFAULT, NORM_FUSED, TORCH, Contender
from .problem import Problem
from .timing import Timings

# Fewest passes of a step over memory of the size of the weights.
TRAFFIC = {"sgd": 5, "adam": 7, "adamw": 7}  # reads weights, gradients and state, writes weights and state


class Row(NamedTuple):
    """Measurements of one contender at one size, dtype and optimizer.

    Seconds are those of one optimizer step. ``traffic_share`` is the time to move the necessary bytes at the bandwidth of a
    copy, as a share of the median time. ``peak_mb`` is the peak memory of a step above the memory before it, in 10^6 bytes. If
    ``note`` says why a contender was skipped, ``rounds`` is 0 and all other numbers are NaN.
    """

    size: str
    dtype: str
    optimizer: str
    contender: str
    clipped: str
    median_seconds: float
    p10_seconds: float
    p90_seconds: float
    rounds: int
    ratio_to_floor: float
    ratio_to_norm_fused: float
    ratio_to_norm_default: float
    traffic_share: float
    copy_gb_per_second: float
    gradient_mb: float
    peak_mb: float
    note: str


def traffic(optimizer: str, measures: bool, clipped: bool) -> int:
    """Return the passes of a step over memory of the size of the weights: one more read to measure, one more write to clip."""
    return TRAFFIC[optimizer] + measures + clipped


def make_rows(
    problem: Problem, contenders: Sequence[Contender], timings: Timings, peaks: Sequence[float], skipped: Sequence[Contender]
) -> list[Row]:
    """Return the rows of one size, dtype and optimizer; ``timings`` and ``peaks`` (bytes) are in the order of the contenders."""
    medians = {c.name: float(np.median(steps)) for c, steps in zip(contenders, timings.steps, strict=True) if c.name in TORCH}
    bandwidth = timings.copied_bytes / float(np.median(timings.copies))
    where = (problem.size, problem.dtype, problem.optimizer)
    rows = []
    for contender, steps, peak in zip(contenders, timings.steps, peaks, strict=True):
        p10, median, p90 = (float(np.quantile(steps, q)) for q in (0.1, 0.5, 0.9))
        measures = contender.clipped != "-" and contender.name != "none"
        moved = traffic(problem.optimizer, measures, contender.clipped == "yes") * problem.gradient_bytes
        rows.append(
            Row(
                *where,
                contender.name,
                contender.clipped,
                median,
                p10,
                p90,
                len(steps),
                *(median / medians[name] for name in (FLOOR, NORM_FUSED, NORM_DEFAULT)),
                moved / bandwidth / median,
                bandwidth / 1e9,
                problem.gradient_bytes / 1e6,
                peak / 1e6,
                "",
            )
        )
    nothing = (math.nan,) * 7
    return rows + [Row(*where, c.name, c.clipped, *nothing[:3], 0, *nothing, f"skipped: {c.skipped}") for c in skipped]


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write a csv file with a line for every row."""
    write_csv([row._asdict() for row in rows], path, digits=5)


def read_rows(path: Path) -> list[Row]:
    """Read the rows from a file of :func:`write_rows`."""
    texts = {"size", "dtype", "optimizer", "contender", "clipped", "note"}
    return [
        Row(**{name: x if name in texts else int(x) if name == "rounds" else float(x) for name, x in row.items()})
        for row in read_csv(path)
    ]


def find(rows: Sequence[Row], **wanted: str) -> Row | None:
    """Return the first row with these fields that was not skipped; None if there is none."""
    return next((row for row in rows if not row.note and all(getattr(row, k) == v for k, v in wanted.items())), None)
