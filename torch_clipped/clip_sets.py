"""Clip sets: the parameter groups with equal clipping arguments, which are measured and clipped together."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from functools import cache, partial
from operator import is_
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .arguments import ARGUMENT_NAMES, Arguments, clipping_arguments
from .clipping import CLIPPING_TYPES, MEASURES, Clipping
from .decisions import uniform
from .distributed_checks import refuse_pieces
from .history import namespace
from .measures import combine
from .memory import Group, common_device, forget, measured_counts, prepare_memory, remembered, threshold_memory
from .records import Record, Totals, median
from .sharding import Shards, lay_out_gradients, local, process_groups
from .suspicions import Watch
from .thresholds import Blocks, Constant

__all__ = ["ClipSet", "CurrentSets"]


class Cell(NamedTuple):
    """The blocks of a clip set whose memory stands in one parameter group."""

    blocks: slice
    memory: SimpleNamespace


class ClipSet(Record):
    """The parameter groups that are clipped together, and their memory."""

    def __init__(
        self,
        arguments: Arguments,
        rule: Clipping,
        groups: Sequence[Group],
        indices: Sequence[int],
        device: torch.device,
        ranks: Sequence[Any] | None,
        before: Sequence[ClipSet],
    ) -> None:
        self.arguments, self.rule, self.groups, self.indices, self.device = arguments, rule, groups, indices, device
        self.measure = MEASURES[rule.measure]
        self.is_one_block = self.measure.blocks_in is None
        self.crush = math.nan  # the last coefficient, where the level is a length
        for group in groups[1:] if self.is_one_block else ():
            forget(group, rule)  # the set's memory is in its first group; another one would be of another gradient
        super().__init__(remembered(groups[0], "set_steps"), remembered(groups[0], "set_last"))
        memories = [cell.memory for clip_set in before for cell in clip_set.cells]
        self.cells: list[Cell] = []
        self.norm_counts: list[int] = []  # how many norms are measured in each parameter
        for part in [groups] if self.is_one_block else [[group] for group in groups]:
            start = sum(self.norm_counts)
            self.norm_counts += measured_counts(rule, [p for group in part for p in group["params"]])
            self.cells.append(Cell(slice(start, sum(self.norm_counts)), threshold_memory(part[0], rule, memories)))
        self.shards = None if ranks is None else self._find_shards(ranks, before)
        self._own_counts = self.shards.counts if self.shards else self.norm_counts

    def _find_shards(self, ranks: Sequence[Any], before: Sequence[ClipSet]) -> Shards:
        made_of = self.weights(), self.norm_counts, ranks, self.device
        known = (clip_set.shards for clip_set in before if clip_set.shards and clip_set.shards.are_of(*made_of))
        return next(known, None) or Shards(*made_of)

    def weights(self) -> list[Tensor]:
        """The parameters, as they stand in the groups now."""
        return [p for group in self.groups for p in group["params"]]

    def gradients(self) -> list[Tensor | None]:
        """The gradients in the order of the parameters, of sharded ones the rank's own part; a sparse one is coalesced."""
        if self.shards:
            lay_out_gradients(self.weights())
        grads = [p.grad for group in self.groups for p in group["params"]]
        if any(g is not None and g.is_sparse and not g.is_coalesced() for g in grads):
            for p in (p for group in self.groups for p in group["params"]):
                if p.grad is not None and p.grad.is_sparse:
                    p.grad = p.grad.coalesce()
            grads = [p.grad for group in self.groups for p in group["params"]]
        return [None if grad is None else local(grad) for grad in grads] if self.shards else grads

    def norms(self, tensors: Sequence[Tensor | None]) -> Any:
        """What is measured: the norm of each block, or of each tensor where all are one block."""
        norms = self.measure.norms(tensors, self._own_counts, self.arguments.norm_type, self.device)
        if self.shards is None:
            return norms
        return self.shards.lengths(norms, self.arguments.norm_type if self.measure.gives_norm else math.inf)

    def lengths(self, tensors: Sequence[Tensor | None]) -> Any:
        """The length of each block of these tensors (blocks,), without a dimension where all is one block."""
        norms = self.norms(tensors)
        return combine(norms, self.arguments.norm_type) if self.is_one_block else norms

    def shrink_(self, grads: Sequence[Tensor | None], coefficients: Any, thresholds: Any) -> None:
        """Make the blocks of the gradients as short as these values of each block say."""
        if self.shards and not self.is_one_block:
            coefficients, thresholds = self.shards.local(coefficients), self.shards.local(thresholds)
        self.measure.shrink_(grads, self._own_counts, coefficients, thresholds)

    def norm(self, lengths: Any) -> Any:
        """The norm of the whole set, from the lengths of its blocks; NaN where it would cost another pass."""
        if not self.measure.gives_norm:
            return lengths.sum() * math.nan
        if lengths.ndim == 0:
            return lengths
        return lengths[0] if len(lengths) == 1 else combine(lengths, self.arguments.norm_type)

    def apply_rule(self, lengths: Any, valid: Any, step: Any) -> tuple[Any, Any]:
        """The threshold and the coefficient of each block."""
        whole = Blocks(lengths, valid, self.norm(lengths), step, self._weight_lengths)
        if len(self.cells) == 1:
            return self._rule_of_cell(self.cells[0], whole)
        whole = whole._replace(weight_lengths=cache(self._weight_lengths))
        parts = [self._rule_of_cell(cell, whole.part(cell.blocks)) for cell in self.cells]
        thresholds, coefficients = zip(*parts, strict=True)
        concatenate = namespace(lengths).concatenate
        return concatenate(thresholds), concatenate(coefficients)

    def _rule_of_cell(self, cell: Cell, blocks: Blocks) -> tuple[Any, Any]:
        arguments = self.arguments
        draw = partial(uniform, arguments.clipping_seed, self.indices[0], blocks.step)
        return self.rule(blocks, arguments.clipping_level, arguments.clipping_beta, cell.memory, draw)

    def _weight_lengths(self) -> Any:
        return self.lengths([local(p) for p in self.weights()])

    def remember(self, lengths: Any, valid: Any, thresholds: Any, coefficients: Any, recorded: Any, clipped: Any) -> list[Any]:
        """Count a step and keep its values, which are returned."""
        self.count(recorded, clipped)
        norm = self.norm(lengths)
        coefficient = median(coefficients, valid) if self.measure.gives_norm else norm
        last = [norm, self.norm(lengths * coefficients), median(thresholds, valid), coefficient]
        self.keep(last, recorded)
        if isinstance(self.rule.threshold, Constant) and isinstance(recorded, np.bool_):
            self.crush = float(median(coefficients, valid))
        return last


class CurrentSets:
    """The clip sets of parameter groups as these are now, made anew only where something was edited."""

    def __init__(self) -> None:
        self._made: tuple[list[ClipSet], Totals] | None = None
        self._watch = Watch()
        self._shape: list[tuple[int, int, torch.device | None]] = []
        self._written: list[Any] = []

    def of(self, groups: Sequence[Group], own: Container[str] = ()) -> tuple[list[ClipSet], Totals]:
        """The clip sets of these groups, in which the keys ``own`` are the optimizer's; ValueError if a group holds nonsense."""
        if self._made is None or _shape(groups) != self._shape or not all(map(is_, _written(groups), self._written)):
            before = self._made[0] if self._made else []
            self._made = _make_clip_sets(groups, before, self._watch, own)
            self._shape, self._written = _shape(groups), _written(groups)
        return self._made


def _shape(groups: Sequence[Group]) -> list[tuple[int, int, torch.device | None]]:
    """How many entries and parameters each group has, and where its first one is."""
    params = [group["params"] for group in groups]
    return [(len(group), len(ps), ps[0].device if ps else None) for group, ps in zip(groups, params, strict=True)]


def _written(groups: Sequence[Group]) -> list[Any]:
    """The objects that decide about clip sets: the groups, the clipping arguments and the parameters in them."""
    written = [*groups, *(group[name] for group in groups for name in ARGUMENT_NAMES)]
    for group in groups:
        written += group["params"]
    return written


def _make_clip_sets(
    groups: Sequence[Group], before: Sequence[ClipSet], watch: Watch, own: Container[str]
) -> tuple[list[ClipSet], Totals]:
    device = common_device(groups)
    members: dict[Arguments, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(clipping_arguments(group, group, i, own), []).append(i)
    for arguments, indices in members.items():
        for i in indices:
            groups[i].update(arguments.as_dict())
            prepare_memory(groups[i], arguments, device)
    refuse_pieces(groups)
    rules = [(CLIPPING_TYPES[arguments.clipping_type], arguments, indices) for arguments, indices in members.items()]
    ranks = process_groups([p for group in groups for p in group["params"]])  # for all sets alike, to agree on a skip
    sets = [
        ClipSet(arguments, rule, [groups[i] for i in indices], indices, device, ranks, before)
        for rule, arguments, indices in rules
        if rule is not None
    ]
    complete = (
        len(sets) == len(members)
        and all(clip_set.measure.gives_norm for clip_set in sets)
        and len({clip_set.arguments.norm_type for clip_set in sets}) == 1
    )
    return sets, Totals(groups[0], complete, watch)
