"""Thresholds: how long is too long?

A threshold is frozen; what it remembers is an argument. It answers three questions:

- ``check(level)``: is this a level for me? ValueError if not.
- ``memory(blocks, window)``: the tensors it wants kept in the parameter group, by name (none by default).
- ``threshold(lengths, level, memory, valid)``: the longest length that is left alone, one a block. Blocks that are not
  ``valid`` (zero or not finite) must not enter the memory.

Arrays are numpy on the host and torch on an accelerator (see ``history``).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

from torch import Tensor

from . import history

__all__ = ["Constant", "Quantile", "Threshold"]


class Threshold(Protocol):
    """What the engine asks of a threshold."""

    @property
    def default_level(self) -> float: ...
    def check(self, level: float) -> None: ...
    def memory(self, blocks: int, window: int) -> dict[str, Tensor]: ...
    def __call__(self, lengths: Any, level: float, memory: SimpleNamespace, valid: Any) -> Any: ...


@dataclass(frozen=True)
class Constant:
    """threshold = level, in the unit of the length; ``inf`` measures and never clips."""

    default_level: float

    def check(self, level: float) -> None:
        if not level > 0:
            raise ValueError(f"clipping_level is the largest length and must be > 0, got {level}")

    def memory(self, blocks: int, window: int) -> dict[str, Tensor]:
        return {}

    def __call__(self, lengths: Any, level: float, memory: SimpleNamespace, valid: Any) -> Any:
        return history.namespace(lengths).full_like(lengths, level)


@dataclass(frozen=True)
class Quantile:
    """threshold = quantile p = level of the last ``window`` lengths of the block, the present one included.

    Linear between order statistics, as ``numpy.quantile`` does by default. p = 1 never clips.

    References:
        Seetharaman, Wichern, Pardo, Le Roux, AutoClip: Adaptive Gradient Clipping for Source Separation Networks,
        2020, https://arxiv.org/abs/2007.14469 (there without a window).
    """

    default_level: float

    def check(self, level: float) -> None:
        if not 0 < level <= 1:
            raise ValueError(f"clipping_level is a quantile and must be in (0, 1], got {level}")

    def memory(self, blocks: int, window: int) -> dict[str, Tensor]:
        return history.new_history(window, blocks)

    def __call__(self, lengths: Any, level: float, memory: SimpleNamespace, valid: Any) -> Any:
        history.push(memory, lengths, valid)
        return history.quantile(memory, level)
