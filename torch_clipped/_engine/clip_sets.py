"""Clip sets: parameter groups with equal clipping arguments that are measured and clipped together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ..clipping import Clipping
from ..decisions import uniform
from ..measures import one_block
from ..thresholds import Blocks, Constant, Threshold
from .arguments import Arguments
from .arrays import Arrays, Factor, Numbers, Truth
from .draws import DrawTable
from .norms import PLAIN, accelerator_norms, host_norms, plain_norms
from .sharding import Shards, lay_out_gradients, local
from .state import StateArrays, block_counts, is_real
from .statistics import SetStatistics, StepValues
from .types import Group

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["ClipSet", "Decided", "Gradients", "StatePart", "parameters", "parts_of", "source_of"]

Source = tuple[object, ...]


class Gradients(NamedTuple):
    """Gradients of a clip set in one step, in the order of its parameters; for sharded ones only the rank's own part."""

    tensors: Sequence[Tensor | None]
    are_plain: bool  # all exist, are contiguous and of torch's own class


class Decided(NamedTuple):
    """Decision about the blocks of a clip set: thresholds, coefficients, limits, and whether to skip the step."""

    blocks: Blocks
    thresholds: Numbers
    coefficients: Numbers  # by which the blocks are multiplied if the step is taken
    limits: Numbers  # to which entries are clamped, where a block is one entry
    is_spike: Truth = False  # whether the step is to be skipped, with clipping_action="skip"


class StatePart(NamedTuple):
    """Blocks of a clip set whose state is kept in one parameter group."""

    blocks: slice
    memory: SimpleNamespace
    group: Group
    source: Source  # of the norms: see source_of


class ClipSet:
    """Parameter groups that are clipped together, and their state."""

    def __init__(
        self,
        arguments: Arguments,
        rule: Clipping,
        groups: Sequence[Group],
        indices: Sequence[int],
        device: torch.device,
        arrays: Arrays,
        ranks: Sequence[ProcessGroup] | None,
        state: StateArrays,
        former: Sequence[ClipSet],
        level: float | Tensor | None,
    ) -> None:
        self.arguments, self.rule, self.groups, self.indices = arguments, rule, groups, indices
        self.device, self.arrays, self.measure = device, arrays, rule.measured
        self.params = parameters(groups)
        self.remembers = type(rule.threshold).remember is not Threshold.remember
        self.has_limits = arguments.clipping_action == "skip" or arguments.clipping_cap is not None  # beyond the type's own
        self.threshold_scale = 1.0  # factor of all thresholds; inf: nothing is clipped
        memories = [part.memory for clip_set in former for part in clip_set.parts] if arrays.is_host else []
        self.parts: list[StatePart] = []
        counts: list[int] = []  # number of norms measured in each parameter
        for members in parts_of(rule, groups):
            start = sum(counts)
            counts += block_counts(rule, parameters(members))
            memory = _threshold_memory(members[0], rule, state, memories)
            self.parts.append(StatePart(slice(start, sum(counts)), memory, members[0], source_of(arguments, rule, members)))
        self.counts = tuple(counts)
        self.norm_type = arguments.norm_type if self.measure.norm_type is None else self.measure.norm_type
        self.record = SetStatistics(groups[0], state, "set_", arrays, self.measure, self.norm_type)
        self.level = cast(float, level)  # a tensor on an accelerator; it stays the same object when the level changes
        self._draws: DrawTable | None = None
        self.shards = None if ranks is None else self._find_shards(ranks, former)
        self._own_counts = self.shards.counts if self.shards else self.counts
        self._divisors = self._find_divisors()
        is_plain = self._divisors is None and self.measure.blocks in (None, one_block)
        self.depends_on_shapes = not is_plain
        self._shapes = [p.shape for p in self.params]
        self.device_types = {p.device.type for p in self.params}
        self.without_numbers = [p for p in self.params if not is_real(p)]

    @property
    def is_dry_run(self) -> bool:
        """Return whether gradients have no values to clip, as on the meta device or in FakeTensorMode."""
        return any(p.grad is not None for p in self.without_numbers)

    def has_grown(self) -> bool:
        """Return whether the shapes of parameters have changed."""
        return [p.shape for p in self.params] != self._shapes

    def _find_shards(self, ranks: Sequence[ProcessGroup], former: Sequence[ClipSet]) -> Shards:
        made_of = self.params, self.counts, ranks, self.device, self.arrays
        known = (clip_set.shards for clip_set in former if clip_set.shards and clip_set.shards.are_of(*made_of))
        return next(known, None) or Shards(*made_of)

    def _find_divisors(self) -> Numbers | None:
        if self.measure.divisor is None:
            return None
        divisors = [float(self.measure.divisor(p)) if p.numel() else 1.0 for p in self.params]  # without entries it may be 0
        values = torch.from_numpy(np.repeat(divisors, self.counts))
        return cast(Numbers, values.numpy() if self.arrays.is_host else values.to(self.device))

    def gradients(self) -> Gradients:
        """Return the gradients, ready to be changed in place.

        Sparse gradients are coalesced. Where entries share memory, as ``torch.autograd.grad`` may return them, they are copied.
        """
        if self.shards:
            lay_out_gradients(self.params)
        grads = [p.grad for p in self.params]
        if len({*map(id, grads)}) < len(grads):
            self._separate(grads)
        are_dense = {*map(type, grads)} <= PLAIN and {g.layout for g in grads} == {torch.strided}  # type: ignore[union-attr]
        if are_dense and all(map(Tensor.is_contiguous, cast(list[Tensor], grads))):
            return Gradients(grads, are_plain=True)
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            if grad.is_sparse:
                if not grad.is_coalesced():
                    grads[i] = self.params[i].grad = grad.coalesce()
            elif not grad.is_contiguous() and _overlaps(grad):
                grads[i] = self.params[i].grad = grad.contiguous()
        return Gradients([None if grad is None else local(grad) for grad in grads] if self.shards else grads, are_plain=False)

    def _separate(self, grads: list[Tensor | None]) -> None:
        """Give each parameter its own gradient if ``torch.autograd.grad`` returned one tensor for several."""
        seen: set[int] = set()
        for i, grad in enumerate(grads):
            if grad is not None and id(grad) in seen:
                grads[i] = self.params[i].grad = grad.clone()
            seen.add(id(grad))

    def norms(self, grads: Gradients) -> Numbers:
        """Return the norm of each block, or of each tensor if all tensors are one block."""
        if self.arrays.is_host:
            measured = plain_norms if grads.are_plain else host_norms
            norms = cast(Numbers, measured(cast(list[Tensor], grads.tensors), self._own_counts, self.norm_type))
        else:
            norms = cast(Numbers, accelerator_norms(grads.tensors, self._own_counts, self.norm_type, self.device))
        if self.shards:
            norms = self.shards.lengths(norms, self.norm_type)
        return norms if self._divisors is None else norms / self._divisors

    def lengths(self, grads: Gradients) -> Numbers:
        """Return the length of each block (blocks,), or a scalar if all tensors are one block."""
        if not self.measure.is_one_block:
            return self.norms(grads)
        if self.shards or not self.arrays.is_host:
            norms = self.norms(grads)
        else:
            measured = plain_norms if grads.are_plain else host_norms
            norms = cast(Numbers, measured(cast(list[Tensor], grads.tensors), None, self.norm_type))
        return norms[0] if len(norms) == 1 else self.arrays.norm(norms, self.norm_type)

    def norm(self, lengths: Numbers) -> Numbers:
        """Return the norm of the whole set, from the lengths of its blocks; NaN if it would cost another pass."""
        if not self.measure.gives_norm:
            return lengths.sum() * math.nan
        return lengths if lengths.ndim == 0 else self.arrays.norm(lengths, self.norm_type)

    def blocks(self, lengths: Numbers, is_finite: Numbers, step: Numbers, kept: Truth) -> Blocks:
        """Return the input of thresholds; ``kept`` is true if the step is taken."""
        norm, usable = lengths if self.measure.is_one_block else self.norm(lengths), cast(Truth, is_finite)
        if kept is not True:
            usable = kept if self.arguments.nonfinite == "skip" else is_finite & kept  # "skip": all are finite in a kept step
        return Blocks(lengths, (lengths > 0) & usable, norm, step, self._weight_lengths, self.arrays)

    def thresholds(self, blocks: Blocks) -> Numbers:
        """Return the threshold of each block."""
        rule, level = self.rule.threshold, self.level
        if len(self.parts) == 1:
            thresholds: Numbers = rule(blocks, level, self.parts[0].memory)
        else:
            whole = blocks._replace(weight_lengths=cache(self._weight_lengths))
            thresholds = self.arrays.concatenate([rule(whole.part(p.blocks), level, p.memory) for p in self.parts])
        return thresholds if self.threshold_scale == 1 else thresholds * self.threshold_scale

    def decide(self, alpha: Numbers, blocks: Blocks) -> Numbers:
        """Return which blocks are clipped."""
        decided: Numbers = self.rule.decision(alpha, self.arguments.clipping_beta, partial(self._draw, blocks.step))
        return blocks.valid & decided

    def _draw(self, step: Numbers) -> Numbers:
        if self.arrays.is_host:
            return cast(Numbers, uniform(self.arguments.clipping_seed, self.indices[0], int(step)))
        if self._draws is None:
            self._draws = DrawTable(self.arguments.clipping_seed, self.indices[0])
        return cast(Numbers, self._draws.draw(cast(Tensor, step)))

    def limited(self, decided: Decided) -> Decided:
        """Return the type's decision after ``clipping_action`` and ``clipping_cap`` are applied."""
        blocks, thresholds, coefficients, _, _ = decided
        arrays, cap, is_skipping = self.arrays, self.arguments.clipping_cap, self.arguments.clipping_action == "skip"
        is_spike: Truth = False
        if cap is not None:
            thresholds = arrays.at_most(thresholds, cap)
        limits = thresholds
        if self.measure.clamps_entries and is_skipping:
            limits = arrays.full_like(thresholds, math.inf if cap is None else cap)
        elif self.measure.clamps_entries and cap is not None:  # other entries are short enough, or not clipped by chance
            limits = arrays.where((coefficients < 1) | ~blocks.valid, limits, cap)
        if is_skipping:
            is_long = coefficients < 1
            if self.measure.clamps_entries and self.arguments.nonfinite == "propagate":
                is_long = is_long | ~arrays.isfinite(blocks.lengths)  # an entry of inf exceeds any threshold
            spikes = arrays.any(is_long)
            is_spike = bool(spikes) if arrays.is_host else spikes
        if cap is not None:
            alpha = arrays.full_like(thresholds, cap) / blocks.lengths
            if self.arguments.nonfinite != "skip":  # a block that is not finite is not changed
                alpha = arrays.where(blocks.valid, alpha, 1.0)
            capped = arrays.as_coefficients(alpha)
            coefficients = capped if is_skipping else arrays.minimum(coefficients, capped)
        elif is_skipping:
            coefficients = arrays.full_like(coefficients, 1.0)
        return Decided(blocks, thresholds, coefficients, limits, is_spike)

    def scale_(self, grads: Gradients, coefficients: Numbers, limits: Numbers, grad_scale: Factor) -> None:
        """Make the blocks of the gradients shorter, by the coefficient and the limit of each block."""
        if self.measure.clamps_entries and not (self.arrays.is_host and grad_scale == 1):
            limits = limits * grad_scale
        if self.shards and not self.measure.is_one_block:
            coefficients, limits = self.shards.local(coefficients), self.shards.local(limits)
        self.measure.scale_(grads.tensors, self._own_counts, coefficients, limits, self.arrays.is_host)

    def remember(self, blocks: Blocks, coefficients: Numbers) -> None:
        """Let the threshold update its state from the step, as decided by its own type."""
        clipped_lengths = blocks.lengths * coefficients
        for part in self.parts:
            whole = len(self.parts) == 1
            own = (blocks, clipped_lengths) if whole else (blocks.part(part.blocks), clipped_lengths[part.blocks])
            self.rule.threshold.remember(*own, part.memory)

    def values(self, decided: Decided, kept: Truth, skipped: Truth) -> StepValues:
        """Return the values of a step to record; ``skipped`` is true if this set is the reason for a skip."""
        arrays, (blocks, thresholds, coefficients, _, is_spike) = self.arrays, decided
        is_finite = self.arguments.nonfinite == "skip"
        recorded = blocks.valid if is_finite else (blocks.lengths > 0) | (blocks.lengths != blocks.lengths)
        if is_spike is not False:  # the gradient is not used
            coefficients = arrays.where(cast(Numbers, is_spike), 0.0, coefficients)
        clipped = coefficients < 1
        if not self.measure.is_one_block:
            recorded, clipped = arrays.any(recorded), arrays.any(clipped)
        recorded = recorded if is_finite or kept is True else recorded & kept
        shrinkage = math.nan  # if the level is not in the unit of the gradient
        if arrays.is_host and recorded and is_spike is False and isinstance(self.rule.threshold, Constant):
            several = self._shrinkage(blocks, coefficients) if clipped and not self.measure.is_one_block else 1.0
            shrinkage = float(coefficients) if self.measure.is_one_block else several
        seen = blocks.norm, blocks.lengths, thresholds, coefficients
        return StepValues(*seen, is_finite, recorded, clipped, skipped, shrinkage)

    def _shrinkage(self, blocks: Blocks, coefficients: Numbers) -> float:
        """Return the factor by which the gradient was multiplied, on the host."""
        if self.measure.gives_norm:
            return float(self.norm(blocks.lengths * coefficients) / blocks.norm)
        return float(self.arrays.median(coefficients, blocks.lengths > 0))

    def _weight_lengths(self) -> Numbers:
        is_usual = not (self.shards or self.without_numbers)
        weights = self.params if is_usual else [local(p) if is_real(p) else None for p in self.params]
        return self.lengths(Gradients(weights, are_plain=False))


def parameters(groups: Iterable[Group]) -> list[Tensor]:
    """Return the parameters of all groups."""
    return [p for group in groups for p in group["params"]]


def parts_of(rule: Clipping, groups: Sequence[Group]) -> list[Sequence[Group]]:
    """Return the groups of a clip set that share one state, which is in the first: all groups, or each alone."""
    return [groups] if rule.measured.is_one_block else [[group] for group in groups]


def source_of(arguments: Arguments, rule: Clipping, part: Sequence[Group]) -> Source:
    """Return a description of the norms: of which blocks, measured how, kept how. A history has norms of one source only."""
    measure, members = rule.measured, parameters(part)
    ids = [id(p) for p in members]
    blocks = frozenset(ids) if measure.is_one_block and len(ids) > 1 else tuple(ids)
    norm_type = arguments.norm_type if measure.norm_type is None else measure.norm_type
    kept = tuple(rule.threshold.memory(1, 2))
    return norm_type, measure.divisor, tuple(block_counts(rule, members)), kept, blocks


def _threshold_memory(group: Group, rule: Clipping, state: StateArrays, memories: Sequence[SimpleNamespace]) -> SimpleNamespace:
    """Return the state of a threshold in this group; reuse the object, with its derived values, if its arrays are the same.

    If the clip set is one block, the arrays have no dimension for blocks.
    """
    own = {name: state.of(group, name) for name in rule.threshold.memory(1, 2)}
    is_one_block = rule.measured.is_one_block
    for memory in memories:
        same = memory.is_one_block == is_one_block and memory.arrays.keys() == own.keys()
        if same and all(memory.arrays[name] is own[name] for name in own):
            return memory
    views = {name: array[..., 0] if is_one_block else array for name, array in own.items()}
    return SimpleNamespace(arrays=own, is_one_block=is_one_block, **views)


def _overlaps(tensor: Tensor) -> bool:
    """Return whether entries certainly share memory, so that torch refuses to change them in place."""
    return bool(torch._debug_has_internal_overlap(tensor) == 1)
