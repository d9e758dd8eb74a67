"""Histories, for thresholds that users write: rings of the last values of each block, which functions here fill and read.

A history is a pair of arrays: ``lengths`` (window, blocks) and ``count`` (blocks,), the number of values ever recorded; of a clip
set that is one block, values have no dimension. On the host they are numpy arrays; on an accelerator they are tensors, and no
function here makes the host wait for them.
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
    """Return the quantile of each block's recorded lengths, linear between order statistics; inf where none is known."""
    return arrays_of(memory.lengths).quantile(memory, probability)


def mean_and_std(memory: SimpleNamespace) -> tuple[Numbers, Numbers, Numbers]:
    """Return how many lengths of each block are known, their mean and their sample standard deviation."""
    return arrays_of(memory.lengths).mean_and_std(memory)


def where(condition: Numbers, one: Numbers | float, other: Numbers | float) -> Numbers:
    """Return ``one`` where the condition holds, else ``other``."""
    return arrays_of(condition).where(condition, one, other)


def filled(like: Numbers, number: float) -> Numbers:
    """Return the number, in the shape of ``like``."""
    return arrays_of(like).full_like(like, number)
