"""Thresholds: the length of a block above which it is clipped.

A threshold is frozen; its state is an argument. ``memory`` returns the names of the state's tensors, which are kept in the
parameter group by block. In a step they are numpy arrays on the host and tensors on an accelerator, to be written in place. If
the whole clip set is one block, its values have no dimension instead of (blocks,). Blocks that are not ``valid`` (zero or not
finite) must not change the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar, NamedTuple

import torch

from ._engine.arrays import HOST, Arrays, Numbers

__all__ = ["AdaGC", "Blocks", "Constant", "MeanStd", "Quantile", "RatioToWeights", "Threshold", "ZClip"]

Shape = tuple[tuple[int, ...], torch.dtype]


def history_shapes(window: int, blocks: int) -> dict[str, Shape]:
    """Return the shapes of a history of lengths in a parameter group, for ``Threshold.memory``; a history starts with zeros."""
    return {"lengths": ((window, blocks), torch.float64), "count": ((blocks,), torch.int64)}


class Blocks(NamedTuple):
    """Values from which a threshold is computed.

    Attributes:
        lengths: of each block, (blocks,).
        valid: whether the length is positive and finite, (blocks,).
        norm: of the whole clip set.
        step: number of earlier steps of the optimizer.
        weight_lengths: function that returns the lengths of the weights of the same blocks, (blocks,).
        arrays: the arithmetic for these values: numpy's on the host, torch's on an accelerator.
    """

    lengths: Numbers
    valid: Numbers
    norm: Numbers
    step: Numbers
    weight_lengths: Callable[[], Numbers]
    arrays: Arrays = HOST

    def part(self, blocks: slice) -> Blocks:
        """Return the values of some blocks, with the norm of the whole clip set."""
        weights = self.weight_lengths
        lengths, valid = self.lengths[blocks], self.valid[blocks]
        return self._replace(lengths=lengths, valid=valid, weight_lengths=lambda: weights()[blocks])


@dataclass(frozen=True)
class Threshold:
    """Threshold of each block: the largest length that is not clipped.

    Args:
        default_level (float): the default ``clipping_level`` of an optimizer or a parameter group.
    """

    default_level: float
    needs_norm: ClassVar[bool] = False  # of the whole gradient

    def __post_init__(self) -> None:
        self.check(self.default_level)

    def check(self, level: float) -> None:
        """Raise ValueError if ``level`` is invalid for this threshold."""
        if not level > 0:
            raise ValueError(f"clipping_level must be > 0, got {level}")

    def memory(self, blocks: int, window: int) -> dict[str, Shape]:
        """Return the shapes and types of the state's tensors in the parameter group, by name; they start with zeros."""
        return {}

    def __call__(self, blocks: Blocks, level: float, memory: SimpleNamespace) -> Numbers:
        """Return the thresholds (blocks,); inf for blocks that are not clipped."""
        raise NotImplementedError

    def remember(self, blocks: Blocks, clipped_lengths: Numbers, memory: SimpleNamespace) -> None:
        """Update the state after the decision."""


@dataclass(frozen=True)
class Constant(Threshold):
    """threshold = level, in the unit of the length; ``inf`` measures and never clips."""

    def __call__(self, blocks: Blocks, level: float, memory: SimpleNamespace) -> Numbers:
        return blocks.arrays.full_like(blocks.lengths, level)


@dataclass(frozen=True)
class Quantile(Threshold):
    """threshold = quantile p = level of the last ``window`` lengths of the block, the present one included.

    Linear between order statistics, as ``numpy.quantile`` does by default. p = 1 never clips, nor do the first ``warm_up``
    lengths.

    References:
        Prem Seetharaman, Gordon Wichern, Bryan Pardo, Jonathan Le Roux, AutoClip: Adaptive Gradient Clipping for Source
        Separation Networks, 2020, https://arxiv.org/abs/2007.14469 (there without a window).
    """

    warm_up: int = 0

    def check(self, level: float) -> None:
        if not 0 < level <= 1:
            raise ValueError(f"clipping_level is a quantile and must be in (0, 1], got {level}")

    def memory(self, blocks: int, window: int) -> dict[str, Shape]:
        return history_shapes(window, blocks)

    def __call__(self, blocks: Blocks, level: float, memory: SimpleNamespace) -> Numbers:
        blocks.arrays.push(memory, blocks.lengths, blocks.valid)
        quantile = blocks.arrays.quantile(memory, level)
        return blocks.arrays.where(memory.count > self.warm_up, quantile, math.inf) if self.warm_up else quantile


@dataclass(frozen=True)
class MeanStd(Threshold):
    """threshold = mean + level * std of the last ``window`` lengths of the block, the present one excluded.

    std is the sample standard deviation (n - 1). Nothing is clipped before ``warm_up`` lengths, and at least two, are recorded.
    """

    warm_up: int = 0

    def check(self, level: float) -> None:
        if not 0 <= level < float("inf"):
            raise ValueError(f"clipping_level is a number of standard deviations and must be >= 0 and finite, got {level}")

    def memory(self, blocks: int, window: int) -> dict[str, Shape]:
        return history_shapes(window, blocks)

    def __call__(self, blocks: Blocks, level: float, memory: SimpleNamespace) -> Numbers:
        _, mean, std = blocks.arrays.mean_and_std(memory)
        return blocks.arrays.where(memory.count >= max(2, self.warm_up), mean + level * std, math.inf)

    def remember(self, blocks: Blocks, clipped_lengths: Numbers, memory: SimpleNamespace) -> None:
        blocks.arrays.push(memory, blocks.lengths, blocks.valid)


@dataclass(frozen=True)
class RatioToWeights(Threshold):
    """threshold = level * max(||w||, 1e-3), where w are the weights of the same block.

    With the floor, weights that start at zero can train.

    References:
        Andrew Brock, Soham De, Samuel L. Smith, Karen Simonyan, High-Performance Large-Scale Image Recognition Without
        Normalization, 2021, https://arxiv.org/abs/2102.06171 (adaptive gradient clipping).
    """

    def __call__(self, blocks: Blocks, level: float, memory: SimpleNamespace) -> Numbers:
        return level * blocks.arrays.at_least(blocks.weight_lengths(), 1e-3)


@dataclass(frozen=True)
class ZClip(Threshold):
    """threshold = mean + level**2 * std / z where z = (length - mean) / std > level, else none.

    The clipped lengths x update mean <- 0.97 mean + 0.03 x, then variance <- 0.97 variance + 0.03 (x - mean)**2. Both start as
    mean and variance (over n) of the first 25 lengths, which are not clipped.

    References:
        Abhay Kumar, Louis Owen, Nilabhra Roy Chowdhury, Fabian Guera, ZClip: Adaptive Spike Mitigation for LLM Pre-Training,
        2025, https://arxiv.org/abs/2504.02507.
    """

    averaging: float = 0.97
    warm_up: int = 25

    def memory(self, blocks: int, window: int) -> dict[str, Shape]:
        floats: Shape = ((blocks,), torch.float64)
        return {"average": floats, "variance": floats, "seen": ((blocks,), torch.int64)}

    def __call__(self, blocks: Blocks, level: float, memory: SimpleNamespace) -> Numbers:
        distance, allowed = blocks.lengths - memory.average, level * memory.variance**0.5
        spike = (memory.seen >= max(1, self.warm_up)) & (distance > allowed)
        return blocks.arrays.where(spike, memory.average + allowed * allowed / distance, math.inf)

    def remember(self, blocks: Blocks, clipped_lengths: Numbers, memory: SimpleNamespace) -> None:
        where, lerp_, is_warming_up = blocks.arrays.where, blocks.arrays.lerp_, memory.seen < max(1, self.warm_up)
        equal_share = blocks.arrays.full_like(memory.average, 1.0) / (memory.seen + 1)
        share = where(blocks.valid, where(is_warming_up, equal_share, 1 - self.averaging), 0.0)
        lengths = where(blocks.valid, clipped_lengths, memory.average)
        before = lengths - memory.average
        lerp_(memory.average, lengths, share)
        after = lengths - memory.average
        lerp_(memory.variance, where(is_warming_up, before, after) * after, share)
        memory.seen += blocks.valid


@dataclass(frozen=True)
class AdaGC(Threshold):
    """threshold = level * average, with the running average of the block's clipped lengths x: average <- 0.99 average + 0.01 x.

    In the first 100 steps the whole gradient of the clip set is clipped to norm 1, and the average is the smallest x so far. The
    average of a block whose first gradient comes later starts with that gradient.

    References:
        Guoxia Wang, Shuai Li, Congliang Chen, Jinle Zeng, Jiabin Yang, Dianhai Yu, Yanjun Ma, Li Shen, AdaGC: Enhancing LLM
        Pretraining Stability via Adaptive Gradient Clipping, 2025, https://arxiv.org/abs/2502.11034.
    """

    needs_norm: ClassVar[bool] = True
    averaging: float = 0.99
    warm_up: int = 100
    warm_up_norm: float = 1.0

    def memory(self, blocks: int, window: int) -> dict[str, Shape]:
        return {"average": ((blocks,), torch.float64), "seen": ((blocks,), torch.int64)}

    def __call__(self, blocks: Blocks, level: float, memory: SimpleNamespace) -> Numbers:
        where = blocks.arrays.where
        warm_up = blocks.lengths * where(self._knows(blocks), self.warm_up_norm / blocks.norm, math.inf)
        return where(blocks.step < self.warm_up, warm_up, level * self._average(blocks, memory))

    def remember(self, blocks: Blocks, clipped_lengths: Numbers, memory: SimpleNamespace) -> None:
        where, minimum = blocks.arrays.where, blocks.arrays.minimum
        average = self._average(blocks, memory)
        smallest = where(memory.seen > 0, minimum(average, clipped_lengths), clipped_lengths)
        running = self.averaging * average + (1 - self.averaging) * clipped_lengths
        average = where(blocks.step < self.warm_up, smallest, running)
        valid = blocks.valid & ((blocks.step >= self.warm_up) | self._knows(blocks))
        memory.average[...] = where(valid, average, memory.average)
        memory.seen += valid

    def _knows(self, blocks: Blocks) -> Numbers:
        """Return whether the norm of the whole gradient is finite, so that the warm-up can clip to it."""
        return blocks.arrays.isfinite(blocks.norm)

    def _average(self, blocks: Blocks, memory: SimpleNamespace) -> Numbers:
        return blocks.arrays.where(memory.seen > 0, memory.average, blocks.lengths)
