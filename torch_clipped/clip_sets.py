"""Clip sets: the parameter groups with equal clipping arguments, and what is remembered about them.

Everything remembered stands as plain tensors in the parameter groups, under keys that every group has from the start:

    clipping_lengths, clipping_count            the memory of thresholds that have one: of the whole set in its first group,
                                                or of each tensor in the tensor's own group
    clipping_set_steps, clipping_last           counts and last values of the set, in its first group
    clipping_steps, clipping_norms, clipping_norms_count
                                                counts and norms of the whole gradient, in the optimizer's first group

On the CPU the engine works on numpy views of these tensors, so that remembering costs no tensor operation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arguments import Arguments
from .clipping import CLIPPING_TYPES, MEASURES, Clipping
from .decisions import uniform
from .history import accumulation_dtype, namespace, new_history, on_host, push, resized
from .measures import combine
from .thresholds import Blocks

__all__ = ["ARGUMENT_NAMES", "ClipSet", "Group", "Totals", "common_device", "is_memory", "make_clip_sets", "prepare_memory"]

Group = dict[str, Any]
ARGUMENT_NAMES = tuple(Arguments().as_dict())


def is_memory(key: str) -> bool:
    """Whether this key of a parameter group is something that clipping remembers."""
    return key.startswith("clipping_") and key not in ARGUMENT_NAMES


def block_counts(rule: Clipping, params: Sequence[Tensor]) -> list[int]:
    """How many blocks each parameter has; [1] where all are one block."""
    blocks_in = MEASURES[rule.measure].blocks_in
    return [1] if blocks_in is None else [blocks_in(p) for p in params]


def prepare_memory(group: Group, arguments: Arguments, device: torch.device) -> None:
    """Give a parameter group the memory its arguments ask for, on ``device``; what it has and still fits is kept.

    A history whose window differs keeps its newest lengths.
    """
    rule, window = CLIPPING_TYPES[arguments.clipping_type], arguments.clipping_window
    norms = new_history(window, 1)
    fresh = {
        "steps": torch.zeros(3, dtype=torch.int64),
        "set_steps": torch.zeros(3, dtype=torch.int64),
        "last": torch.full((4,), torch.nan, dtype=torch.float64),
        "norms": norms["lengths"],
        "norms_count": norms["count"],
    }
    if rule is not None:
        fresh |= rule.threshold.memory(sum(block_counts(rule, group["params"])), window)
    for lengths, count in (("norms", "norms_count"), ("lengths", "count")):
        kept = group.get(f"clipping_{lengths}")
        if lengths in fresh and kept is not None and len(kept) != window:
            group[f"clipping_{lengths}"], group[f"clipping_{count}"] = resized(kept, group[f"clipping_{count}"], window).values()
    for name, value in fresh.items():
        kept = group.get(f"clipping_{name}")
        value = value if kept is None or kept.shape != value.shape else kept
        dtype = accumulation_dtype(device) if value.is_floating_point() else value.dtype
        group[f"clipping_{name}"] = value.to(device, dtype)


class Counts:
    """Three numbers that stand in a parameter group: steps, clipped steps, skipped steps."""

    def __init__(self, counts: Tensor) -> None:
        self.counts = _view(counts)

    def count(self, recorded: Any, clipped: Any) -> None:
        """Count one more step if it was ``recorded``, and as clipped if something was ``clipped``."""
        self.counts[0] += recorded
        self.counts[1] += clipped

    def count_skipped(self, skipped: Any) -> Any:
        """Count one more skipped step if it was; returns how many there are."""
        self.counts[2] += skipped
        return self.counts[2]


class Totals(Counts):
    """Counts and norms of the whole gradient, kept in the optimizer's first parameter group.

    ``complete`` says whether the clip sets measure the norm of all there is to optimize, in one norm type.
    """

    def __init__(self, group: Group, complete: bool) -> None:
        super().__init__(group["clipping_steps"])
        self.complete = complete
        self.norms = SimpleNamespace(lengths=_view(group["clipping_norms"]), count=_view(group["clipping_norms_count"]))

    @property
    def step(self) -> Any:
        """The number of steps before this one, from which random decisions draw."""
        return self.counts[0] if isinstance(self.counts, Tensor) else int(self.counts[0])

    def remember(self, set_norms: Sequence[Any], norm_type: float, recorded: Any, clipped: Any) -> None:
        """Count a step, and record the norm of the whole gradient where it is known."""
        self.count(recorded, clipped)
        if self.complete:
            xp = namespace(self.norms.lengths)
            norm = set_norms[0] if len(set_norms) == 1 else combine(xp.stack(set_norms), norm_type)
            push(self.norms, norm[None], (xp.isfinite(norm) & recorded)[None])


class ClipSet(Counts):
    """The parameter groups that are clipped together, and their memory."""

    def __init__(
        self,
        arguments: Arguments,
        rule: Clipping,
        groups: Sequence[Group],
        indices: Sequence[int],
        device: torch.device,
    ) -> None:
        self.arguments, self.rule, self.groups, self.indices, self.device = arguments, rule, groups, indices, device
        self.measure = MEASURES[rule.measure]
        self.is_one_block = self.measure.blocks_in is None
        super().__init__(groups[0]["clipping_set_steps"])
        self.last = _view(groups[0]["clipping_last"])
        names = rule.threshold.memory(1, 2)
        self.counts_of_blocks: list[int] = []
        self.cells: list[tuple[slice, SimpleNamespace]] = []
        for group in groups[:1] if self.is_one_block else groups:
            memory = SimpleNamespace(**{name: _view(group[f"clipping_{name}"]) for name in names})
            start = sum(self.counts_of_blocks)
            self.counts_of_blocks += block_counts(rule, group["params"])
            self.cells.append((slice(start, sum(self.counts_of_blocks)), memory))

    def gradients(self) -> list[Tensor | None]:
        """The gradients in the order of the parameters; a sparse one is coalesced where it stands."""
        grads = [p.grad for group in self.groups for p in group["params"]]
        if any(g is not None and g.is_sparse and not g.is_coalesced() for g in grads):
            for p in (p for group in self.groups for p in group["params"]):
                if p.grad is not None and p.grad.is_sparse:
                    p.grad = p.grad.coalesce()
            grads = [p.grad for group in self.groups for p in group["params"]]
        return grads

    def lengths(self, grads: Sequence[Tensor | None]) -> Any:
        """The length of each block (blocks,)."""
        norms = self.measure.norms(grads, self.counts_of_blocks, self.arguments.norm_type, self.device)
        return combine(norms, self.arguments.norm_type)[None] if self.is_one_block else norms

    def norm(self, lengths: Any) -> Any:
        """The norm of the whole set, from the lengths of its blocks; NaN where it would cost another pass."""
        if not self.measure.gives_norm:
            return lengths[0] * math.nan
        return lengths[0] if len(lengths) == 1 else combine(lengths, self.arguments.norm_type)

    def apply_rule(self, lengths: Any, valid: Any, step: Any) -> tuple[Any, Any]:
        """The threshold and the coefficient of each block."""
        arguments = self.arguments

        def draw() -> Any:
            return uniform(arguments.clipping_seed, self.indices[0], step)

        def weight_lengths(cell: slice) -> Any:
            return self.lengths([p for group in self.groups for p in group["params"]])[cell]

        norm = self.norm(lengths)
        parts = [
            self.rule(
                Blocks(lengths[cell], valid[cell], norm, partial(weight_lengths, cell)),
                arguments.clipping_level,
                arguments.clipping_beta,
                memory,
                draw,
            )
            for cell, memory in self.cells
        ]
        if len(parts) == 1:
            return parts[0]
        thresholds, coefficients = zip(*parts, strict=True)
        concatenate = namespace(lengths).concatenate
        return concatenate(thresholds), concatenate(coefficients)

    def remember(self, lengths: Any, thresholds: Any, coefficients: Any, recorded: Any, clipped: Any) -> Any:
        """Count a step and keep its last values; returns the norm of the set."""
        self.count(recorded, clipped)
        norm = self.norm(lengths)
        coefficient = _median(coefficients) if self.measure.gives_norm else norm
        last = norm, self.norm(lengths * coefficients), _median(thresholds), coefficient
        for place, value in enumerate(last):
            self.last[place] = value if recorded is np.True_ else namespace(lengths).where(recorded, value, self.last[place])
        return norm


def _median(values: Any) -> Any:
    if len(values) == 1:
        return values[0]
    return values.quantile(0.5) if isinstance(values, Tensor) else np.median(values)


def _view(tensor: Tensor) -> Any:
    return tensor.numpy() if on_host(tensor.device) else tensor


def common_device(groups: Sequence[Group]) -> torch.device:
    """Where lengths are combined: on the device of the first parameter that is not on the host."""
    devices = (p.device for group in groups for p in group["params"])
    return next((device for device in devices if not on_host(device)), torch.device("cpu"))


def make_clip_sets(groups: Sequence[Group]) -> tuple[list[ClipSet], Totals]:
    """The clip sets of an optimizer's parameter groups, whose arguments are checked and whose memory is prepared."""
    device = common_device(groups)
    members: dict[Arguments, list[int]] = {}
    for i, group in enumerate(groups):
        try:
            arguments = Arguments.of(group)
        except ValueError as error:
            raise ValueError(f"parameter group {i}: {error}") from None
        members.setdefault(arguments, []).append(i)
    for arguments, indices in members.items():
        for i in indices:
            groups[i].update(arguments.as_dict())
            prepare_memory(groups[i], arguments, device)
    rules = [(CLIPPING_TYPES[arguments.clipping_type], arguments, indices) for arguments, indices in members.items()]
    sets = [
        ClipSet(arguments, rule, [groups[i] for i in indices], indices, device)
        for rule, arguments, indices in rules
        if rule is not None
    ]
    complete = (
        len(sets) == len(members)
        and all(clip_set.measure.gives_norm for clip_set in sets)
        and len({clip_set.arguments.norm_type for clip_set in sets}) == 1
    )
    return sets, Totals(groups[0], complete)
