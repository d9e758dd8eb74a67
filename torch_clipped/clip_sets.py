"""Clip sets: the parameter groups with equal clipping arguments, which are measured and clipped together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from operator import is_
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .arguments import ARGUMENT_NAMES, Arguments, clipping_arguments
from .clipping import CLIPPING_TYPES, MEASURES, Clipping
from .decisions import uniform
from .history import namespace, push
from .measures import combine
from .memory import Group, block_counts, common_device, forget, prepare_memory, remembered, threshold_memory
from .suspicions import Watch
from .thresholds import Blocks, Constant

__all__ = ["ClipSet", "CurrentSets", "Record", "Totals"]


NORM, CLIPPED_NORM, THRESHOLD, COEFFICIENT = range(4)  # the places in the values of a step


class Record:
    """Counts (steps, clipped steps, skipped steps) and the values of the last step, as they stand in a parameter group.

    The values are the norm before and after clipping, the threshold and the coefficient.
    """

    def __init__(self, counts: Any, last: Any) -> None:
        self.counts, self.last = counts, last

    @property
    def step(self) -> Any:
        """The number of steps before this one."""
        return self.counts[0] if isinstance(self.counts, Tensor) else int(self.counts[0])

    def count(self, recorded: Any, clipped: Any) -> None:
        """Count one more step if it was ``recorded``, and as clipped if something was ``clipped``."""
        self.counts[0] += recorded
        self.counts[1] += clipped

    def keep(self, last: Sequence[Any], recorded: Any) -> None:
        """Keep these values of the step, if it was recorded."""
        if isinstance(self.last, Tensor):
            for place, value in enumerate(last):
                self.last[place] = torch.where(recorded, value, self.last[place])
        elif recorded:
            self.last[:] = last

    def count_skipped(self, skipped: Any) -> Any:
        """Count one more skipped step if it was; returns how many there are."""
        self.counts[2] += skipped
        return self.counts[2]


class Totals(Record):
    """Counts and norms of the whole gradient, kept in the optimizer's first parameter group.

    ``complete`` says whether the clip sets measure the norm of all there is to optimize, in one norm type.
    """

    def __init__(self, group: Group, complete: bool, watch: Watch) -> None:
        super().__init__(remembered(group, "steps"), remembered(group, "last"))
        self.complete, self.watch = complete, watch
        self.norms = SimpleNamespace(lengths=remembered(group, "norms")[:, 0], count=remembered(group, "norms_count")[..., 0])

    def remember(
        self, sets: Sequence[tuple[Sequence[Any], Any]], norm_type: float, recorded: Any, clipped: Any, crush: float
    ) -> None:
        """Count a step; keep the values of the whole gradient from those of its sets and whether each was recorded."""
        if recorded is np.False_:
            return
        self.count(recorded, clipped)
        last = sets[0][0] if len(sets) == 1 else self._combined(sets, norm_type)
        self.keep(last, recorded)
        if isinstance(recorded, np.bool_):  # elsewhere the host would have to wait to look
            self.watch.see(float(last[NORM]), crush)
        if self.complete:
            push(self.norms, last[NORM], namespace(last[NORM]).isfinite(last[NORM]) & recorded)

    def _combined(self, sets: Sequence[tuple[Sequence[Any], Any]], norm_type: float) -> list[Any]:
        xp = namespace(self.last)
        table = xp.stack([xp.stack([*last]) for last, _ in sets])  # (sets, 4)
        recorded = xp.stack([recorded for _, recorded in sets])
        norms = [
            combine(table[:, place], norm_type) if self.complete else table[0, place] * math.nan for place in (NORM, CLIPPED_NORM)
        ]
        medians = [_median(table[:, place], recorded) for place in (THRESHOLD, COEFFICIENT)]
        return norms + medians


class Cell(NamedTuple):
    """The blocks of a clip set whose memory stands in one parameter group."""

    blocks: slice
    groups: Sequence[Group]
    counts: list[int]  # of blocks in each parameter
    memory: SimpleNamespace

    def weights(self) -> list[Tensor]:
        """The parameters, as they stand in the groups now."""
        return [p for group in self.groups for p in group["params"]]


class ClipSet(Record):
    """The parameter groups that are clipped together, and their memory."""

    def __init__(
        self,
        arguments: Arguments,
        rule: Clipping,
        groups: Sequence[Group],
        indices: Sequence[int],
        device: torch.device,
        memories: Sequence[SimpleNamespace],
    ) -> None:
        self.arguments, self.rule, self.groups, self.indices, self.device = arguments, rule, groups, indices, device
        self.measure = MEASURES[rule.measure]
        self.is_one_block = self.measure.blocks_in is None
        self.crush = math.nan  # the last coefficient, where the level is a length
        for group in groups[1:] if self.is_one_block else ():
            forget(group, rule)  # the set's memory is in its first group; another one would be of another gradient
        super().__init__(remembered(groups[0], "set_steps"), remembered(groups[0], "set_last"))
        self.cells: list[Cell] = []
        for part in [groups] if self.is_one_block else [[group] for group in groups]:
            counts = block_counts(rule, [p for group in part for p in group["params"]])
            start = sum(map(sum, (cell.counts for cell in self.cells)))
            memory = threshold_memory(part[0], rule, memories)
            self.cells.append(Cell(slice(start, start + sum(counts)), part, counts, memory))
        self.counts_of_blocks = [count for cell in self.cells for count in cell.counts]

    def gradients(self) -> list[Tensor | None]:
        """The gradients in the order of the parameters; a sparse one is coalesced where it stands."""
        grads = [p.grad for group in self.groups for p in group["params"]]
        if any(g is not None and g.is_sparse and not g.is_coalesced() for g in grads):
            for p in (p for group in self.groups for p in group["params"]):
                if p.grad is not None and p.grad.is_sparse:
                    p.grad = p.grad.coalesce()
            grads = [p.grad for group in self.groups for p in group["params"]]
        return grads

    def lengths(self, tensors: Sequence[Tensor | None], counts: Sequence[int]) -> Any:
        """The length of each block of these tensors (blocks,), without a dimension where all is one block."""
        norms = self.measure.norms(tensors, counts, self.arguments.norm_type, self.device)
        return combine(norms, self.arguments.norm_type) if self.is_one_block else norms

    def norm(self, lengths: Any) -> Any:
        """The norm of the whole set, from the lengths of its blocks; NaN where it would cost another pass."""
        if not self.measure.gives_norm:
            return lengths.sum() * math.nan
        if lengths.ndim == 0:
            return lengths
        return lengths[0] if len(lengths) == 1 else combine(lengths, self.arguments.norm_type)

    def apply_rule(self, lengths: Any, valid: Any, step: Any) -> tuple[Any, Any]:
        """The threshold and the coefficient of each block."""
        norm = self.norm(lengths)
        if len(self.cells) == 1:
            return self._rule_of_cell(self.cells[0], lengths, valid, norm, step)
        parts = [self._rule_of_cell(cell, lengths[cell.blocks], valid[cell.blocks], norm, step) for cell in self.cells]
        thresholds, coefficients = zip(*parts, strict=True)
        concatenate = namespace(lengths).concatenate
        return concatenate(thresholds), concatenate(coefficients)

    def _rule_of_cell(self, cell: Cell, lengths: Any, valid: Any, norm: Any, step: Any) -> tuple[Any, Any]:
        arguments = self.arguments
        blocks = Blocks(lengths, valid, norm, step, lambda: self.lengths(cell.weights(), cell.counts))
        draw = partial(uniform, arguments.clipping_seed, self.indices[0], step)
        return self.rule(blocks, arguments.clipping_level, arguments.clipping_beta, cell.memory, draw)

    def remember(self, lengths: Any, valid: Any, thresholds: Any, coefficients: Any, recorded: Any, clipped: Any) -> list[Any]:
        """Count a step and keep its values, which are returned."""
        self.count(recorded, clipped)
        norm = self.norm(lengths)
        coefficient = _median(coefficients, valid) if self.measure.gives_norm else norm
        last = [norm, self.norm(lengths * coefficients), _median(thresholds, valid), coefficient]
        self.keep(last, recorded)
        if isinstance(self.rule.threshold, Constant) and isinstance(recorded, np.bool_):
            self.crush = float(_median(coefficients, valid))
        return last


def _median(values: Any, chosen: Any) -> Any:
    """The median of the chosen ones, if there are any."""
    if values.ndim == 0:
        return values
    if len(values) < 2:
        return values.sum() if len(values) else values.sum() * math.nan
    if isinstance(values, Tensor):
        values = torch.where(chosen, values, math.nan)
        middle = [values.nanquantile(0.5, interpolation=side) for side in ("lower", "higher")]  # "linear" makes NaN of two infs
        return (middle[0] + middle[1]) / 2
    return np.median(values[chosen]) if chosen.any() else np.float64(math.nan)


class CurrentSets:
    """The clip sets of parameter groups as these are now, made anew only where something was edited."""

    def __init__(self) -> None:
        self._made: tuple[list[ClipSet], Totals] | None = None
        self._watch = Watch()
        self._shape: list[tuple[int, torch.device | None]] = []
        self._written: list[Any] = []

    def of(self, groups: Sequence[Group]) -> tuple[list[ClipSet], Totals]:
        """The clip sets of these groups; ValueError if a group holds nonsense."""
        shape = [(len(group["params"]), group["params"][0].device if group["params"] else None) for group in groups]
        if self._made is None or shape != self._shape or not all(map(is_, _written(groups), self._written)):
            before = self._made[0] if self._made else []
            memories = [cell.memory for clip_set in before for cell in clip_set.cells]
            self._made = _make_clip_sets(groups, memories, self._watch)
            self._shape, self._written = shape, _written(groups)
        return self._made


def _written(groups: Sequence[Group]) -> list[Any]:
    """The objects that decide about clip sets: the groups and the clipping arguments in them."""
    return [*groups, *(group[name] for group in groups for name in ARGUMENT_NAMES)]


def _make_clip_sets(groups: Sequence[Group], memories: Sequence[SimpleNamespace], watch: Watch) -> tuple[list[ClipSet], Totals]:
    device = common_device(groups)
    members: dict[Arguments, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(clipping_arguments(group, group, i), []).append(i)
    for arguments, indices in members.items():
        for i in indices:
            groups[i].update(arguments.as_dict())
            prepare_memory(groups[i], arguments, device)
    rules = [(CLIPPING_TYPES[arguments.clipping_type], arguments, indices) for arguments, indices in members.items()]
    sets = [
        ClipSet(arguments, rule, [groups[i] for i in indices], indices, device, memories)
        for rule, arguments, indices in rules
        if rule is not None
    ]
    complete = (
        len(sets) == len(members)
        and all(clip_set.measure.gives_norm for clip_set in sets)
        and len({clip_set.arguments.norm_type for clip_set in sets}) == 1
    )
    return sets, Totals(groups[0], complete, watch)
