"""The memory of past lengths: one ring a block, written in place, oldest entry first overwritten.

A history is a pair of arrays: ``lengths`` (window, blocks) and ``count`` (blocks,), the number of lengths ever recorded; of a
clip set that is one block, what is pushed and what comes back has no dimension. On the host they are numpy views of the
tensors in ``param_groups``; on an accelerator they are those tensors, and no operation here makes the host wait for them.
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
    "as_tensor",
    "chronological",
    "every",
    "filled",
    "history_shapes",
    "mean_and_std",
    "namespace",
    "on_host",
    "push",
    "quantile",
    "resized",
    "some",
    "where",
]


def namespace(values: Any) -> ModuleType:
    """The module, numpy or torch, whose functions fit ``values``."""
    return torch if isinstance(values, Tensor) else np


def as_tensor(values: Any) -> Tensor:
    """Return numbers as a tensor where they are. (``torch.as_tensor`` would put arrays on torch's default device.)"""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))


def on_host(device: torch.device) -> bool:
    """Whether the host may look at numbers on this device for free; there everything small is done in numpy."""
    return device.type == "cpu"


def where(condition: Any, one: Any, other: Any) -> Any:
    """``one`` where the condition holds, else ``other``; of a numpy scalar without the detour over arrays."""
    if isinstance(condition, np.bool_):
        return np.float64(one if condition else other)
    return namespace(condition).where(condition, one, other)


def filled(like: Any, number: float) -> Any:
    """The number, in the shape of ``like``."""
    return np.float64(number) if isinstance(like, np.float64) else namespace(like).full_like(like, number)


def some(condition: Any) -> Any:
    """Whether it holds anywhere."""
    return condition.any() if condition.ndim else condition


def every(condition: Any) -> Any:
    """Whether it holds everywhere."""
    return condition.all() if condition.ndim else condition


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
    """Record the lengths of the blocks that are ``valid``."""
    if isinstance(lengths, Tensor):
        _push_on_device(memory, lengths.to(memory.lengths.dtype), valid)
        return
    window = len(memory.lengths)
    ring, count = memory.lengths.reshape(window, -1), memory.count.reshape(-1)
    ordered = getattr(memory, "ordered", None)
    pairs = zip(lengths.tolist(), valid.tolist(), strict=True) if lengths.ndim else [(lengths, valid)]
    for block, (length, known) in enumerate(pairs):
        if not known:
            continue
        row = int(count[block]) % window
        if ordered is not None:
            if count[block] >= window:
                del ordered[block][bisect_left(ordered[block], ring[row, block])]
            insort(ordered[block], length)
        ring[row, block] = length
        count[block] += 1


def quantile(memory: SimpleNamespace, probability: float) -> Any:
    """The quantile of each block's recorded lengths, linear between order statistics; +inf where none is known."""
    window = len(memory.lengths)
    if isinstance(memory.lengths, Tensor):
        known, ordered = memory.count.clamp(max=window), _ordered_on_device(memory)
        position = (known - 1).clamp(min=0).to(ordered.dtype) * probability
        lower = position.long()
        upper = torch.minimum(lower + 1, (known - 1).clamp(min=0))
        low, high = ordered.gather(0, lower[None])[0], ordered.gather(0, upper[None])[0]
        return torch.where(known > 0, torch.lerp(low, high, position - lower), torch.inf)
    if not hasattr(memory, "ordered"):  # sorted once after a start or a load, kept sorted by push
        memory.ordered = [array("d", np.sort(chronological(memory, block))) for block in range(memory.count.size)]
    quantiles = np.array([_sorted_quantile(values, probability) for values in memory.ordered])
    return quantiles if memory.count.ndim else quantiles[0]


def mean_and_std(memory: SimpleNamespace) -> tuple[Any, Any, Any]:
    """How many lengths of each block are known, their mean and their sample standard deviation."""
    window = len(memory.lengths)
    known = memory.count.clip(max=window)
    is_known = _rows(memory) < known
    mean = where(is_known, memory.lengths, 0.0).sum(0) / known.clip(min=1)
    squares = where(is_known, (memory.lengths - mean) ** 2, 0.0)
    return known, mean, (squares.sum(0) / (known - 1).clip(min=1)) ** 0.5


def _rows(memory: SimpleNamespace) -> Any:
    """The numbers of the rows of a ring, in a shape that goes with its blocks."""
    rows = namespace(memory.lengths).arange(len(memory.lengths), device=memory.lengths.device)
    return rows.reshape(-1, *[1] * memory.count.ndim)


def _push_on_device(memory: SimpleNamespace, lengths: Tensor, valid: Tensor) -> None:
    window, ordered = len(memory.lengths), getattr(memory, "ordered", None)
    row = (memory.count % window)[None]
    oldest = memory.lengths.gather(0, row)[0]
    if ordered is not None:  # take the oldest out of the sorted ones, or an inf from their end, and put the new one in
        gone = torch.where(memory.count >= window, oldest, torch.inf)
        rest = torch.where(ordered[:-1] >= gone, ordered[1:], ordered[:-1])
        edge = torch.full_like(ordered[:1], torch.inf)
        fresh = torch.maximum(torch.cat([-edge, rest]), torch.minimum(torch.cat([rest, edge]), lengths))
        ordered.copy_(torch.where(valid, fresh, ordered))
    memory.lengths.scatter_(0, row, torch.where(valid, lengths, oldest)[None])
    memory.count += valid


def _ordered_on_device(memory: SimpleNamespace) -> Tensor:
    if not hasattr(memory, "ordered"):  # sorted once after a start or a load, kept sorted by push
        memory.ordered = memory.lengths.masked_fill(_rows(memory) >= memory.count, torch.inf).sort(dim=0).values
    ordered: Tensor = memory.ordered
    return ordered


def chronological(memory: SimpleNamespace, block: int = 0) -> Any:
    """The recorded lengths of one block, oldest first."""
    window, count = len(memory.lengths), int(memory.count.reshape(-1)[block])
    column = memory.lengths.reshape(window, -1)[:, block]
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
