"""Refusals of optimizers whose gradient would be clipped at the wrong time, in the wrong place or not at all."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from torch.optim import Optimizer

from .arguments import ARGUMENT_NAMES

__all__ = ["refuse_class", "refuse_optimizer_inside", "refuse_own_arguments", "refuse_wrapper"]


def refuse_class(cls: type[Optimizer]) -> None:
    """Refuse an optimizer class that cannot clip.

    Raises:
        TypeError: it moves the weights by a gradient that it takes itself, or its constructor has an argument with the name
            of a clipping argument.
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


def refuse_own_arguments(cls: type[Optimizer], names: Iterable[str]) -> None:
    """Refuse an optimizer class whose own arguments have these names, if one is that of a clipping argument.

    Raises:
        TypeError: one of them is.
    """
    for name in names:
        if name in ARGUMENT_NAMES:
            raise TypeError(
                f"{cls.__name__} has an argument {name!r} of its own, so that its parameter groups have no place for the "
                "clipping argument of that name; clip in front of it: GradientClipper(params, ...).step() before "
                "optimizer.step()"
            )


def refuse_wrapper(optimizer: Optimizer) -> None:
    """Refuse an optimizer that ``Optimizer.__init__`` has not made.

    Raises:
        TypeError: it lacks what is made there.
    """
    # a wrapper may hand on what the optimizer inside has, as Accelerate's does
    if not {"defaults", "_optimizer_step_pre_hooks"} <= vars(optimizer).keys():
        raise TypeError(
            f"optimizer must be one that torch.optim.Optimizer.__init__ has made, got {type(optimizer).__name__}; clip an "
            "optimizer before a library wraps it"
        )


def refuse_optimizer_inside(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose parameter groups are those of another one, which it was given or has made.

    Raises:
        TypeError: there is such an optimizer.
    """
    groups, name = {id(group) for group in optimizer.param_groups}, type(optimizer).__name__
    for attribute, inside in vars(optimizer).items():
        if isinstance(inside, Optimizer) and any(id(group) in groups for group in inside.param_groups):
            raise TypeError(
                f"{name} cannot clip: its parameter groups are those of the {type(inside).__name__} in its {attribute!r}; give "
                "the class that it derives from an optimizer that clips, or clip what it has made by clip_optimizer"
            )
