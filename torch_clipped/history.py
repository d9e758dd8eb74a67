"""Histories for custom thresholds: ring buffers of the last values of each block, and functions that fill and read them.

A history is a pair of arrays: ``lengths`` (window, blocks) and ``count`` (blocks,), the number of values ever recorded. If the
clip set is one block, its values have no dimension. On the host the arrays are numpy arrays. On an accelerator they are tensors,
and no function here synchronizes with the host.
"""

from __future__ import annotations

from types import SimpleNamespace

from ._engine.arrays import Numbers, arrays_of
from .thresholds import history_shapes

__all__ = ["filled", "history_shapes", "mean_and_std", "push", "quantile", "where"]


def push(memory: SimpleNamespace, lengths: Numbers, valid: Numbers) -> None:
    """Record the lengths of the blocks that are ``valid``."""
    arrays_of(lengths).push(memory, lengths, valid)


def quantile(memory: SimpleNamespace, probability: float) -> Numbers:
    """Return the quantile of each block's recorded lengths, linear between order statistics; inf without a record."""
    return arrays_of(memory.lengths).quantile(memory, probability)


def mean_and_std(memory: SimpleNamespace) -> tuple[Numbers, Numbers, Numbers]:
    """Return the count, the mean and the sample standard deviation of each block's recorded lengths."""
    return arrays_of(memory.lengths).mean_and_std(memory)


def where(condition: Numbers, one: Numbers | float, other: Numbers | float) -> Numbers:
    """Return ``one`` where the condition is true, else ``other``."""
    return arrays_of(condition).where(condition, one, other)


def filled(like: Numbers, number: float) -> Numbers:
    """Return the number, in the shape of ``like``."""
    return arrays_of(like).full_like(like, number)
