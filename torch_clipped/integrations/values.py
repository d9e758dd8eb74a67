"""Values to log of an optimizer that clips, also where a library has wrapped it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch_clipped._engine.monitor import warn
from torch_clipped.mixin import Clipped

__all__ = ["clipped_optimizer", "clipping_values", "warn_of_double_clipping"]


def clipped_optimizer(optimizer: object) -> Clipped:
    """Return the optimizer that clips: this one, or the ``optimizer`` of the wrapper that a library has put around it.

    Args:
        optimizer: an optimizer that clips, perhaps wrapped (by Accelerate's ``prepare``, say).

    Returns:
        The optimizer that clips.

    Raises:
        TypeError: it does not clip.

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
    """Return the statistics of :meth:`torch_clipped.Clipped.clipping_stats` under the names that they have in logs.

    Where groups are clipped apart, those of each clip set follow as ``set_0/grad_norm`` and so on. Values that are not finite
    are left out: NaN is unknown, and an infinite threshold none yet. Reading waits for an accelerator.

    Args:
        optimizer: as in :func:`clipped_optimizer`.
        prefix (str): stands before every name. Default: ``"clipping/"``.

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
        argument (str): of the Trainer.
        value: what it is; None and 0 do not clip.
        right (str): what it should be.

    Raises:
        TypeError: an optimizer does not clip.
    """
    groups = [group for optimizer in optimizers for group in clipped_optimizer(optimizer).param_groups]
    if value and any(group["clipping_type"] != "none" for group in groups):
        warn(
            f"{argument} must be {right} where the optimizer clips, got {value}: the Trainer clips first, and the optimizer "
            "measures what is left"
        )
