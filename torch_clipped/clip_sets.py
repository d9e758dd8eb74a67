"""Clip sets: the parameter groups with equal clipping arguments, which are measured and clipped together."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from functools import cache, partial
from operator import is_
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .arguments import ARGUMENT_NAMES, MEMORY, Arguments, clipping_arguments
from .clipping import CLIPPING_TYPES, MEASURES, Clipping
from .decisions import uniform
from .distributed_checks import refuse_pieces
from .history import namespace
from .measures import combine
from .memory import Arrays, Group, common_device, install, is_real, measured_counts, prepared_memory
from .records import Record, Totals, median
from .sharding import Shards, lay_out_gradients, local, process_groups
from .suspicions import Watch, warn_of_kept_level
from .thresholds import Blocks, Constant

__all__ = ["ClipSet", "CurrentSets"]


class Cell(NamedTuple):
    """The blocks of a clip set whose state stands in one parameter group."""

    blocks: slice
    memory: SimpleNamespace
    group: Group
    source: tuple[Any, ...]  # of the norms: see _source


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
        arrays: Arrays,
        before: Sequence[ClipSet],
    ) -> None:
        self.arguments, self.rule, self.groups, self.indices, self.device = arguments, rule, groups, indices, device
        self.measure = MEASURES[rule.measure]
        self.is_one_block = self.measure.blocks_in is None
        self.crush = math.nan  # the last coefficient, where the level is a length
        super().__init__(arrays.of(groups[0], "set_steps"), arrays.of(groups[0], "set_last"))
        memories = [cell.memory for clip_set in before for cell in clip_set.cells]
        self.cells: list[Cell] = []
        self.norm_counts: list[int] = []  # how many norms are measured in each parameter
        for part in _parts(rule, groups):
            start = sum(self.norm_counts)
            self.norm_counts += measured_counts(rule, _params(part))
            memory = _threshold_memory(part[0], rule, arrays, memories)
            self.cells.append(Cell(slice(start, sum(self.norm_counts)), memory, part[0], _source(arguments, rule, part)))
        self.shards = None if ranks is None else self._find_shards(ranks, before)
        self._own_counts = self.shards.counts if self.shards else self.norm_counts
        self._without_numbers = [p for p in self.weights() if not is_real(p)]

    @property
    def is_dry_run(self) -> bool:
        """Whether there are gradients without numbers, on the meta device or in FakeTensorMode: they cannot be clipped."""
        return any(p.grad is not None for p in self._without_numbers)

    def has_grown(self) -> bool:
        """Return whether parameters have other numbers of blocks than before, since their shapes have changed."""
        return self.rule.measure == "unit" and measured_counts(self.rule, self.weights()) != self.norm_counts

    def _find_shards(self, ranks: Sequence[Any], before: Sequence[ClipSet]) -> Shards:
        made_of = self.weights(), self.norm_counts, ranks, self.device
        known = (clip_set.shards for clip_set in before if clip_set.shards and clip_set.shards.are_of(*made_of))
        return next(known, None) or Shards(*made_of)

    def weights(self) -> list[Tensor]:
        """The parameters, as they stand in the groups now."""
        return _params(self.groups)

    def gradients(self) -> list[Tensor | None]:
        """Return the gradients in the order of the parameters, of sharded ones the rank's own part, ready to be changed in place.

        Sparse ones are coalesced. One whose entries share memory, as those of ``torch.autograd.grad`` may, becomes dense.
        """
        weights = self.weights()
        if self.shards:
            lay_out_gradients(weights)
        grads = [p.grad for p in weights]
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            if grad.is_sparse:
                if not grad.is_coalesced():
                    grads[i] = weights[i].grad = grad.coalesce()
            elif not grad.is_contiguous() and _overlaps(grad):
                grads[i] = weights[i].grad = grad.contiguous()
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
        return self.lengths([local(p) if is_real(p) else None for p in self.weights()])

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
    """The clip sets of parameter groups as these are now, made anew only where something was edited or moved."""

    def __init__(self) -> None:
        self._sets: list[ClipSet] = []
        self._totals: Totals | None = None
        self._arrays = Arrays()
        self._watch = Watch()
        self._shape: list[tuple[int, list[torch.device]]] = []
        self._written: list[Any] = []
        self._arguments: list[Arguments] = []  # of the groups at the beginning of what was written

    def of(self, groups: Sequence[Group], own: Container[str] = ()) -> tuple[list[ClipSet], Totals]:
        """Return the clip sets of these groups, in which the keys ``own`` are the optimizer's.

        Raises:
            ValueError: a group holds a value that is wrong.
            TypeError: a group has a key that looks like a clipping argument and is none.
        """
        if self._totals is None or _shape(groups) != self._shape or not self._is_current(groups):
            self._make(groups, own)
            self._shape, self._written = _shape(groups), _written(groups)
        assert self._totals is not None
        return self._sets, self._totals

    def put_back(self) -> None:
        """Make the groups hold the state as it is, also where torch has moved their tensors."""
        self._arrays.put_back()

    def _is_current(self, groups: Sequence[Group]) -> bool:
        return (
            all(map(is_, _written(groups), self._written))
            and self._arrays.are_current()
            and not any(clip_set.has_grown() for clip_set in self._sets)
        )

    def _make(self, groups: Sequence[Group], own: Container[str]) -> None:
        self.put_back()
        device = common_device(groups)
        found = [clipping_arguments(group, group, i, own) for i, group in enumerate(groups)]
        refuse_pieces([group | arguments.as_dict() for group, arguments in zip(groups, found, strict=True)])
        members: dict[Arguments, list[int]] = {}
        for i, arguments in enumerate(found):
            members.setdefault(arguments, []).append(i)
        rules = [(CLIPPING_TYPES[arguments.clipping_type], arguments, indices) for arguments, indices in members.items()]
        if self._totals is not None:
            home = groups[0] if groups else self._totals.group
            _move_state(self._totals.group, home, ("steps", "last", "norms", "norms_count"))
            for rule, arguments, indices in rules:
                if rule is not None:
                    members_now = [groups[i] for i in indices]
                    self._move_counts(members_now)
                    self._move_or_forget(rule, arguments, members_now)
        memories = [prepared_memory(group, arguments, device) for group, arguments in zip(groups, found, strict=True)]
        for group, arguments, memory in zip(groups, found, memories, strict=True):
            group.update(arguments.as_dict())
            install(group, memory)
        ranks = process_groups(_params(groups))  # for all sets alike, to agree on a skip
        arrays = Arrays(self._arrays)
        sets = [
            ClipSet(arguments, rule, [groups[i] for i in indices], indices, device, ranks, arrays, self._sets)
            for rule, arguments, indices in rules
            if rule is not None
        ]
        complete = (
            len(sets) == len(members)
            and all(clip_set.measure.gives_norm for clip_set in sets)
            and len({clip_set.arguments.norm_type for clip_set in sets}) == 1
        )
        if groups or self._totals is None:
            self._totals = Totals(groups[0] if groups else _home(), arrays, complete, self._watch)
            self._arrays = arrays
        self._sets = sets
        written, self._arguments = list(zip(self._written, self._arguments, strict=False)), found
        for i, (group, arguments) in enumerate(zip(groups, found, strict=True)):
            former = next((former for known, former in written if known is group), arguments)
            warn_of_kept_level(i, former, arguments)

    def _move_counts(self, groups: Sequence[Group]) -> None:
        """Find the counts of a clip set whose groups stand in another order."""
        for former in self._sets:
            if {id(group) for group in former.groups} == {id(group) for group in groups}:
                _move_state(former.groups[0], groups[0], ("set_steps", "set_last"))

    def _move_or_forget(self, rule: Clipping, arguments: Arguments, groups: Sequence[Group]) -> None:
        """Find the state of a clip set where it was, or start it anew where its norms would be those of another gradient."""
        cells = [cell for clip_set in self._sets for cell in clip_set.cells]
        names = rule.threshold.memory(1, 2)
        for part in _parts(rule, groups) if names else ():
            source = _source(arguments, rule, part)
            former = next((cell for cell in cells if cell.source == source), None)
            for group in part[1:] if former else part:
                for name in names:
                    if former is None or group is not former.group:
                        group.pop(MEMORY + name, None)
            if former:
                _move_state(former.group, part[0], names)


def _params(groups: Iterable[Group]) -> list[Tensor]:
    return [p for group in groups for p in group["params"]]


def _parts(rule: Clipping, groups: Sequence[Group]) -> list[Sequence[Group]]:
    """Return the groups of a clip set that keep one state between them, in the first: all, or each its own."""
    return [groups] if MEASURES[rule.measure].blocks_in is None else [[group] for group in groups]


def _source(arguments: Arguments, rule: Clipping, part: Sequence[Group]) -> tuple[Any, ...]:
    """Return what norms are taken of, how, and what is kept of them: only norms that agree in it make one history."""
    measure, params = MEASURES[rule.measure], [id(p) for p in _params(part)]
    blocks = frozenset(params) if measure.blocks_in is None and len(params) > 1 else tuple(params)
    return measure.norms, arguments.norm_type, tuple(rule.threshold.memory(1, 2)), blocks


def _move_state(former: Group, group: Group, names: Iterable[str]) -> None:
    if former is not group:
        for name in names:
            if MEMORY + name in former:
                group[MEMORY + name] = former.pop(MEMORY + name)


def _home() -> Group:
    """Return a place for the totals of an optimizer without parameter groups."""
    return dict(prepared_memory({"params": []}, Arguments("none"), torch.device("cpu")))


def _threshold_memory(group: Group, rule: Clipping, arrays: Arrays, memories: Sequence[SimpleNamespace]) -> SimpleNamespace:
    """Return the state of a threshold in this group: if its arrays are the same, the same object, with what was derived.

    Where the clip set is one block, its dimension is left out.
    """
    own = {name: arrays.of(group, name) for name in rule.threshold.memory(1, 2)}
    one_block = MEASURES[rule.measure].blocks_in is None
    for memory in memories:
        same = memory.one_block == one_block and memory.arrays.keys() == own.keys()
        if same and all(memory.arrays[name] is own[name] for name in own):
            return memory
    return SimpleNamespace(
        arrays=own, one_block=one_block, **{name: array[..., 0] if one_block else array for name, array in own.items()}
    )


def _overlaps(tensor: Tensor) -> bool:
    """Return whether entries surely share memory, so that torch refuses to change them in place."""
    return bool(torch._debug_has_internal_overlap(tensor) == 1)


def _shape(groups: Sequence[Group]) -> list[tuple[int, list[torch.device]]]:
    """Return how many keys each group has, and where its parameters are."""
    return [(len(group), [p.device for p in group["params"]]) for group in groups]


def _written(groups: Sequence[Group]) -> list[Any]:
    """Return the objects that decide about clip sets: the groups, the clipping arguments and the parameters in them."""
    written = [*groups, *(group[name] for group in groups for name in ARGUMENT_NAMES)]
    for group in groups:
        written += group["params"]
    return written
