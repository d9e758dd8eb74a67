"""What an optimizer tells about its clipping: plain numbers, read when asked for."""

from __future__ import annotations

import math

from torch import Tensor

from .history import as_tensor, chronological
from .records import Record, Totals

__all__ = ["grad_norms", "statistics"]


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
