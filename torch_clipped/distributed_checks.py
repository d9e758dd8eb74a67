"""Refusals where torch hands this process pieces of the gradient, whose lengths each rank would take for those of the whole."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from torch.optim import Optimizer

__all__ = ["refuse_overlap", "refuse_pieces"]

_ZERO = "torch.distributed.optim.zero_redundancy_optimizer"  # is imported by those who use it, not by us: it takes a second


def refuse_pieces(groups: Sequence[dict[str, Any]]) -> None:
    """Refuse parameter groups that are clipped, if their parameters are but this rank's share of what is trained.

    Raises:
        ValueError: the optimizer is made by a ZeroRedundancyOptimizer, or there are parameters of the older
            FullyShardedDataParallel.
    """
    clipped = [group for group in groups if group["clipping_type"] != "none"]
    if clipped and _within_zero():
        name = clipped[0]["clipping_type"]
        raise ValueError(
            f"clipping_type must be 'none' inside a ZeroRedundancyOptimizer, got {name!r}: each rank would measure its own share "
            "of the parameters only. Clip around it: "
            f"clip_optimizer(ZeroRedundancyOptimizer(params, torch.optim.SGD, lr=...), {name!r})"
        )
    if any(getattr(p, "_fsdp_flattened", False) for group in clipped for p in group["params"]):
        raise ValueError(
            "parameters must be whole tensors or DTensors, got pieces that FullyShardedDataParallel has flattened: each rank "
            "would measure its own. Shard the model by torch.distributed.fsdp.fully_shard instead"
        )


def refuse_overlap(optimizer: Optimizer) -> None:
    """Refuse a ZeroRedundancyOptimizer that updates parameters during backward.

    Raises:
        ValueError: it was made with ``overlap_with_ddp=True``.
    """
    if getattr(optimizer, "_overlap_with_ddp", False):
        raise ValueError(
            "overlap_with_ddp must be False for a ZeroRedundancyOptimizer that clips, got True: it updates parameters during "
            "backward, before the gradient is complete"
        )


def _within_zero() -> bool:
    """Whether a ZeroRedundancyOptimizer is making the optimizer of its own share."""
    if _ZERO not in sys.modules:
        return False
    makes_its_share = sys.modules[_ZERO].ZeroRedundancyOptimizer._init_local_optimizer.__code__
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not makes_its_share:
        frame = frame.f_back
    return frame is not None
