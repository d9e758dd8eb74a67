"""Schedules for ``clipping_level``, with the interface of torch's learning rate schedulers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._engine.arguments import Arguments
from ._engine.types import StateDict
from ._engine.validation import check_keys, integer, number, refuse_masked
from .mixin import Clipped

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "LevelScheduler",
    "linear_warmup",
    "multiple_at_start",
    "suggest_level",
]

Schedule = Callable[[int], float]


class LevelScheduler:
    """Write ``clipping_level = schedule(step)`` into the parameter groups of an optimizer.

    As in torch's learning rate schedulers, the constructor sets the level of step 0. Each call of :meth:`step`, after
    ``optimizer.step()``, sets the next level.

    Args:
        optimizer: an optimizer that clips.
        schedule: a function from the step count (int, from 0) to the level, or a sequence with one function per parameter group.
        last_epoch (int): the step count from which to continue; -1 starts anew. Default: -1.

    Raises:
        ValueError: the optimizer does not clip, the numbers of functions and groups differ, a function returns an invalid level
            for its group's clipping type, or ``last_epoch`` is not an integer of at least -1.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedSGD, LevelScheduler, linear_warmup
        >>> optimizer = ClippedSGD([torch.zeros(3)], lr=0.1)
        >>> scheduler = LevelScheduler(optimizer, linear_warmup(0.1, 1.0, steps=9))
        >>> for _ in range(3):
        ...     optimizer.step()
        ...     scheduler.step()
        >>> [round(level, 6) for level in scheduler.get_last_level()]
        [0.4]
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule | Sequence[Schedule], last_epoch: int = -1) -> None:
        if not isinstance(optimizer, Clipped):
            raise ValueError(f"optimizer must be one that clips, got {type(optimizer).__name__}; clip_optimizer makes it one")
        self.optimizer = optimizer
        self.schedule = schedule
        self.last_epoch = integer("last_epoch", last_epoch, smallest=-1)
        self.step()
        vars(optimizer)["_level_is_scheduled"] = True  # no warning for a checkpoint with another level

    def step(self) -> None:
        """Go to the next step and write its level."""
        self._go_to(self.last_epoch + 1)

    def _go_to(self, step: int) -> None:
        groups = self.optimizer.param_groups
        schedules = [self.schedule] * len(groups) if callable(self.schedule) else self.schedule
        if len(schedules) != len(groups):
            raise ValueError(f"schedule must be one function or {len(groups)}, one a parameter group, got {len(schedules)}")
        levels = [schedule(step) for schedule in schedules]
        checked = [Arguments.of(group | {"clipping_level": level}) for group, level in zip(groups, levels, strict=True)]
        self.last_epoch = step
        for group, arguments in zip(groups, checked, strict=True):
            group["clipping_level"] = arguments.clipping_level
        self.optimizer._current_sets.refill_levels()

    def get_last_level(self) -> list[float]:
        """Return the current level of each parameter group."""
        return [group["clipping_level"] for group in self.optimizer.param_groups]

    def state_dict(self) -> StateDict:
        """Return the step count; the schedule itself is code and is not saved."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Go to the step of :meth:`state_dict` and write its level.

        Raises:
            ValueError: the state is not that of a scheduler, or the schedule has no level for its step; nothing has changed.
        """
        check_keys("state_dict", state_dict, ("last_epoch",), "LevelScheduler")
        self._go_to(integer("last_epoch", state_dict["last_epoch"], smallest=0))


def linear_warmup(start: float, end: float, steps: int) -> Schedule:
    """Return a linear schedule from ``start`` at step 0 to ``end`` at step ``steps``, then ``end``.

    Example:
        >>> schedule = linear_warmup(1.0, 3.0, steps=4)
        >>> [schedule(step) for step in (0, 1, 4, 100)]
        [1.0, 1.5, 3.0, 3.0]
    """
    _check_steps(steps)
    return lambda step: end if step >= steps else start + (end - start) * step / steps


def multiple_at_start(level: float, multiple: float, steps: int) -> Schedule:
    """Return a schedule of ``multiple * level`` in the first ``steps`` steps, then ``level``.

    Example:
        >>> schedule = multiple_at_start(0.5, 10, steps=2)
        >>> [schedule(step) for step in (0, 1, 2, 3)]
        [5.0, 5.0, 0.5, 0.5]
    """
    _check_steps(steps)
    return lambda step: multiple * level if step < steps else level


def _check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an integer >= 1, got {steps!r}")


def suggest_level(norms: npt.ArrayLike | Sequence[Tensor] | Tensor, clip_rate: float = 0.1) -> float:
    """Return the level of ``clipping_type="norm"`` that would have clipped a given share of these gradients.

    Of the N norms in ascending order n_1 <= ... <= n_N

        level = n_(N - floor(clip_rate * N))

    is the smallest norm that at most ``clip_rate * N`` norms exceed; if all norms differ, floor(clip_rate * N) are larger. The
    level fits the recorded steps; clipping changes the following ones. Exclude the norms of a warm-up, which have another size,
    by slicing: ``norms[100:]``.

    Args:
        norms: the norms of whole gradients, in steps of one training, of shape (steps,): the result of
            ``optimizer.grad_norms()``, or a list, array or tensor of positive numbers in the unit of the gradient. Their order
            does not matter.
        clip_rate: the share of steps to clip, in [0, 1). 0 gives the largest norm, which clips no step. The 10th percentile that
            AutoClip recommends clips nine steps of ten, as ``clip_rate=0.9``. Default: 0.1.

    Returns:
        The level, in the unit of the gradient.

    Raises:
        ValueError: ``norms`` are not positive finite numbers in one dimension, are empty or masked, or ``clip_rate`` is not in
            [0, 1).

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


def _positive_numbers(norms: object) -> Tensor:
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
