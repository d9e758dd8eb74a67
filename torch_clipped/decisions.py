"""Decisions which blocks are clipped in a step.

A decision looks at ``alpha = threshold / length`` and says which blocks are clipped. Its random numbers come from a
counter-based stream: the same on every rank, the same after a resume, and the global random state is never touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ._engine.arrays import Numbers

__all__ = ["Always", "Decision", "Randomly", "uniform"]

Decision = Callable[[Numbers, float, Callable[[], Numbers]], Numbers]


@dataclass(frozen=True)
class Always:
    """Clip every block that is longer than its threshold."""

    def __call__(self, alpha: Numbers, beta: float, draw: Callable[[], Numbers]) -> Numbers:
        return alpha < 1


@dataclass(frozen=True)
class Randomly:
    """Clip a block that is longer than its threshold with probability ``beta ** (alpha ** power)``.

    The longer the gradient, the smaller alpha and the more certain the clipping. One number is drawn a step and clip
    set, so all blocks of the set are compared with the same draw and a global gradient keeps its direction.
    """

    power: int

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise ValueError(f"power must be > 0, got {self.power!r}")

    def __call__(self, alpha: Numbers, beta: float, draw: Callable[[], Numbers]) -> Numbers:
        return (alpha < 1) & (draw() < beta ** (alpha**self.power))


_MASK = 0xFFFFFFFF


def _mix(word: Any) -> Any:
    """Scatter 32 bits over 32 bits (the finalizer of MurmurHash3, Austin Appleby, public domain)."""
    word = (word ^ (word >> 16)) * 0x85EBCA6B & _MASK
    word = (word ^ (word >> 13)) * 0xC2B2AE35 & _MASK
    return word ^ (word >> 16)


def uniform(seed: int, stream: int, step: Any) -> Any:
    """Return the number in [0, 1) that belongs to (seed, stream, step).

    Every word is mixed on its own before the next one enters, so neighbouring seeds give unrelated streams. ``step`` is
    an int or an int64 tensor: the arithmetic is modulo 2**32 and gives the same number for both, so that an accelerator
    can draw without telling the host its step count.

    >>> uniform(0, 0, 1) == uniform(0, 0, 1), uniform(0, 0, 1) == uniform(1, 0, 0)
    (True, False)
    """
    state = 0x9E3779B9
    for word in (seed, seed >> 32, stream):
        state = _mix(state ^ _mix((word + 0x7F4A7C15) & _MASK))
    low = _mix(_mix(((step & _MASK) + 0x7F4A7C15) & _MASK) ^ state)
    bits = _mix(low ^ _mix(((step >> 32) + 0x165667B1) & _MASK))
    return (bits >> 8) / 2.0**24  # 24 bits are exact in every floating type
