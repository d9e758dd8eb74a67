"""What clipping remembers, and where: as plain tensors in the parameter groups, under keys that begin with
``clipping_memory_`` and that every group has from the start.

    set_steps, set_last                     counts and last values of the clip set, in its first group
    steps, last, norms, norms_count         the same of the whole gradient, and its norms, in the optimizer's first group
    lengths, count, average, ...            the threshold's own: of the whole clip set in its first group, or of the blocks of
                                            each parameter in the parameter's own group; without entries where the type has
                                            another threshold, because torch's ways of loading drop what the target has no key for

On the CPU the engine works on numpy views of these tensors, so that remembering costs no tensor operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .arguments import MEMORY, Arguments
from .clipping import CLIPPING_TYPES, MEASURES, Clipping
from .history import accumulation_dtype, on_host, resized
from .thresholds import Shape

__all__ = ["Group", "common_device", "forget", "is_memory", "measured_counts", "prepare_memory", "remembered", "threshold_memory"]

Group = dict[str, Any]


def is_memory(key: str) -> bool:
    """Whether this key of a parameter group is something that clipping remembers."""
    return key.startswith(MEMORY)


def measured_counts(rule: Clipping, params: Sequence[Tensor]) -> list[int]:
    """How many norms are measured in each parameter: its blocks, or one where all parameters are one block."""
    blocks_in = MEASURES[rule.measure].blocks_in
    return [1 if blocks_in is None else blocks_in(p) for p in params]


def prepare_memory(group: Group, arguments: Arguments, device: torch.device) -> None:
    """Give a parameter group the memory its arguments ask for, on ``device``; what it has and still fits is kept.

    A history whose window differs keeps its newest lengths.
    """
    rule, window = CLIPPING_TYPES[arguments.clipping_type], arguments.clipping_window
    shapes = _unused_memory(len(CLIPPING_TYPES)) | {"steps": ((3,), torch.int64), "set_steps": ((3,), torch.int64)}
    shapes |= {"last": ((4,), torch.float64), "set_last": ((4,), torch.float64)}
    shapes |= {"norms": ((window, 1), torch.float64), "norms_count": ((1,), torch.int64)}
    if rule is not None:
        one_block = MEASURES[rule.measure].blocks_in is None
        shapes |= rule.threshold.memory(1 if one_block else sum(measured_counts(rule, group["params"])), window)
    for key in [key for key in group if is_memory(key)]:
        name = key.removeprefix(MEMORY)
        if name not in shapes:
            del group[key]  # a history that is not kept up would be no history of the last steps later
        elif not isinstance(group[key], Tensor) or group[key].dim() != len(shapes[name][0]):
            raise ValueError(f"{key} must be a tensor with {len(shapes[name][0])} dimensions, got {group[key]!r}")
    for lengths, count in (("norms", "norms_count"), ("lengths", "count")):
        kept = group.get(MEMORY + lengths)
        if kept is not None and kept.numel() and len(kept) != window:
            group[MEMORY + lengths], group[MEMORY + count] = resized(kept, group[MEMORY + count], window)
    for name, (shape, dtype) in shapes.items():
        kept = group.get(MEMORY + name)
        if kept is None or kept.shape != shape:
            kept = torch.full(shape, torch.nan if name in ("last", "set_last") else 0, dtype=dtype)
        group[MEMORY + name] = kept.to(device, accumulation_dtype(device) if dtype.is_floating_point else dtype)


@lru_cache(maxsize=1)
def _unused_memory(types: int) -> dict[str, Shape]:
    """What any threshold remembers, without entries."""
    return {name: shape for rule in CLIPPING_TYPES.values() if rule for name, shape in rule.threshold.memory(0, 0).items()}


def forget(group: Group, rule: Clipping) -> None:
    """Start the memory of a threshold anew."""
    for name in rule.threshold.memory(1, 2):
        group[MEMORY + name].zero_()


def remembered(group: Group, name: str) -> Any:
    """Something remembered, as the engine works on it."""
    return view(group[MEMORY + name])


def threshold_memory(group: Group, rule: Clipping, memories: Sequence[SimpleNamespace]) -> SimpleNamespace:
    """The memory of a threshold in this group: the same object as before where its tensors are, with what was derived.

    Where the clip set is one block, its dimension is left out.
    """
    tensors = {name: group[MEMORY + name] for name in rule.threshold.memory(1, 2)}
    one_block = MEASURES[rule.measure].blocks_in is None
    for memory in memories:
        same = memory.one_block == one_block and memory.tensors.keys() == tensors.keys()
        if same and all(memory.tensors[name] is tensors[name] for name in tensors):
            return memory
    views = {name: view(tensor)[..., 0] if one_block else view(tensor) for name, tensor in tensors.items()}
    return SimpleNamespace(tensors=tensors, one_block=one_block, **views)


def view(tensor: Tensor) -> Any:
    """A remembered tensor as the engine works on it."""
    return tensor.numpy() if on_host(tensor.device) else tensor


def common_device(groups: Sequence[Group]) -> torch.device:
    """Where lengths are combined: on the device of the first parameter that is not on the host."""
    devices = (p.device for group in groups for p in group["params"])
    return next((device for device in devices if not on_host(device)), torch.device("cpu"))
