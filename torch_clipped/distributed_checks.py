"""Refuse to clip where this process is given pieces of the gradient, whose norms each rank would take for those of the whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from torch.optim import Optimizer

__all__ = ["refuse_overlap", "refuse_pieces"]

_ZERO = "torch.distributed.optim.zero_redundancy_optimizer"  # is imported by those who use it, not by us: it takes a second
_DEEPSPEED = tuple(f"deepspeed.runtime.{name}" for name in ("zero.stage", "bf16_optimizer", "superoffload", "zenflow"))
_OTHER_WAY = 'Set "gradient_clipping" in the DeepSpeed config instead, which clips by the norm of the whole gradient'


def refuse_pieces(groups: Sequence[dict[str, Any]]) -> None:
    """Refuse parameter groups that are clipped, if their parameters are but this rank's share of what is trained.

    Raises:
        ValueError: the optimizer is made by a ZeroRedundancyOptimizer or driven by DeepSpeed's ZeRO, or there are parameters of
            the older FullyShardedDataParallel or of ZeRO's stage 3.
    """
    clipped = [group for group in groups if group["clipping_type"] != "none"]
    if clipped and _within_zero():
        name = clipped[0]["clipping_type"]
        raise ValueError(
            f"clipping_type must be 'none' inside a ZeroRedundancyOptimizer, got {name!r}: each rank would measure its own share "
            "of the parameters only. Clip around it: "
            f"clip_optimizer(ZeroRedundancyOptimizer(params, torch.optim.SGD, lr=...), {name!r})"
        )
    if clipped and _within_deepspeed():
        name = clipped[0]["clipping_type"]
        raise ValueError(
            f"clipping_type must be 'none' inside DeepSpeed's ZeRO, got {name!r}: each rank would measure its own share of the "
            f"parameters only. {_OTHER_WAY}"
        )
    if any(hasattr(p, "ds_id") for group in clipped for p in group["params"]):
        raise ValueError(
            "parameters must be whole tensors or DTensors, got some that DeepSpeed's ZeRO has partitioned: each rank would "
            f"measure its own share. {_OTHER_WAY}"
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
    """Return whether a ZeroRedundancyOptimizer is making the optimizer of its own share."""
    if _ZERO not in sys.modules:
        return False
    makes_its_share = sys.modules[_ZERO].ZeroRedundancyOptimizer._init_local_optimizer.__code__
    return any(frame.f_code is makes_its_share for frame in _callers())


def _within_deepspeed() -> bool:
    """Return whether a ZeRO optimizer of DeepSpeed, which has put its rank's share into the groups, is taking the step."""
    return "deepspeed" in sys.modules and any(str(frame.f_globals.get("__name__")).startswith(_DEEPSPEED) for frame in _callers())


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
