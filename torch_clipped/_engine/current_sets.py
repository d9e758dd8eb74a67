"""Clip sets of an optimizer's parameter groups, rebuilt after an edit or a move."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from operator import is_
from typing import cast

import torch
from torch import Tensor

from ..clipping import Clipping
from .arguments import ARGUMENT_NAMES, MEMORY, Arguments, clipping_arguments
from .arrays import HOST, AcceleratorArrays, Arrays, accumulation_dtype
from .checks import refuse_pieces
from .clip_sets import ClipSet, parameters, parts_of, source_of
from .monitor import StepMonitor, warn_of_kept_level
from .sharding import process_groups
from .state import StateArrays, common_device, install, prepared_memory
from .statistics import TotalStatistics
from .types import Group

__all__ = ["CurrentSets"]


class CurrentSets:
    """Clip sets of the parameter groups, rebuilt only after an edit or a move.

    Args:
        is_accelerated: whether the numbers of the clip sets are tensors, which the host does not read. Default: None, true if
            norms are combined on another device than the CPU.
    """

    def __init__(self, is_accelerated: bool | None = None) -> None:
        self._is_accelerated, self._accelerator = is_accelerated, AcceleratorArrays()
        self._levels: dict[int, tuple[Group, Tensor]] = {}  # by the id of each clip set's first group, on an accelerator
        self._sets: list[ClipSet] = []
        self._shaped: list[ClipSet] = []  # sets whose blocks depend on shapes
        self._totals: TotalStatistics | None = None
        self._state = StateArrays()
        self._monitor = StepMonitor()
        self._shape: list[object] = []
        self._written: list[object] = []
        self._arguments: list[Arguments] = []  # of the groups, at the last rebuild

    def of(self, groups: Sequence[Group], own: Container[str] = ()) -> tuple[list[ClipSet], TotalStatistics]:
        """Return the clip sets of these groups; the keys ``own`` are arguments of the optimizer.

        Raises:
            ValueError: a group holds an invalid value.
            TypeError: a group has a key that looks like a clipping argument but is not one.
        """
        written, shape = _written(groups)
        is_as_it_was = shape == self._shape and all(map(is_, written, self._written)) and self._state.are_current()
        if self._totals is None or not is_as_it_was or True in [clip_set.has_grown() for clip_set in self._shaped]:
            self._make(groups, own)
            self._written, self._shape = _written(groups)
        assert self._totals is not None
        return self._sets, self._totals

    def refill_levels(self) -> None:
        """Write the levels of the groups into their tensors on an accelerator, where a captured CUDA graph reads them."""
        for group, level in self._levels.values():
            level.fill_(group["clipping_level"])

    def put_back(self) -> None:
        """Write the current state into the groups, also if torch has moved their tensors."""
        for record in [self._totals, *(clip_set.record for clip_set in self._sets)]:
            if record is not None:
                record.write_down()
        self._state.put_back()

    def _make(self, groups: Sequence[Group], own: Container[str]) -> None:
        self.put_back()
        device = common_device(groups)
        found = [clipping_arguments(group, group, i, own) for i, group in enumerate(groups)]
        refuse_pieces([group | arguments.as_dict() for group, arguments in zip(groups, found, strict=True)])
        members: dict[Arguments, list[int]] = {}
        for i, arguments in enumerate(found):
            members.setdefault(arguments, []).append(i)
        rules = [(arguments.rule, arguments, indices) for arguments, indices in members.items()]
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
        ranks = process_groups(parameters(groups))  # the same for all sets, to agree on a skip
        is_accelerated = device.type != "cpu" if self._is_accelerated is None else self._is_accelerated
        arrays: Arrays = self._accelerator if is_accelerated else HOST
        state = StateArrays(arrays.is_host, self._state)
        sets = [
            ClipSet(
                *(arguments, rule, [groups[i] for i in indices], indices, device, arrays, ranks, state, self._sets),
                self._level(groups[indices[0]], arguments, device) if is_accelerated else arguments.clipping_level,
            )
            for rule, arguments, indices in rules
            if rule is not None
        ]
        norm_types = {clip_set.norm_type for clip_set in sets if clip_set.measure.gives_norm}
        is_complete = len(sets) == len(members) and len(norm_types) == 1 and all(s.measure.gives_norm for s in sets)
        if groups or self._totals is None:
            home, norm_type = groups[0] if groups else _home(), norm_types.pop() if norm_types else 2.0
            self._totals = TotalStatistics(home, state, arrays, is_complete, norm_type, self._monitor)
            self._state = state
        self._sets, self._shaped = sets, [clip_set for clip_set in sets if clip_set.depends_on_shapes]
        written, self._arguments = list(zip(self._written, self._arguments, strict=False)), found
        for i, (group, arguments) in enumerate(zip(groups, found, strict=True)):
            former = next((former for known, former in written if known is group), arguments)
            warn_of_kept_level(i, former, arguments)

    def _level(self, group: Group, arguments: Arguments, device: torch.device) -> Tensor:
        """Return the level as a tensor; it stays the same object, so that a captured CUDA graph reads a changed level."""
        known, level = self._levels.get(id(group), (None, None))
        if known is not group or level is None or level.device != device:
            level = torch.zeros((), dtype=accumulation_dtype(device), device=device)
            self._levels[id(group)] = group, level
        return level.fill_(cast(float, arguments.clipping_level))

    def _move_counts(self, groups: Sequence[Group]) -> None:
        """Move the counts of a clip set whose groups have changed their order."""
        for former in self._sets:
            if {id(group) for group in former.groups} == {id(group) for group in groups}:
                _move_state(former.groups[0], groups[0], ("set_steps", "set_last"))

    def _move_or_forget(self, rule: Clipping, arguments: Arguments, groups: Sequence[Group]) -> None:
        """Move the state of a clip set to its present groups, or drop it if its norms are of another gradient."""
        known = [known_part for clip_set in self._sets for known_part in clip_set.parts]
        names = rule.threshold.memory(1, 2)
        for part in parts_of(rule, groups) if names else ():
            source = source_of(arguments, rule, part)
            former = next((known_part for known_part in known if known_part.source == source), None)
            for group in part[1:] if former else part:
                for name in names:
                    if former is None or group is not former.group:
                        group.pop(MEMORY + name, None)
            if former:
                _move_state(former.group, part[0], names)


def _move_state(former: Group, group: Group, names: Iterable[str]) -> None:
    if former is not group:
        for name in names:
            if MEMORY + name in former:
                group[MEMORY + name] = former.pop(MEMORY + name)


def _home() -> Group:
    """Return a group that holds the totals of an optimizer without parameter groups."""
    return dict(prepared_memory({"params": []}, Arguments("none"), torch.device("cpu")))


def _written(groups: Sequence[Group]) -> tuple[list[object], list[object]]:
    """Return the inputs of clip sets (groups, clipping arguments, parameters), and the groups' sizes and devices."""
    written: list[object] = [*groups]
    shape: list[object] = []
    for group in groups:
        params = group["params"]
        written += [group[name] for name in ARGUMENT_NAMES]
        written += params
        shape += [len(group), *[p.device for p in params]]
    return written, shape
