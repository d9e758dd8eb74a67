"""Decisions to clip blocks in a step.

A decision takes ``alpha = threshold / length`` and returns which blocks are clipped. Its random numbers come from a
counter-based stream: they are the same on every rank and after a resume, and the global random state is never used.
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
    """Clip every block that exceeds its threshold."""

    def __call__(self, alpha: Numbers, beta: float, draw: Callable[[], Numbers]) -> Numbers:
        return alpha < 1


@dataclass(frozen=True)
class Randomly:
    """Clip a block that exceeds its threshold with probability ``beta ** (alpha ** power)``.

    The larger the gradient norm, the smaller alpha and the larger the probability. One number is drawn per step and clip set.
    All blocks of the set are compared with the same draw, so a global gradient keeps its direction.
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
    """Return the random number in [0, 1) for (seed, stream, step).

    Every word is mixed before the next one is added, so neighbouring seeds give unrelated streams. ``step`` is an int or an
    int64 tensor. The arithmetic is modulo 2**32 and gives the same number for both, so an accelerator can draw without
    sending its step count to the host.

    >>> uniform(0, 0, 1) == uniform(0, 0, 1), uniform(0, 0, 1) == uniform(1, 0, 0)
    (True, False)
    """
    state = 0x9E3779B9
    for word in (seed, seed >> 32, stream):
        state = _mix(state ^ _mix((word + 0x7F4A7C15) & _MASK))
    low = _mix(_mix(((step & _MASK) + 0x7F4A7C15) & _MASK) ^ state)
    bits = _mix(low ^ _mix(((step >> 32) + 0x165667B1) & _MASK))
    return (bits >> 8) / 2.0**24  # 24 bits are exact in every floating type
