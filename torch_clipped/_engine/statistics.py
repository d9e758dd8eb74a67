"""Statistics of the steps: counts and last values, of each clip set and of the whole gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ..measures import Measure
from .arrays import Arrays, Numbers, Truth, as_tensor, chronological, either
from .monitor import StepMonitor
from .state import StateArrays
from .types import Group

__all__ = ["SetStatistics", "StepValues", "TotalStatistics"]


class StepValues(NamedTuple):
    """Results of a step for one clip set."""

    norm: Numbers  # before clipping
    lengths: Numbers  # of the blocks
    thresholds: Numbers
    coefficients: Numbers
    is_finite: bool  # whether only finite gradients are recorded
    recorded: Numbers  # whether the gradient is not zero
    clipped: Numbers  # whether a block was shortened
    skipped: Truth  # whether the step is skipped
    shrinkage: float  # factor by which the gradient was multiplied, on the host; NaN if the level is not in its unit

    def summary(self, measure: Measure, arrays: Arrays, norm_type: float) -> list[Numbers]:
        """Return the four values of ``clipping_stats``: norm before and after clipping, and medians over the blocks."""
        lengths = self.lengths
        valid = lengths if lengths.ndim == 0 else (lengths > 0) & arrays.isfinite(lengths)
        clipped_norm = lengths * self.coefficients if measure.gives_norm else self.norm
        if clipped_norm.ndim:
            clipped_norm = arrays.norm(clipped_norm, norm_type)
        coefficient = arrays.median(self.coefficients, valid) if measure.reports_coefficient else self.norm
        return [self.norm, clipped_norm, arrays.median(self.thresholds, valid), coefficient]


class SetStatistics:
    """Counts (steps, clipped steps, skipped steps) and the values of the last step, as they are kept in a parameter group.

    The last values of many blocks are kept block by block, and summarized when they are read.
    """

    def __init__(
        self, group: Group, state: StateArrays, prefix: str, arrays: Arrays, measure: Measure | None, norm_type: float
    ) -> None:
        self.counts, self.last = state.of(group, f"{prefix}steps"), state.of(group, f"{prefix}last")
        self.arrays, self.measure, self.norm_type = arrays, measure, norm_type
        self._unread: StepValues | None = None  # the last step's, on the host
        self._table: Tensor | None = None  # lengths, thresholds and coefficients of the last step's blocks, on an accelerator

    def count(self, recorded: Truth, clipped: Truth, skipped: Truth) -> None:
        """Count one more step if ``recorded``, one more clipped step if ``clipped``, one more skipped step if ``skipped``."""
        if not self.arrays.is_host:
            self.counts.add_(self._truths(cast(Numbers, recorded), cast(Numbers, clipped), skipped))
            return
        for i, truth in enumerate((recorded, clipped, skipped)):
            if truth:
                self.counts[i] += 1

    def _truths(self, recorded: Numbers, clipped: Numbers, skipped: Truth) -> Numbers:
        return self.arrays.stack([recorded, clipped, self.arrays.false(recorded) if isinstance(skipped, bool) else skipped])

    def remember(self, values: StepValues) -> None:
        """Count a step and keep its values, if it is recorded."""
        self.count(values.recorded, values.clipped, values.skipped)
        if self.arrays.is_host:
            self._unread = values if values.recorded else self._unread
        elif values.lengths.ndim == 0:
            self.last.copy_(self.arrays.where(values.recorded, self.arrays.stack(self._summary(values)), self.last))
        else:
            self._keep_blocks(values)

    def _keep_blocks(self, values: StepValues) -> None:
        table = cast(Tensor, self.arrays.stack([values.lengths, values.thresholds, values.coefficients]))
        if self._table is None:
            self._table = torch.zeros_like(table)
        self._table.copy_(torch.where(cast(Tensor, values.recorded), table, self._table))

    def write_down(self) -> None:
        """Write the values of the last step into the parameter group."""
        if self._unread is not None:
            self.last[:] = self._summary(self._unread)
            self._unread = None
        if self._table is not None:
            lengths, thresholds, coefficients = (cast(Numbers, row) for row in self._table)
            assert self.measure is not None
            norm = self.arrays.norm(lengths, self.norm_type) if self.measure.gives_norm else lengths.sum() * math.nan
            some = cast(Numbers, self._table[0].any())
            values = StepValues(norm, lengths, thresholds, coefficients, True, some, some, some, math.nan)
            self.last.copy_(self.arrays.where(some, self.arrays.stack(self._summary(values)), self.last))

    def _summary(self, values: StepValues) -> list[Numbers]:
        assert self.measure is not None
        return values.summary(self.measure, self.arrays, self.norm_type)

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


class TotalStatistics(SetStatistics):
    """Counts and norms of the whole gradient, kept in the optimizer's first parameter group.

    ``is_complete`` is true if the clip sets measure the norm of all parameter groups, in one norm type.
    """

    def __init__(
        self, group: Group, state: StateArrays, arrays: Arrays, is_complete: bool, norm_type: float, monitor: StepMonitor
    ) -> None:
        super().__init__(group, state, "", arrays, None, norm_type)
        self.group, self.is_complete, self.monitor = group, is_complete, monitor
        self.norms = SimpleNamespace(lengths=state.of(group, "norms")[:, 0], count=state.of(group, "norms_count")[..., 0])
        self._all: list[tuple[SetStatistics, StepValues]] = []  # of the last step

    def remember_all(self, records: Sequence[SetStatistics], values: Sequence[StepValues]) -> None:
        """Count a step, of each clip set and altogether, and keep its values."""
        if not self.arrays.is_host and len(values) == 1:
            self._remember_only(records[0], values[0])
            return
        for record, v in zip(records, values, strict=True):
            record.remember(v)
        arrays, (recorded, clipped, skipped, shrinkage) = self.arrays, values[0][-4:]
        for v in values[1:]:
            recorded, clipped = recorded | v.recorded, clipped | v.clipped
            skipped = either(skipped, v.skipped)
            shrinkage = float(np.fmin(shrinkage, v.shrinkage))
        if arrays.is_host and not recorded:
            return
        self.count(recorded, clipped, skipped)
        self._all = [*zip(records, values, strict=True)]
        norm = values[0].norm if len(values) == 1 else self._norm([v.norm for v in values])
        if arrays.is_host:
            self.monitor.observe(float(norm), shrinkage)
        else:  # the host would have to wait to read it
            self.last.copy_(arrays.where(recorded, arrays.stack(self._combined()), self.last))
            self._all = []
        if self.is_complete:
            is_finite = len(values) == 1 and values[0].is_finite and values[0].lengths.ndim == 0
            arrays.push(self.norms, norm, recorded if is_finite else arrays.isfinite(norm) & recorded)

    def _remember_only(self, record: SetStatistics, values: StepValues) -> None:
        """Count a step of the only clip set on an accelerator and keep its values, with as few operations as possible."""
        arrays, both = self.arrays, (record, self)
        counts = cast(Tensor, self._truths(values.recorded, values.clipped, values.skipped))
        torch._foreach_add_([r.counts for r in both], [counts.to(record.counts.dtype)] * 2)  # of one dtype: one kernel
        if values.lengths.ndim == 0:
            last = arrays.where(values.recorded, arrays.stack(record._summary(values)), record.last)
            torch._foreach_copy_([r.last for r in both], [cast(Tensor, last)] * 2)
        else:
            record._keep_blocks(values)
            self._all = [(record, values)]
        if self.is_complete:
            is_new = values.recorded if values.is_finite else arrays.isfinite(values.norm) & values.recorded
            arrays.push(self.norms, values.norm, is_new)

    def write_down(self) -> None:
        """Write the values of the last step into the parameter group."""
        if self._all and self.arrays.is_host:
            self.last[:] = self._combined()
            self._all = []
        elif self._all:  # one set of many blocks: its record has the values
            ((record, _),) = self._all
            record.write_down()
            self.last.copy_(record.last)

    def _norm(self, norms: Sequence[Numbers]) -> Numbers:
        return self.arrays.norm(self.arrays.stack(norms), self.norm_type) if self.is_complete else norms[0] * math.nan

    def _combined(self) -> list[Numbers]:
        summaries = [record._summary(values) for record, values in self._all]
        if len(summaries) == 1:
            return summaries[0]
        norms, clipped_norms, *others = zip(*summaries, strict=True)
        recorded = self.arrays.stack([values.recorded for _, values in self._all])
        medians = [self.arrays.median(self.arrays.stack(each), recorded) for each in others]
        return [self._norm(norms), self._norm(clipped_norms), *medians]

    def grad_norms(self) -> Tensor:
        """Return the recorded norms of the whole gradient, oldest first."""
        return as_tensor(chronological(self.norms)).clone()
