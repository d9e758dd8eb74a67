"""What is remembered of the steps: counts and last values, of each clip set and of the whole gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..history import as_tensor, chronological, namespace, push
from .monitor import Watch
from .norms import combine
from .state import Arrays, Group

__all__ = [
    "Record",
    "Totals",
    "grad_norms",
    "median",
    "statistics",
]


NORM, CLIPPED_NORM, THRESHOLD, COEFFICIENT = range(4)  # the places in the values of a step


class Record:
    """Counts (steps, clipped steps, skipped steps) and the values of the last step, as they stand in a parameter group.

    The values are the norm before and after clipping, the threshold and the coefficient.
    """

    def __init__(self, counts: Any, last: Any) -> None:
        self.counts, self.last = counts, last

    @property
    def step(self) -> Any:
        """The number of steps before this one."""
        return self.counts[0] if isinstance(self.counts, Tensor) else int(self.counts[0])

    def count(self, recorded: Any, clipped: Any) -> None:
        """Count one more step if it was ``recorded``, and as clipped if something was ``clipped``."""
        self.counts[0] += recorded
        self.counts[1] += clipped

    def keep(self, last: Sequence[Any], recorded: Any) -> None:
        """Keep these values of the step, if it was recorded."""
        if isinstance(self.last, Tensor):
            for place, value in enumerate(last):
                self.last[place] = torch.where(recorded, value, self.last[place])
        elif recorded:
            self.last[:] = last

    def count_skipped(self, skipped: Any) -> Any:
        """Count one more skipped step if it was; returns how many there are."""
        self.counts[2] += skipped
        return self.counts[2]


class Totals(Record):
    """Counts and norms of the whole gradient, kept in the optimizer's first parameter group.

    ``complete`` says whether the clip sets measure the norm of all there is to optimize, in one norm type.
    """

    def __init__(self, group: Group, arrays: Arrays, complete: bool, watch: Watch) -> None:
        super().__init__(arrays.of(group, "steps"), arrays.of(group, "last"))
        self.group, self.complete, self.watch = group, complete, watch
        self.norms = SimpleNamespace(lengths=arrays.of(group, "norms")[:, 0], count=arrays.of(group, "norms_count")[..., 0])

    def remember(
        self, sets: Sequence[tuple[Sequence[Any], Any]], norm_type: float, recorded: Any, clipped: Any, crush: float
    ) -> None:
        """Count a step; keep the values of the whole gradient from those of its sets and whether each was recorded."""
        if recorded is np.False_:
            return
        self.count(recorded, clipped)
        last = sets[0][0] if len(sets) == 1 else self._combined(sets, norm_type)
        self.keep(last, recorded)
        if isinstance(recorded, np.bool_):  # elsewhere the host would have to wait to look
            self.watch.see(float(last[NORM]), crush)
        if self.complete:
            push(self.norms, last[NORM], namespace(last[NORM]).isfinite(last[NORM]) & recorded)

    def _combined(self, sets: Sequence[tuple[Sequence[Any], Any]], norm_type: float) -> list[Any]:
        xp = namespace(self.last)
        table = xp.stack([xp.stack([*last]) for last, _ in sets])  # (sets, 4)
        recorded = xp.stack([recorded for _, recorded in sets])
        norms = [
            combine(table[:, place], norm_type) if self.complete else table[0, place] * math.nan for place in (NORM, CLIPPED_NORM)
        ]
        medians = [median(table[:, place], recorded) for place in (THRESHOLD, COEFFICIENT)]
        return norms + medians


def median(values: Any, chosen: Any) -> Any:
    """The median of the chosen ones, if there are any."""
    if values.ndim == 0:
        return values
    if len(values) < 2:
        return values.sum() if len(values) else values.sum() * math.nan
    if isinstance(values, Tensor):
        values = torch.where(chosen, values, math.nan)
        middle = [values.nanquantile(0.5, interpolation=side) for side in ("lower", "higher")]  # "linear" makes NaN of two infs
        return (middle[0] + middle[1]) / 2
    return np.median(values[chosen]) if chosen.any() else np.float64(math.nan)


def grad_norms(totals: Totals) -> Tensor:
    """The recorded norms of the whole gradient, oldest first."""
    return as_tensor(chronological(totals.norms)).clone()


def statistics(record: Record) -> dict[str, float]:
    """The statistics of a clip set or of the whole gradient."""
    grad_norm, clipped_norm, threshold, coefficient = record.last.tolist()
    steps, clipped_steps, skipped_steps = (float(count) for count in record.counts.tolist())
    return {
        "grad_norm": grad_norm,
        "clipped_norm": clipped_norm,
        "threshold": threshold,
        "coefficient": coefficient,
        "clip_rate": clipped_steps / steps if steps else math.nan,
        "steps": steps,
        "clipped_steps": clipped_steps,
        "skipped_steps": skipped_steps,
    }
