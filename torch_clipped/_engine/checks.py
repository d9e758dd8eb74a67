"""Checks that refuse optimizers whose gradient would be clipped at the wrong time, in the wrong place or not at all."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType

from torch.optim import Optimizer

from .arguments import ARGUMENT_NAMES
from .types import Group

__all__ = [
    "refuse_class",
    "refuse_optimizer_inside",
    "refuse_order",
    "refuse_overlap",
    "refuse_own_arguments",
    "refuse_pieces",
    "refuse_wrapper",
]


def refuse_class(cls: type[Optimizer]) -> None:
    """Refuse an optimizer class that cannot clip.

    Raises:
        TypeError: the class computes gradients itself and moves the weights by them, or its constructor has an argument with
            the name of a clipping argument.
    """
    name = cls.__name__
    if (hasattr(cls, "first_step") and hasattr(cls, "second_step")) or hasattr(cls, "set_closure"):
        raise TypeError(
            f"{name} takes gradients within a step, and the one that moves the weights would not be clipped; let the optimizer "
            f"that it is given clip, as in {name}(params, ClippedSGD, lr=..., clipping_level=...), or call "
            "GradientClipper(params, ...).step() after each backward"
        )
    if hasattr(cls, "fused_backward"):
        raise TypeError(
            f"{name} moves the weights in fused_backward, before the whole gradient is there to be clipped; use its own "
            "arguments for clipping"
        )
    refuse_own_arguments(cls, inspect.signature(cls.__init__).parameters)


def refuse_order(cls: type[Optimizer], mixin: type[Optimizer]) -> None:
    """Raise TypeError if an optimizer class precedes the mixin in the bases, so that its step would bypass the mixin."""
    first = next(c for c in cls.__mro__ if issubclass(c, Optimizer) and (c is mixin or not issubclass(c, mixin)))
    if first is not mixin:
        name = mixin.__name__
        raise TypeError(f"{cls.__name__} would never clip: write class {cls.__name__}({name}, {first.__name__}), {name} first")


def refuse_own_arguments(cls: type[Optimizer], names: Iterable[str]) -> None:
    """Refuse an optimizer class whose own arguments have these names, if one is the name of a clipping argument.

    Raises:
        TypeError: a name is that of a clipping argument.
    """
    for name in names:
        if name in ARGUMENT_NAMES:
            raise TypeError(
                f"{cls.__name__} has an argument {name!r} of its own, so that its parameter groups have no place for the "
                "clipping argument of that name; clip in front of it: GradientClipper(params, ...).step() before "
                "optimizer.step()"
            )


def refuse_wrapper(optimizer: Optimizer) -> None:
    """Refuse an optimizer that was not initialized by ``Optimizer.__init__``.

    Raises:
        TypeError: the optimizer lacks attributes that ``Optimizer.__init__`` sets.
    """
    # a wrapper may forward attributes of the optimizer inside, as Accelerate's does
    if not {"defaults", "_optimizer_step_pre_hooks"} <= vars(optimizer).keys():
        raise TypeError(
            f"optimizer must be one that torch.optim.Optimizer.__init__ has made, got {type(optimizer).__name__}; clip an "
            "optimizer before a library wraps it"
        )


def refuse_optimizer_inside(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose parameter groups belong to an optimizer inside it.

    Raises:
        TypeError: there is an optimizer inside.
    """
    groups, name = {id(group) for group in optimizer.param_groups}, type(optimizer).__name__
    for attribute, inside in vars(optimizer).items():
        if isinstance(inside, Optimizer) and any(id(group) in groups for group in inside.param_groups):
            raise TypeError(
                f"{name} cannot clip: its parameter groups are those of the {type(inside).__name__} in its {attribute!r}; give "
                "the class that it derives from an optimizer that clips, or clip what it has made by clip_optimizer"
            )


_ZERO = "torch.distributed.optim.zero_redundancy_optimizer"  # not imported here: the import takes a second
_DEEPSPEED = tuple(f"deepspeed.runtime.{name}" for name in ("zero.stage", "bf16_optimizer", "superoffload", "zenflow"))
_OTHER_WAY = 'Set "gradient_clipping" in the DeepSpeed config instead, which clips by the norm of the whole gradient'


def refuse_pieces(groups: Sequence[Group]) -> None:
    """Refuse clipped parameter groups whose parameters are only this rank's share of the trained parameters.

    Raises:
        ValueError: the optimizer is inside a ZeroRedundancyOptimizer or DeepSpeed's ZeRO, or there are parameters of the older
            FullyShardedDataParallel or of ZeRO's stage 3.
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
        ValueError: the optimizer was made with ``overlap_with_ddp=True``.
    """
    if getattr(optimizer, "_overlap_with_ddp", False):
        raise ValueError(
            "overlap_with_ddp must be False for a ZeroRedundancyOptimizer that clips, got True: it updates parameters during "
            "backward, before the gradient is complete"
        )


def _within_zero() -> bool:
    """Return whether a ZeroRedundancyOptimizer is making the optimizer for its own share."""
    if _ZERO not in sys.modules:
        return False
    makes_its_share = sys.modules[_ZERO].ZeroRedundancyOptimizer._init_local_optimizer.__code__
    return any(frame.f_code is makes_its_share for frame in _callers())


def _within_deepspeed() -> bool:
    """Return whether a ZeRO optimizer of DeepSpeed is taking the step; the groups then hold this rank's share only."""
    return "deepspeed" in sys.modules and any(str(frame.f_globals.get("__name__")).startswith(_DEEPSPEED) for frame in _callers())


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
