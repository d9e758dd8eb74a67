"""A first clipping level, from the norms of a run that was not clipped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import number, refuse_masked

__all__ = ["suggest_level"]


def suggest_level(norms: Sequence[Any] | Tensor | Any, clip_rate: float = 0.1) -> float:
    """The level of ``clipping_type="norm"`` at which a given share of these gradients would have been clipped.

    Of the N norms in ascending order n_1 <= ... <= n_N

        level = n_(N - floor(clip_rate * N))

    the smallest of them that at most ``clip_rate * N`` of them exceed: of norms that differ, floor(clip_rate * N) are longer.
    It describes the steps that were recorded; clipping changes those that follow. Leave out the warm-up, whose norms are of
    another size, by slicing: ``norms[100:]``.

    Args:
        norms: the lengths of whole gradients, in steps of one training, of shape (steps,): what ``optimizer.grad_norms()``
            returns, or a list, array or tensor of positive numbers in the unit of the gradient. Their order plays no part.
        clip_rate: the share of the steps to be clipped, in [0, 1). 0 gives the largest norm, which clips none. The 10th
            percentile that AutoClip recommends is something else: it clips nine steps of ten, ``clip_rate=0.9``. Default: 0.1.

    Returns:
        The level, in the unit of the gradient.

    Raises:
        ValueError: ``norms`` are no positive finite numbers in one dimension, none, or masked, or ``clip_rate`` is not in [0, 1).

    Example:
        >>> from torch_clipped import suggest_level
        >>> suggest_level([1.0, 2.0, 9.0, 3.0, 4.0], clip_rate=0.2)
        4.0

    References:
        Razvan Pascanu, Tomas Mikolov, Yoshua Bengio, On the difficulty of training recurrent neural networks, 2013,
        https://arxiv.org/abs/1211.5063 (a level from the average norm over many updates).

        Prem Seetharaman, Gordon Wichern, Bryan Pardo, Jonathan Le Roux, AutoClip: Adaptive Gradient Clipping for Source
        Separation Networks, 2020, https://arxiv.org/abs/2007.14469 (a percentile of the norms so far, in every step).
    """
    share = number("clip_rate", clip_rate, "a number in [0, 1)")
    if not 0 <= share < 1:
        raise ValueError(f"clip_rate must be in [0, 1), got {clip_rate!r}")
    ascending = _positive_numbers(norms).sort().values
    count = len(ascending)
    clipped = min(math.floor(round(share * count, 6)), count - 1)  # 0.29 * 100 is a little less than 29
    return float(ascending[count - 1 - clipped])


def _positive_numbers(norms: Any) -> Tensor:
    refuse_masked("norms", norms)
    try:
        values = torch.as_tensor(norms, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"norms must be a list, array or tensor of numbers, got {norms!r} ({error})") from None
    if values.dim() != 1 or len(values) == 0:
        raise ValueError(f"norms must have shape (steps,) with at least one step, got shape {tuple(values.shape)}")
    wrong = ~((values > 0) & values.isfinite())
    if wrong.any():
        place = int(wrong.nonzero()[0])
        raise ValueError(f"norms must be positive and finite (leave skipped steps out), got {values[place].item()} at {place}")
    return values
