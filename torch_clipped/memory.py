"""What clipping remembers, and where: as plain tensors in the parameter groups, under keys that every group has from the start.

    clipping_set_steps, clipping_set_last       counts and last values of the clip set, in its first group
    clipping_steps, clipping_last, clipping_norms, clipping_norms_count
                                                the same of the whole gradient, and its norms, in the optimizer's first group
    the threshold's own (clipping_lengths, clipping_count, clipping_average, ...)
                                                of the whole clip set in its first group, or of the blocks of each parameter in
                                                the parameter's own group

On the CPU the engine works on numpy views of these tensors, so that remembering costs no tensor operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .arguments import ARGUMENT_NAMES, Arguments
from .clipping import CLIPPING_TYPES, MEASURES, Clipping
from .history import accumulation_dtype, new_history, on_host, resized

__all__ = ["Group", "block_counts", "common_device", "is_memory", "prepare_memory", "threshold_memory", "view"]

Group = dict[str, Any]


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
        "set_last": torch.full((4,), torch.nan, dtype=torch.float64),
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


def threshold_memory(group: Group, rule: Clipping, memories: Sequence[SimpleNamespace]) -> SimpleNamespace:
    """The memory of a threshold in this group: the same object as before where its tensors are, with what was derived."""
    tensors = {name: group[f"clipping_{name}"] for name in rule.threshold.memory(1, 2)}
    for memory in memories:
        if memory.tensors.keys() == tensors.keys() and all(memory.tensors[name] is tensors[name] for name in tensors):
            return memory
    return SimpleNamespace(tensors=tensors, **{name: view(tensor) for name, tensor in tensors.items()})


def view(tensor: Tensor) -> Any:
    """A remembered tensor as the engine works on it."""
    return tensor.numpy() if on_host(tensor.device) else tensor


def common_device(groups: Sequence[Group]) -> torch.device:
    """Where lengths are combined: on the device of the first parameter that is not on the host."""
    devices = (p.device for group in groups for p in group["params"])
    return next((device for device in devices if not on_host(device)), torch.device("cpu"))
