"""Clipping in one step: measure, threshold, decide, scale and record, for every clip set of an optimizer.

The host reads no number on an accelerator, except with ``nonfinite="error"``: floats and bools are tensors there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from .arrays import Factor, Numbers, Truth, as_tensor, either
from .clip_sets import ClipSet, Decided, Gradients
from .monitor import NOT_FINITE, SPIKE
from .norms import stored
from .statistics import TotalStatistics

__all__ = ["ClipResult", "clip_"]


class ClipResult(NamedTuple):
    """Result of clipping: whether to skip the step, the norms, and the coefficient that is still to be applied."""

    skip: Truth  # skip this step
    norms: Sequence[Numbers] = ()  # of the clip sets, before clipping
    coefficient: Numbers | None = None  # still to be applied to all gradients; None if they are scaled already


class Measured(NamedTuple):
    """Gradients of a clip set as they are, and the lengths of its blocks (blocks,) without the gradient scaler's factor."""

    grads: Gradients
    lengths: Numbers
    is_finite: Numbers  # of each block
    all_finite: Numbers


@torch.no_grad()
def clip_(
    sets: Sequence[ClipSet],
    totals: TotalStatistics,
    gradients: Sequence[Gradients],
    grad_scale: Factor = 1.0,
    found_inf: Truth = False,
    in_kernel: bool = False,
) -> ClipResult:
    """Clip the gradients of all clip sets in place and record the step.

    ``grad_scale`` is the factor by which a gradient scaler has multiplied them. ``found_inf`` is true if the scaler skips this
    step itself. With ``in_kernel`` the coefficient of the only set is returned for the optimizer's own kernel to apply, which
    saves a pass over the gradients.
    """
    if found_inf is True:
        return ClipResult(found_inf)
    with np.errstate(all="ignore"):
        measured = [_measure(clip_set, grads, grad_scale) for clip_set, grads in zip(sets, gradients, strict=True)]
        skip: Truth = False  # because of a gradient that is not finite
        kept: Truth = True
        if not totals.arrays.is_host or False in [bool(m.all_finite) for m in measured]:
            skip, kept = _obey_nonfinite(sets, measured, totals, grad_scale, found_inf)
        if skip is True:
            return ClipResult(skip, [s.norm(m.lengths) for s, m in zip(sets, measured, strict=True)])
        decisions = []
        for clip_set, (_, lengths, is_finite, _) in zip(sets, measured, strict=True):
            blocks = clip_set.blocks(lengths, is_finite, totals.counts[0], kept)
            thresholds = clip_set.thresholds(blocks)  # how long is too long
            alpha = thresholds / lengths
            coefficients = clip_set.arrays.coefficients(alpha, clip_set.decide(alpha, blocks))  # min(1, alpha) or 1
            if clip_set.remembers:
                clip_set.remember(blocks, coefficients)
            decided = Decided(blocks, thresholds, coefficients, thresholds)
            decisions.append(clip_set.limited(decided) if clip_set.has_limits else decided)
        has_limits = True in [s.has_limits for s in sets]
        is_skipped = _skip_spikes(decisions, totals, skip) if has_limits else skip
        if is_skipped is False:
            totals.monitor.skipped_in_a_row = 0
        values, coefficient = [], None
        for clip_set, m, decided in zip(sets, measured, decisions, strict=True):
            if clip_set.measure.clamps_entries and not (clip_set.arrays.is_host and m.all_finite):
                # inf is clamped, and the entries beside NaN
                is_left = m.is_finite if skip is False else m.is_finite | skip
                decided = decided._replace(coefficients=clip_set.arrays.where(is_left, decided.coefficients, 0.0))
            if has_limits and is_skipped is not False:  # gradients of a skipped step are not changed
                kept_whole = clip_set.arrays.where(cast(Numbers, is_skipped), 1.0, decided.coefficients)
                decided = decided._replace(coefficients=kept_whole)
            if in_kernel and _is_for_kernel(clip_set, m.grads, decided.coefficients):
                coefficient = decided.coefficients
            elif is_skipped is not True:
                clip_set.scale_(m.grads, decided.coefficients, decided.limits, grad_scale)
            skipped: Truth = decided.is_spike  # because of this set
            if kept is not True and clip_set.arguments.nonfinite == "skip":
                is_alone = len(sets) == 1 and found_inf is False  # steps that the scaler skips are not counted
                skipped = is_skipped if is_alone else either(skipped, ~(m.all_finite | found_inf))
            values.append(clip_set.values(decided, kept, skipped))
        totals.remember_all([s.record for s in sets], values)
        return ClipResult(is_skipped, [v.norm for v in values], coefficient)


def _skip_spikes(decisions: Sequence[Decided], totals: TotalStatistics, skip: Truth) -> Truth:
    """Return whether to skip the step, because of ``skip`` or because of a block that exceeded its threshold."""
    for decided in decisions:
        skip = either(decided.is_spike, skip)
    if skip is True:
        totals.monitor.observe_skip(SPIKE)
    return skip


def _is_for_kernel(clip_set: ClipSet, grads: Gradients, coefficient: Numbers) -> bool:
    """Return whether the factor of torch's kernels, the inverse of the coefficient in float32, is exact enough."""
    if clip_set.arrays.is_host and not 1e-30 <= float(coefficient) < 1:
        return float(coefficient) == 1
    return torch.float64 not in [grad.dtype for grad in grads.tensors if grad is not None]


def _measure(clip_set: ClipSet, grads: Gradients, grad_scale: Factor) -> Measured:
    arrays = clip_set.arrays
    if clip_set.arguments.nonfinite == "zero" and not arrays.is_host:
        _zero_nonfinite_(grads)  # the host cannot check whether this is needed
    lengths = clip_set.lengths(grads)
    if isinstance(grad_scale, Tensor) or grad_scale != 1:
        lengths = lengths / grad_scale
    return Measured(grads, lengths, *arrays.are_finite(lengths))


def _obey_nonfinite(
    sets: Sequence[ClipSet], measured: list[Measured], totals: TotalStatistics, grad_scale: Factor, found_inf: Truth
) -> tuple[Truth, Truth]:
    """Do as the sets' ``nonfinite`` requires; return whether to skip the step, and whether to take it."""
    for clip_set, m in zip(sets, measured, strict=True):
        if clip_set.arguments.nonfinite == "error" and not m.all_finite:  # waits for an accelerator, too
            raise RuntimeError(
                f"the gradient of parameter group {_first_nonfinite(clip_set, m.grads)} is not finite; nothing was changed. "
                "nonfinite='skip' leaves such a step out, nonfinite='zero' replaces its entries that are not finite by 0"
            )
    careful = [m.all_finite for s, m in zip(sets, measured, strict=True) if s.arguments.nonfinite == "skip"]
    kept: Truth = careful[0] if careful else True
    for all_finite in careful[1:]:
        kept = all_finite & kept
    if not totals.arrays.is_host:
        if isinstance(found_inf, bool):  # there is no gradient scaler
            return (False if isinstance(kept, bool) else ~kept), kept
        skip = found_inf if isinstance(kept, bool) else found_inf | ~kept
        return skip, ~skip
    if not kept:
        totals.monitor.observe_skip(NOT_FINITE)
        for clip_set, m in zip(sets, measured, strict=True):
            clip_set.record.count(False, False, clip_set.arguments.nonfinite == "skip" and not m.all_finite)
        totals.count(False, False, True)
        return True, False
    for i, (clip_set, m) in enumerate(zip(sets, measured, strict=True)):
        if clip_set.arguments.nonfinite == "zero" and not m.all_finite:
            _zero_nonfinite_(m.grads)
            measured[i] = _measure(clip_set, m.grads, grad_scale)
    return False, True


def _zero_nonfinite_(grads: Gradients) -> None:
    for grad in grads.tensors:
        if grad is not None:
            stored(grad).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def _first_nonfinite(clip_set: ClipSet, grads: Gradients) -> int:
    """Return the index of the first parameter group with a gradient that is not finite."""
    norms = as_tensor(clip_set.norms(grads)).tolist()
    groups = [index for index, group in zip(clip_set.indices, clip_set.groups, strict=True) for _ in group["params"]]
    owners = [index for index, count in zip(groups, clip_set.counts, strict=True) for _ in range(count)]
    return next((index for index, norm in zip(owners, norms, strict=True) if not math.isfinite(norm)), clip_set.indices[0])
