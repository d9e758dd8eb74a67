"""State of clipping: plain tensors in the parameter groups, under keys that begin with ``clipping_memory_``.

Every group has all keys from the start, because torch's ways of loading drop values whose key is missing in the target.

    set_steps, set_last                     counts and last values of the clip set, in its first group
    steps, last, norms, norms_count         the same of the whole gradient, and its norms, in the optimizer's first group
    lengths, count, average, ...            the threshold's own: of the whole clip set in its first group, or of the blocks of
                                            each parameter in the parameter's own group; without entries if the type has
                                            another threshold

On the CPU the engine works on numpy arrays, so that writing the state costs no tensor operation. The arrays own the memory, and
the tensors in the groups are views of them. Torch may move a tensor's memory and free the old one at any time, for example when
the tensor is sent to another process, but never the memory of an array.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from ..clipping import CLIPPING_TYPES, Clipping
from ..thresholds import Shape, Threshold
from .arguments import MEMORY, Arguments
from .arrays import accumulation_dtype, resized
from .types import Entries, Group

__all__ = [
    "StateArrays",
    "block_counts",
    "check_memory",
    "common_device",
    "copied",
    "forget",
    "install",
    "is_memory",
    "is_real",
    "prepared_memory",
]

StateArray = Any  # an array of numpy on the host, a tensor on an accelerator: the engine writes to both in the same way
LARGEST_COUNT = 2**62
COMMON: dict[str, Shape] = {
    "steps": ((3,), torch.int64),
    "set_steps": ((3,), torch.int64),
    "last": ((4,), torch.float64),
    "set_last": ((4,), torch.float64),
    "norms_count": ((1,), torch.int64),
}
_COUNTS = ("steps", "set_steps", "norms_count", "count", "seen")
_NORMS = ("norms", "lengths", "average", "variance")


def is_memory(key: str) -> bool:
    """Return whether this key of a parameter group holds state of clipping."""
    return key.startswith(MEMORY)


def copied(group: Entries) -> Group:
    """Return a copy of a parameter group whose clipping state later steps do not change."""
    with _disable_current_modes():
        return {key: value.clone() if is_memory(key) and isinstance(value, Tensor) else value for key, value in group.items()}


def is_real(tensor: Tensor) -> bool:
    """Return whether a tensor has values; on the meta device and in FakeTensorMode it has only a shape."""
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)


def common_device(groups: Sequence[Group]) -> torch.device:
    """Return the device on which norms are combined: that of the first parameter that has values and is not on the host."""
    params = (p for group in groups for p in group["params"])
    return next((p.device for p in params if p.device.type != "cpu" and is_real(p)), torch.device("cpu"))


def block_counts(rule: Clipping, params: Sequence[Tensor]) -> list[int]:
    """Return the number of norms measured in each parameter: one per block, or one if all parameters are one block."""
    blocks = rule.measured.blocks
    return [1 if blocks is None else blocks(p) for p in params]


def prepared_memory(group: Group, arguments: Arguments, device: torch.device) -> dict[str, Tensor]:
    """Return the clipping state that a parameter group needs, by key, on ``device``; tensors that still fit are kept.

    A history whose window differs keeps its newest norms. The group is not changed: see :func:`install`.

    Raises:
        ValueError: a value is not such a tensor, or the window does not fit in memory.
    """
    rule, window = arguments.rule, arguments.clipping_window
    shapes = _unused_memory(len(CLIPPING_TYPES)) | COMMON | {"norms": ((window, 1), torch.float64)}
    if rule is not None:
        one_block = rule.measured.is_one_block
        shapes |= rule.threshold.memory(1 if one_block else sum(block_counts(rule, group["params"])), window)
    found = {name: group[MEMORY + name] for name in shapes if MEMORY + name in group}
    together: list[Collection[str]] = [("norms", "norms_count"), () if rule is None else rule.threshold.memory(1, 2)]
    for names in together:
        if not all(name in found for name in names):  # a count without its norms would count zeros
            found = {name: kept for name, kept in found.items() if name not in names}
    for name, kept in found.items():
        if not isinstance(kept, Tensor) or kept.dim() != len(shapes[name][0]):
            raise ValueError(f"{MEMORY + name} must be a tensor with {len(shapes[name][0])} dimensions, got {kept!r}")
    try:
        for lengths, count in (("norms", "norms_count"), ("lengths", "count")):
            if lengths in found and count in found and found[lengths].numel() and len(found[lengths]) != window:
                found[lengths], found[count] = resized(found[lengths], found[count], window)
        return {MEMORY + name: _fitting(found.get(name), name, *shapes[name], device) for name in shapes}
    except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError when out of memory
        raise ValueError(f"clipping_window must leave room for so many norms in memory, got {window} ({error})") from None


def _fitting(kept: Tensor | None, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return ``kept`` if it has this shape, else a fresh tensor, in this type and on this device."""
    if dtype.is_floating_point:
        dtype = accumulation_dtype(device)
    if kept is not None and kept.shape == shape and is_real(kept):
        return kept if kept.device == device and kept.dtype is dtype else kept.to(device, dtype)
    start = math.nan if name in ("last", "set_last") else 0
    if device.type != "cpu":
        return torch.full(shape, start, dtype=dtype, device=device)
    with _disable_current_modes():  # FakeTensorMode, in which numpy has nothing to read
        fresh = torch.from_numpy(np.zeros(shape, np.float64 if dtype.is_floating_point else np.int64))  # not touched until used
        return fresh.fill_(start) if start else fresh


def install(group: Group, memory: Mapping[str, Tensor]) -> None:
    """Put the state into the group; remove state that is no longer needed, because it would be outdated later."""
    for key in [key for key in group if is_memory(key) and key not in memory]:
        del group[key]
    group.update(memory)


@lru_cache(maxsize=1)
def _unused_memory(types: int) -> dict[str, Shape]:
    """Return empty placeholders for the state of every registered threshold."""
    return {name: shape for rule in CLIPPING_TYPES.values() if rule for name, shape in rule.threshold.memory(0, 0).items()}


def _are_counts(value: Tensor) -> bool:
    counts = value.long()  # in a smaller type the bound would wrap around to 0
    return not value.is_floating_point() and bool(((counts >= 0) & (counts <= LARGEST_COUNT)).all())


def check_memory(group: Entries, arguments: Arguments) -> None:
    """Raise ValueError if the clipping state in a loaded parameter group does not fit these arguments."""
    rule = arguments.rule
    is_own = rule is None or type(rule.threshold).__module__ == Threshold.__module__  # other thresholds may keep any state
    for key in [key for key in group if is_memory(key)]:
        name, value = key.removeprefix(MEMORY), group[key]
        if not isinstance(value, Tensor) or value.layout is not torch.strided or not is_real(value):
            raise ValueError(f"{key} must be a dense tensor with numbers, got {value!r}")
        if value.requires_grad or value.is_complex() or value.dtype is torch.bool:
            raise ValueError(f"{key} must be a tensor of real numbers without a gradient, got {value!r}")
        if name in COMMON and value.shape != COMMON[name][0]:
            raise ValueError(f"{key} must have shape {COMMON[name][0]}, got {tuple(value.shape)}")
        if name in (*COMMON, "norms") or is_own:
            if name in _COUNTS and not _are_counts(value):
                raise ValueError(f"{key} must hold integers from 0 to 2**62, got {value.tolist()}")
            if name in _NORMS and not bool((value.isfinite() & (value >= 0)).all()):
                raise ValueError(f"{key} must hold numbers that are finite and at least 0, got {value.tolist()}")
        if name in ("steps", "set_steps") and value[1] > value[0]:
            raise ValueError(f"{key} must count no more clipped steps than steps, got {value.tolist()}")
        if name in ("last", "set_last") and bool((value < 0).any()):
            raise ValueError(f"{key} must hold numbers that are at least 0 or NaN, got {value.tolist()}")
    if rule is not None and is_own and "params" in group:
        _check_threshold_memory(group, rule)
    for norms, count in (("norms", "norms_count"), ("lengths", "count")):
        pair = [MEMORY + norms, MEMORY + count]
        shapes = [tuple(group[key].shape) for key in pair if key in group]
        if len(shapes) == 2 and (len(shapes[0]) != 2 or shapes[0][1:] != shapes[1]):
            raise ValueError(
                f"{' and '.join(pair)} must have shapes (window, blocks) and (blocks,), got {shapes[0]} and {shapes[1]}"
            )


def _check_threshold_memory(group: Entries, rule: Clipping) -> None:
    """Raise ValueError if a part of a threshold's state is of other blocks; if a part is missing, all of it starts anew."""
    blocks = 1 if rule.measured.is_one_block else sum(block_counts(rule, group["params"]))
    shapes = {MEMORY + name: shape for name, (shape, _) in rule.threshold.memory(blocks, 2).items()}
    if not all(key in group for key in shapes) or not any(group[key].numel() for key in shapes):
        return
    for key, shape in shapes.items():
        found = tuple(group[key].shape)
        if len(found) != len(shape) or found[-1] != shape[-1] or (shape[-1] and not all(found)):
            wanted = f"(window, {shape[-1]})" if len(shape) == 2 else shape
            raise ValueError(f"{key} must have shape {wanted}, got {found}")


def forget(group: Group, former: Entries, now: Arguments) -> None:
    """Remove the state of norms that the group's present clipping arguments would measure differently."""
    kept = set(COMMON) | ({"norms"} if former.get("norm_type") == now.norm_type else set())
    if former.get("norm_type") != now.norm_type:
        kept -= {"norms_count"}
    if former.get("clipping_type") != now.clipping_type or former.get("norm_type") != now.norm_type:
        for key in [key for key in group if is_memory(key) and key.removeprefix(MEMORY) not in kept]:
            del group[key]


class _Kept(NamedTuple):
    """Tensor of the state, its place in a parameter group, and the array that the engine works on for it."""

    group: Group
    key: str
    tensor: Tensor
    address: int  # 0: not checked
    array: StateArray


class StateArrays:
    """Arrays that the engine works on, for the tensors of the state in the parameter groups.

    Args:
        is_host: whether the arrays are numpy's; on an accelerator they are the tensors themselves.
        before: the present arrays; they are used again for tensors that are still in the groups.
    """

    def __init__(self, is_host: bool = True, before: StateArrays | None = None) -> None:
        self._is_host = is_host
        self._kept: dict[int, _Kept] = {}
        self._before = before._kept if before is not None else {}

    def of(self, group: Group, name: str) -> StateArray:
        """Return the array that the engine works on for a tensor of the state."""
        key = MEMORY + name
        tensor: Tensor = group[key]
        kept = self._before.get(id(tensor))
        if kept is None or kept.tensor is not tensor or (kept.address and tensor.data_ptr() != kept.address):
            address = 0 if tensor.is_meta or isinstance(tensor, FakeTensor) else tensor.data_ptr()
            kept = _owned(group, key, _numbers(tensor)) if self._is_host else _Kept(group, key, tensor, address, tensor)
        self._kept[id(kept.tensor)] = kept._replace(group=group)
        return kept.array

    def are_current(self) -> bool:
        """Return whether the groups still hold these tensors, at the same addresses."""
        for group, key, tensor, address, _ in self._kept.values():
            if group.get(key) is not tensor or (address and tensor.data_ptr() != address):
                return False
        return True

    def put_back(self) -> None:
        """Put views of the arrays into the groups again, in place of tensors that torch has moved into shared memory."""
        for kept in [*self._kept.values()] if self._is_host else []:
            tensor = kept.tensor
            if kept.address and kept.group.get(kept.key) is tensor and tensor.data_ptr() != kept.address and tensor.is_shared():
                del self._kept[id(tensor)]
                owned = _owned(kept.group, kept.key, kept.array)
                self._kept[id(owned.tensor)] = owned


def _numbers(tensor: Tensor) -> StateArray:
    with _disable_current_modes():
        return tensor.numpy().copy()


def _owned(group: Group, key: str, array: StateArray) -> _Kept:
    with _disable_current_modes():
        tensor = group[key] = torch.from_numpy(array)
    return _Kept(group, key, tensor, tensor.data_ptr(), array)
