"""What an optimizer tells about its clipping: plain numbers, read when asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .clip_sets import ClipSet, Counts, Totals
from .history import chronological
from .measures import combine

__all__ = ["grad_norms", "statistics", "whole_statistics"]


def grad_norms(totals: Totals) -> Tensor:
    """The recorded norms of the whole gradient, oldest first."""
    return torch.as_tensor(chronological(totals.norms)).clone()


def statistics(clip_set: ClipSet) -> dict[str, float]:
    """The statistics of one clip set."""
    grad_norm, clipped_norm, threshold, coefficient = clip_set.last.tolist()
    return _report(clip_set, grad_norm, clipped_norm, threshold, coefficient)


def whole_statistics(sets: Sequence[ClipSet], totals: Totals) -> dict[str, float]:
    """The statistics of the whole gradient: norms combined over the clip sets, medians of the rest."""
    if len(sets) == 1 and totals.complete:
        return statistics(sets[0])
    last = torch.tensor([clip_set.last.tolist() for clip_set in sets], dtype=torch.float64)
    norms = [math.nan, math.nan]
    if totals.complete:
        norms = [float(combine(last[:, place], sets[0].arguments.norm_type)) for place in (0, 1)]
    medians = last[:, 2:].nanquantile(0.5, dim=0).tolist() if sets else [math.nan, math.nan]
    return _report(totals, *norms, *medians)


def _report(counts: Counts, grad_norm: float, clipped_norm: float, threshold: float, coefficient: float) -> dict[str, float]:
    steps, clipped_steps, skipped_steps = (float(count) for count in counts.counts.tolist())
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
