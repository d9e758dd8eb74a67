"""The engine: measure -> threshold -> decide -> scale, for every clip set of an optimizer.

The host never looks at a number that lives on an accelerator: what is a float or a bool on the CPU is a tensor there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..history import as_tensor, every, namespace, on_host, some, where
from .clip_sets import ClipSet
from .norms import stored
from .records import Totals

__all__ = ["Verdict", "clip_"]


class Verdict(NamedTuple):
    """What is left for the optimizer to do."""

    skip: Any  # leave this step out: a bool, or a bool tensor on an accelerator
    norms: Sequence[Any] = ()  # of the clip sets, before clipping
    coefficient: Any = None  # still to be multiplied with all gradients; None if they are scaled already


class Measured(NamedTuple):
    """The gradients of a clip set and the lengths of its blocks (blocks,), without the gradient scaler's factor."""

    grads: Sequence[Tensor | None]
    lengths: Any
    finite: Any  # of each block
    all_finite: Any


@torch.no_grad()
def clip_(sets: Sequence[ClipSet], totals: Totals, grad_scale: Any = 1.0, found_inf: Any = False, fold: bool = False) -> Verdict:
    """Clip the gradients of all clip sets in place and remember what was seen.

    ``grad_scale`` is the factor by which a gradient scaler has multiplied them, ``found_inf`` what it found: true means
    that it leaves this step out by itself. With ``fold`` the coefficient of the only set is returned for the optimizer's
    own kernel to apply, so that no pass over the gradients is spent on it.
    """
    if found_inf is True or any(clip_set.is_dry_run for clip_set in sets):
        return Verdict(found_inf)
    with np.errstate(all="ignore"):
        measured = [_measure(clip_set, grad_scale) for clip_set in sets]
        skip = _obey_nonfinite(sets, measured, totals, grad_scale, found_inf)
        if skip is True:
            return Verdict(skip, [s.norm(m.lengths) for s, m in zip(sets, measured, strict=True)])
        kept = ~skip if isinstance(skip, Tensor) else True
        coefficient: Any = None
        any_recorded: Any = False
        any_clipped: Any = False
        records: list[tuple[list[Any], Any]] = []
        for clip_set, (grads, lengths, finite, all_finite) in zip(sets, measured, strict=True):
            valid = (lengths > 0) & finite & kept
            thresholds, coefficients = clip_set.apply_rule(lengths, valid, totals.step)
            if clip_set.measure.by_entry and all_finite is not np.True_:  # inf is clamped, and what is too long beside NaN
                coefficients = where(finite | skip, coefficients, 0.0)
            if fold and _can_fold(clip_set, grads, coefficients):
                coefficient = coefficients
            else:
                clip_set.shrink_(grads, coefficients, thresholds * grad_scale)
            recorded, clipped = some(lengths != 0) & kept, some(coefficients < 1)
            records.append((clip_set.remember(lengths, valid, thresholds, coefficients, recorded, clipped), recorded))
            any_recorded, any_clipped = any_recorded | recorded, any_clipped | clipped
        totals.remember(records, sets[0].arguments.norm_type, any_recorded, any_clipped, min(s.crush for s in sets))
        return Verdict(skip, [last[0] for last, _ in records], coefficient)


def _can_fold(clip_set: ClipSet, grads: Sequence[Tensor | None], coefficient: Any) -> bool:
    """Whether the factor of torch's kernels, the inverse of the coefficient in float32, is exact enough."""
    if on_host(clip_set.device) and (coefficient == 1 or coefficient < 1e-30):
        return bool(coefficient == 1)
    return all(grad is None or grad.dtype is not torch.float64 for grad in grads)


def _measure(clip_set: ClipSet, grad_scale: Any) -> Measured:
    grads = clip_set.gradients()
    if clip_set.arguments.nonfinite == "zero" and not on_host(clip_set.device):
        _zero_nonfinite_(grads)  # the host cannot look whether it is needed
    lengths = clip_set.lengths(grads) / grad_scale
    finite = namespace(lengths).isfinite(lengths)
    return Measured(grads, lengths, finite, every(finite))


def _obey_nonfinite(sets: Sequence[ClipSet], measured: list[Measured], totals: Totals, grad_scale: Any, found_inf: Any) -> Any:
    """Do what the sets' policies say about gradients that are not finite; returns whether to skip the step."""
    if all(m.all_finite is np.True_ for m in measured):
        totals.watch.see_skipped(False)
        return False
    for clip_set, m in zip(sets, measured, strict=True):
        if clip_set.arguments.nonfinite == "error" and not m.all_finite:  # has to look, also on an accelerator
            raise RuntimeError(
                f"the gradient of parameter group {_first_nonfinite(clip_set, m.grads)} is not finite; nothing was changed. "
                "nonfinite='skip' leaves such a step out, nonfinite='zero' replaces its entries that are not finite by 0"
            )
    skip: Any = False
    for clip_set, m in zip(sets, measured, strict=True):
        if clip_set.arguments.nonfinite == "skip":
            bad = ~(m.all_finite | found_inf)
            clip_set.count_skipped(bad)
            skip = skip | bad
    if not on_host(sets[0].device):
        totals.count_skipped(skip)
        return skip | found_inf
    totals.watch.see_skipped(bool(skip))
    if skip:
        totals.count_skipped(skip)
        return True
    for i, (clip_set, m) in enumerate(zip(sets, measured, strict=True)):
        if clip_set.arguments.nonfinite == "zero" and not m.all_finite:
            _zero_nonfinite_(m.grads)
            measured[i] = _measure(clip_set, grad_scale)
    return False


def _zero_nonfinite_(grads: Sequence[Tensor | None]) -> None:
    for grad in grads:
        if grad is not None:
            stored(grad).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def _first_nonfinite(clip_set: ClipSet, grads: Sequence[Tensor | None]) -> int:
    norms = as_tensor(clip_set.norms(grads)).tolist()
    groups = [index for index, group in zip(clip_set.indices, clip_set.groups, strict=True) for _ in group["params"]]
    owners = [index for index, count in zip(groups, clip_set.norm_counts, strict=True) for _ in range(count)]
    return next((index for index, norm in zip(owners, norms, strict=True) if not math.isfinite(norm)), clip_set.indices[0])
