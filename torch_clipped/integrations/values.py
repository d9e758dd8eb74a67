"""Values to log for an optimizer that clips, also if a library has wrapped it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch_clipped._engine.monitor import warn
from torch_clipped.mixin import Clipped

__all__ = ["clipped_optimizer", "clipping_values", "warn_of_double_clipping"]


def clipped_optimizer(optimizer: object) -> Clipped:
    """Return the optimizer that clips: ``optimizer`` itself, or the optimizer inside a wrapper of a library.

    Args:
        optimizer: an optimizer that clips, possibly wrapped, for example by Accelerate's ``prepare``.

    Returns:
        The optimizer that clips.

    Raises:
        TypeError: the optimizer does not clip.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedSGD
        >>> from torch_clipped.integrations.values import clipped_optimizer
        >>> optimizer = ClippedSGD([torch.nn.Parameter(torch.zeros(2))])
        >>> clipped_optimizer(optimizer) is optimizer
        True
    """
    inner = optimizer
    while not isinstance(inner, Clipped) and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if not isinstance(inner, Clipped):
        raise TypeError(
            f"optimizer must be one that clips, like ClippedAdamW or what clip_optimizer returns, got {type(inner).__name__}"
        )
    return inner


def clipping_values(optimizer: object, prefix: str = "clipping/") -> dict[str, float]:
    """Return the statistics of :meth:`torch_clipped.Clipped.clipping_stats` under their names in logs.

    If there are several clip sets, the statistics of each follow as ``set_0/grad_norm`` and so on. Values that are not finite are
    omitted: NaN is an unknown value, an infinite threshold means no threshold yet. Reading waits for an accelerator.

    Args:
        optimizer: as in :func:`clipped_optimizer`.
        prefix (str): the prefix of every name. Default: ``"clipping/"``.

    Returns:
        The values by name.

    Raises:
        TypeError: the optimizer does not clip.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedSGD
        >>> from torch_clipped.integrations.values import clipping_values
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = ClippedSGD([weight], clipping_level=1)
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> optimizer.step()
        >>> clipping_values(optimizer)["clipping/grad_norm"]
        5.0
    """
    clipped = clipped_optimizer(optimizer)
    values = {prefix + name: value for name, value in clipped.clipping_stats().items()}
    sets = clipped.clipping_stats(per_set=True)
    for i, statistics in enumerate(sets if len(sets) > 1 else ()):
        values |= {f"{prefix}set_{i}/{name}": value for name, value in statistics.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def warn_of_double_clipping(optimizers: Sequence[object], argument: str, value: float | None, right: str) -> None:
    """Give a ClippingWarning if an argument of a Trainer makes it clip and one of the optimizers clips too.

    Args:
        optimizers: each as in :func:`clipped_optimizer`.
        argument (str): the name of the Trainer's argument.
        value: the value of the argument; None and 0 do not clip.
        right (str): the value that it should have.

    Raises:
        TypeError: an optimizer does not clip.
    """
    groups = [group for optimizer in optimizers for group in clipped_optimizer(optimizer).param_groups]
    if value and any(group["clipping_type"] != "none" for group in groups):
        warn(
            f"{argument} must be {right} where the optimizer clips, got {value}: the Trainer clips first, and the optimizer "
            "measures what is left"
        )
