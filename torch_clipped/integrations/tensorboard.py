"""Clipping statistics in TensorBoard."""

from __future__ import annotations

from typing import Protocol

from torch.optim import Optimizer

from .values import clipping_values

__all__ = ["ScalarWriter", "log_clipping_stats"]


class ScalarWriter(Protocol):
    """Writer of scalars with the interface of torch.utils.tensorboard.SummaryWriter."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int, /) -> object:
        """Write one value."""


def log_clipping_stats(writer: ScalarWriter, optimizer: Optimizer, step: int, prefix: str = "clipping/") -> None:
    """Write the clipping statistics of an optimizer as scalars, named as in ``clipping_stats``.

    If there are several clip sets, the statistics of each are written too, as ``clipping/set_0/grad_norm`` and so on. Values that
    are not finite are omitted: NaN is an unknown value, an infinite threshold means no threshold yet. Reading waits for an
    accelerator, so call this function only when you log, not after every step.

    Args:
        writer: a SummaryWriter of torch or tensorboardX, or anything with its ``add_scalar``.
        optimizer: an optimizer that clips, possibly wrapped, for example by Accelerate's ``prepare``.
        step (int): the number of the training step.
        prefix (str): the prefix of every name. Default: ``"clipping/"``.

    Raises:
        TypeError: the optimizer does not clip.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedSGD
        >>> from torch_clipped.integrations import log_clipping_stats
        >>> class Printer:  # instead of torch.utils.tensorboard.SummaryWriter("runs/1")
        ...     def add_scalar(self, tag, value, step):
        ...         print(step, tag, value)
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = ClippedSGD([weight], clipping_level=2.5)
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> optimizer.step()
        >>> log_clipping_stats(Printer(), optimizer, step=1)
        1 clipping/grad_norm 5.0
        1 clipping/clipped_norm 2.5
        1 clipping/threshold 2.5
        1 clipping/coefficient 0.5
        1 clipping/clip_rate 1.0
        1 clipping/steps 1.0
        1 clipping/clipped_steps 1.0
        1 clipping/skipped_steps 0.0
    """
    for name, value in clipping_values(optimizer, prefix).items():
        writer.add_scalar(name, value, step)
