"""The memory of past lengths: one ring a block, written in place, oldest entry first overwritten.

A history is a pair of arrays: ``lengths`` (window, blocks) and ``count`` (blocks,), the number of lengths ever recorded.
On the host they are numpy views of the tensors in ``param_groups``; on an accelerator they are those tensors, and no
operation here makes the host wait for them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "accumulation_dtype",
    "chronological",
    "history_shapes",
    "mean_and_std",
    "namespace",
    "on_host",
    "push",
    "quantile",
    "resized",
]


def namespace(values: Any) -> ModuleType:
    """The module, numpy or torch, whose functions fit ``values``."""
    return torch if isinstance(values, Tensor) else np


def on_host(device: torch.device) -> bool:
    """Whether the host may look at numbers on this device for free; there everything small is done in numpy."""
    return device.type == "cpu"


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Lengths are float64 wherever the device knows it."""
    return torch.float32 if device.type == "mps" else torch.float64


def history_shapes(window: int, blocks: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """What a history keeps in a parameter group; it starts with zeros."""
    return {"lengths": ((window, blocks), torch.float64), "count": ((blocks,), torch.int64)}


def resized(lengths: Tensor, count: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The same history with another window: the newest lengths that fit are kept."""
    memory = SimpleNamespace(lengths=lengths, count=count)
    fresh_lengths, fresh_count = lengths.new_zeros(window, lengths.shape[1]), torch.zeros_like(count)
    for block in range(lengths.shape[1]):
        kept = chronological(memory, block)[-window:]
        fresh_lengths[: len(kept), block] = kept
        fresh_count[block] = len(kept)
    return fresh_lengths, fresh_count


def push(memory: SimpleNamespace, lengths: Any, valid: Any) -> None:
    """Record ``lengths`` (blocks,) in the columns where ``valid``."""
    window, blocks = memory.lengths.shape
    if isinstance(lengths, Tensor):
        row, column = memory.count % window, torch.arange(blocks, device=lengths.device)
        memory.lengths[row, column] = torch.where(valid, lengths.to(memory.lengths.dtype), memory.lengths[row, column])
        memory.count += valid
        return
    ordered = getattr(memory, "ordered", None)
    for block in np.flatnonzero(valid):
        row = memory.count[block] % window
        if ordered is not None:
            if memory.count[block] >= window:
                del ordered[block][bisect_left(ordered[block], memory.lengths[row, block])]
            insort(ordered[block], lengths[block])
        memory.lengths[row, block] = lengths[block]
        memory.count[block] += 1


def quantile(memory: SimpleNamespace, probability: float) -> Any:
    """The quantile of each block's recorded lengths (blocks,), linear between order statistics; +inf where none is known."""
    window, blocks = memory.lengths.shape
    if isinstance(memory.lengths, Tensor):
        known = memory.count.clamp(max=window)
        empty = torch.arange(window, device=known.device)[:, None] >= known
        ordered = memory.lengths.masked_fill(empty, torch.inf).sort(dim=0).values
        position = (known - 1).clamp(min=0).to(ordered.dtype) * probability
        lower = position.long()
        upper = torch.minimum(lower + 1, (known - 1).clamp(min=0))
        low, high = ordered.gather(0, lower[None])[0], ordered.gather(0, upper[None])[0]
        return torch.where(known > 0, torch.lerp(low, high, position - lower), torch.inf)
    if not hasattr(memory, "ordered"):  # sorted once after a start or a load, kept sorted by push
        memory.ordered = [array("d", np.sort(chronological(memory, block))) for block in range(blocks)]
    return np.array([_sorted_quantile(values, probability) for values in memory.ordered])


def mean_and_std(memory: SimpleNamespace) -> tuple[Any, Any, Any]:
    """How many lengths of each block are known, their mean and their sample standard deviation, each (blocks,)."""
    xp = namespace(memory.lengths)
    window = memory.lengths.shape[0]
    known = memory.count.clip(max=window)
    is_known = xp.arange(window, device=memory.lengths.device)[:, None] < known
    mean = xp.where(is_known, memory.lengths, 0.0).sum(0) / known.clip(min=1)
    squares = xp.where(is_known, (memory.lengths - mean) ** 2, 0.0)
    return known, mean, (squares.sum(0) / (known - 1).clip(min=1)) ** 0.5


def chronological(memory: SimpleNamespace, block: int = 0) -> Any:
    """The recorded lengths of one block, oldest first."""
    window, count = memory.lengths.shape[0], int(memory.count[block])
    column = memory.lengths[:, block]
    if count <= window:
        return column[:count]
    start = count % window
    return namespace(column).concatenate([column[start:], column[:start]])


def _sorted_quantile(values: array[float], probability: float) -> float:
    if not values:
        return float("inf")
    position = probability * (len(values) - 1)
    lower = int(position)
    if lower + 1 >= len(values):
        return values[-1]
    return values[lower] + (values[lower + 1] - values[lower]) * (position - lower)
