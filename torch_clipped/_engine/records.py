"""What is recorded of the steps: counts and last values, of each clip set and of the whole gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .arrays import Arrays, Numbers, as_tensor, chronological
from .monitor import StepMonitor
from .state import Group, StateArrays

__all__ = ["Record", "StepValues", "Totals"]


class StepValues(NamedTuple):
    """What a step has made of a clip set: the norm before and after clipping, and of each block threshold and coefficient."""

    norm: Numbers
    clipped_norm: Numbers
    thresholds: Numbers
    coefficients: Numbers  # NaN if the measure has none to report
    valid: Numbers  # which blocks have a positive, finite length
    recorded: Numbers  # whether the gradient is not zero

    def summary(self, arrays: Arrays) -> list[Numbers]:
        """Return the four values of ``clipping_stats``; medians where there are many blocks."""
        return [
            self.norm,
            self.clipped_norm,
            arrays.median(self.thresholds, self.valid),
            arrays.median(self.coefficients, self.valid),
        ]


class Record:
    """Counts (steps, clipped steps, skipped steps) and the values of the last step, as they stand in a parameter group."""

    def __init__(self, group: Group, state: StateArrays, prefix: str, arrays: Arrays) -> None:
        self.counts, self.last = state.of(group, f"{prefix}steps"), state.of(group, f"{prefix}last")
        self.arrays = arrays
        self._pending: Sequence[StepValues] = ()  # on the host: the last step's, which are summed up when somebody reads them

    @property
    def step(self) -> Any:
        """The number of steps before this one."""
        return int(self.counts[0]) if self.arrays.is_host else self.counts[0]

    def count(self, recorded: Numbers, clipped: Numbers) -> None:
        """Count one more step if it was ``recorded``, and as clipped if something was ``clipped``."""
        self.counts[0] += recorded
        self.counts[1] += clipped

    def count_skipped(self, skipped: Numbers) -> None:
        """Count one more skipped step if it was."""
        self.counts[2] += skipped

    def remember(self, values: StepValues, clipped: Numbers) -> None:
        """Count a step and keep its values, if it is recorded."""
        self.count(values.recorded, clipped)
        self.keep((values,), values.recorded)

    def keep(self, values: Sequence[StepValues], recorded: Numbers) -> None:
        """Keep these values of the step, if it is recorded."""
        if not self.arrays.is_host:
            last = torch.stack(cast(list[Tensor], self._summary(values)))
            self.last.copy_(torch.where(cast(Tensor, recorded), last, self.last))
        elif recorded:
            self._pending = values

    def write_down(self) -> None:
        """Write the values of the last step to where they stand."""
        if self._pending:
            self.last[:] = self._summary(self._pending)
            self._pending = ()

    def _summary(self, values: Sequence[StepValues]) -> list[Numbers]:
        return values[0].summary(self.arrays)

    def statistics(self) -> dict[str, float]:
        """Return the statistics as plain numbers."""
        self.write_down()
        grad_norm, clipped_norm, threshold, coefficient = self.last.tolist()
        steps, clipped_steps, skipped_steps = (float(count) for count in self.counts.tolist())
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


class Totals(Record):
    """Counts and norms of the whole gradient, kept in the optimizer's first parameter group.

    ``norm_type`` is that of the norm of all there is to optimize; None if the clip sets do not measure it, in one norm type.
    """

    def __init__(self, group: Group, state: StateArrays, arrays: Arrays, norm_type: float | None, monitor: StepMonitor) -> None:
        super().__init__(group, state, "", arrays)
        self.group, self.norm_type, self.monitor = group, norm_type, monitor
        self.norms = SimpleNamespace(lengths=state.of(group, "norms")[:, 0], count=state.of(group, "norms_count")[..., 0])

    def remember_all(self, values: Sequence[StepValues], clipped: Sequence[Numbers], shrinkage: float) -> None:
        """Count a step, and keep the values of the whole gradient from those of its clip sets.

        ``shrinkage``: by how much the gradient was multiplied, for the monitor on the host.
        """
        arrays, recorded, any_clipped = self.arrays, values[0].recorded, clipped[0]
        for one, other in zip(values[1:], clipped[1:], strict=True):
            recorded, any_clipped = recorded | one.recorded, any_clipped | other
        if arrays.is_host and not recorded:
            return
        self.count(recorded, any_clipped)
        self.keep(values, recorded)
        norm = values[0].norm if len(values) == 1 else self._norm([v.norm for v in values])
        if arrays.is_host:  # elsewhere the host would have to wait to look
            self.monitor.observe(float(norm), shrinkage)
        if self.norm_type is not None:
            arrays.push(self.norms, norm, arrays.isfinite(norm) & recorded)

    def _norm(self, norms: Sequence[Numbers]) -> Numbers:
        return norms[0] * math.nan if self.norm_type is None else self.arrays.norm(self.arrays.stack(norms), self.norm_type)

    def _summary(self, values: Sequence[StepValues]) -> list[Numbers]:
        if len(values) == 1:
            return values[0].summary(self.arrays)
        norms, clipped_norms, *others = zip(*[v.summary(self.arrays) for v in values], strict=True)
        recorded = self.arrays.stack([v.recorded for v in values])
        medians = [self.arrays.median(self.arrays.stack(each), recorded) for each in others]
        return [self._norm(norms), self._norm(clipped_norms), *medians]

    def grad_norms(self) -> Tensor:
        """Return the recorded norms of the whole gradient, oldest first."""
        return as_tensor(chronological(self.norms)).clone()
