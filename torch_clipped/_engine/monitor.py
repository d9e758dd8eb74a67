"""Warnings about clipping that is almost certainly unintended."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..clipping import CLIPPING_TYPES
from .arguments import Arguments
from .draws import is_capturing
from .state import is_real
from .types import Entries

__all__ = ["EITHER", "NOT_FINITE", "SPIKE", "ClippingWarning", "SkipReason", "StepMonitor", "warn", "warn_of_kept_level"]


class ClippingWarning(RuntimeWarning):
    """Warning category of this library; filter it like any other."""


def warn(message: str) -> None:
    """Warn at the user's line of code: the last one outside of this library and torch."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("torch", "torch_clipped"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, ClippingWarning, stacklevel=level)


def warn_of_kept_level(index: int, former: Arguments, now: Arguments) -> None:
    """Warn if a parameter group got another clipping type, but kept a level that has another meaning there."""
    one, other = CLIPPING_TYPES[former.clipping_type], CLIPPING_TYPES[now.clipping_type]
    if one is None or other is None or former.clipping_level != now.clipping_level:
        return
    if type(one.threshold) is not type(other.threshold):
        warn(
            f"clipping_type of parameter group {index} was changed from {former.clipping_type!r} to {now.clipping_type!r}, and "
            f"its clipping_level {now.clipping_level} was kept: write both (the default level of {now.clipping_type!r} is "
            f"{other.threshold.default_level})"
        )


def warn_of_loaded_arguments(former: Sequence[Entries], loaded: Sequence[Entries], levels: bool) -> None:
    """Warn if the clipping type or, with ``levels``, the level of a checkpoint differs from the optimizer's."""
    names = ("clipping_type", "clipping_level") if levels else ("clipping_type",)
    changes = [
        f"{name} of parameter group {i} was {one[name]!r} and is {other[name]!r}"
        for i, (one, other) in enumerate(zip(former, loaded, strict=True))
        for name in names
        if one[name] != other[name]
    ]
    if changes:
        warn(
            f"the checkpoint has brought its own clipping arguments, as it brings its learning rate: {'; '.join(changes)}. Write "
            "to param_groups after loading to change them"
        )


class SkipReason(NamedTuple):
    """Reason for which a step is skipped, in the words of a warning."""

    gradient: str
    gradients: str
    arguments: str


NOT_FINITE = SkipReason("not finite", "not finite", "nonfinite='skip'")
SPIKE = SkipReason("above its threshold", "above their thresholds", "clipping_action='skip'")
EITHER = SkipReason(  # reasons that an accelerator does not tell apart
    "not finite or above its threshold",
    "not finite or above their thresholds",
    "nonfinite='skip', clipping_action='skip'",
)


def _is_power_of_ten(count: int) -> bool:
    return str(count).strip("0") == "1"


class DelayedCounts:
    """Counts of steps on an accelerator, copied every 50 steps and read once the copy has arrived, without waiting."""

    STEPS = 50

    def __init__(self) -> None:
        self._steps = self._asked = self._read = 0  # steps of this object: so far, at the last copy, at the last reading
        self._skipped: int | None = None
        self._first: Tensor | None = None  # after the first step
        self._copy: Tensor | None = None
        self._arrival: torch.cuda.Event | None = None

    def skipped(self, counts: Tensor) -> tuple[int, int]:
        """Return the number of skipped steps and of all steps; (0, 0) if no new counts have arrived."""
        self._steps += 1
        if self._asked > self._read and (self._arrival is None or self._arrival.query()):  # type: ignore[no-untyped-call]
            return self._read_copy()
        is_due = self._asked == self._read and self._steps % self.STEPS == 0
        if (is_due or self._first is None) and is_real(counts) and not is_capturing():
            copy = torch.empty(counts.shape, dtype=counts.dtype, device="cpu", pin_memory=counts.is_cuda)
            copy.copy_(counts, non_blocking=True)
            if self._first is None:
                self._first = copy
            else:
                self._ask(copy, counts)
        return 0, 0

    def _ask(self, copy: Tensor, counts: Tensor) -> None:
        self._copy, self._asked = copy, self._steps
        if counts.is_cuda:
            self._arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrival.record(torch.cuda.current_stream(counts.device))

    def _read_copy(self) -> tuple[int, int]:
        assert self._first is not None
        assert self._copy is not None
        if self._skipped is None:  # more than one step after the first: the others are a checkpoint's
            first = self._first.tolist()
            self._skipped = first[2] if max(first) > 1 else 0
        skipped = self._copy.tolist()[2]
        found = skipped - self._skipped, self._asked - self._read
        self._skipped, self._read = skipped, self._asked
        return found


class StepMonitor:
    """Observe the steps of one optimizer, 200 at a time, and warn once of each kind of problem."""

    STEPS = 200
    TINY = 1e-3  # a smaller coefficient means a level in the wrong unit
    SAME = 2e-6  # clipped norms differ by less, relative or absolute (clip_grad_norm_ adds 1e-6)

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self.skipped_in_a_row = 0  # steps; on an accelerator readings with skipped steps
        self._counts = DelayedCounts()
        self._start()

    def observe_skip(self, reason: SkipReason) -> None:
        """Count a step that was skipped; warn of the 1st, 10th, 100th, ... in a row."""
        self.skipped_in_a_row += 1
        count = self.skipped_in_a_row
        if _is_power_of_ten(count):
            warn(
                f"{count} steps in a row were skipped, because their gradients were {reason.gradients} ({reason.arguments})"
                if count > 1
                else f"a gradient was {reason.gradient}, so this step was skipped ({reason.arguments}); such steps are counted "
                "in clipping_stats()['skipped_steps'], and the 10th, 100th, ... in a row warns again"
            )

    def observe_counts(self, counts: Tensor, reason: SkipReason) -> None:
        """Warn of skipped steps on an accelerator, some steps late, because the host does not wait."""
        skipped, steps = self._counts.skipped(counts)
        if steps:
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if skipped and _is_power_of_ten(self.skipped_in_a_row):
            warn(
                f"{skipped} of {steps} steps were skipped, because their gradients were {reason.gradients} ({reason.arguments}); "
                "clipping_stats()['skipped_steps'] counts them"
            )

    def _start(self) -> None:
        self._steps = self._tiny = self._turns = 0
        self._shortest, self._longest, self._last, self._change = math.inf, 0.0, math.nan, math.nan

    def observe(self, norm: float, coefficient: float) -> None:
        """Observe a step: the norm of the gradient, and the factor by which it was clipped (NaN if the level is not a norm)."""
        self._steps += 1
        self._tiny += coefficient < self.TINY
        change = norm - self._last
        self._turns += change * self._change < 0
        self._last, self._change = norm, change
        self._shortest, self._longest = min(self._shortest, norm), max(self._longest, norm)
        if self._steps == self.STEPS:
            self._check()
            self._start()

    def _check(self) -> None:
        if self._tiny > 0.99 * self.STEPS:
            self._warn(
                "level",
                f"{self._tiny} of the last {self.STEPS} steps were clipped to less than a thousandth of their norm: is "
                "clipping_level in the unit of the gradient? clipping_stats() shows both",
            )
        # If the norms agree up to rounding and have two significant digits, the loop has clipped them already. Without rounding,
        # or with other digits, one gradient came again and again; if they drift, training is slow.
        tolerance = self.SAME * max(self._longest, min(1.0, 100 * self._longest))
        close = 0 < self._longest - self._shortest < tolerance
        written = abs(self._longest - float(f"{self._longest:.2g}")) < tolerance
        if close and written and self._turns > 0.25 * self.STEPS:
            self._warn(
                "twice",
                f"the last {self.STEPS} gradients all arrived with norm {self._longest:.4g}: does the training loop clip them "
                "already (clip_grad_norm_, max_grad_norm, gradient_clip_val)? Clipping twice hides the true norms; gradients "
                "whose length is constant by construction are no fault",
            )

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warn(message)
