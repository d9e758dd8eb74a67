"""Measures: how long is which block of the gradient?

The norms of all tensors are taken once, without copying a gradient, and combined in float64. On the CPU torch's own norms
run on one thread and lose digits over millions of numbers; norms of rows do neither. Results that float32 could not hold,
and norm types other than 2 and inf, are measured carefully in float64.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .history import accumulation_dtype, namespace, on_host

__all__ = ["combine", "entries", "largest_entries", "stored", "tensor_norms", "unit_count", "unit_norms"]

_ROW = 4096  # entries a row: long enough to be fast, short enough for float32 to keep its digits
_SPLIT = 8192  # tensors from here on are measured by rows, in parallel
_TOGETHER = 256  # shorter ones of one shape are copied beside each other, so many at a time: a call for each takes longer
_CHUNK = 1 << 20  # entries that the careful path converts to float64 at a time
_LOWEST = 1e-15  # shorter than this, float32 squares lose digits
_LOW_PRECISION = (torch.float16, torch.bfloat16)


def stored(tensor: Tensor) -> Tensor:
    """What a tensor stores: the values of a sparse one, else itself."""
    return tensor._values() if tensor.is_sparse else tensor


def entries(tensor: Tensor) -> Tensor:
    """The numbers of a dense tensor as one dimension; a view unless its memory has holes."""
    if not tensor.is_contiguous() and torch.ops.aten.is_non_overlapping_and_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.reshape(-1)


def tensor_norms(tensors: Sequence[Tensor | None], counts: Sequence[int], norm_type: float, device: torch.device) -> Any:
    """The p-norm of each tensor, 0 for None: float64 of shape (tensors,), numpy on the host and else a tensor on device."""
    present = [(i, v) for i, t in enumerate(tensors) if t is not None and (v := t._values() if t.is_sparse else t).numel() > 0]
    if on_host(device):
        return _host_norms(present, len(tensors), norm_type)
    return _device_norms(present, len(tensors), norm_type, device)


def largest_entries(tensors: Sequence[Tensor | None], counts: Sequence[int], norm_type: float, device: torch.device) -> Any:
    """The largest absolute value of each tensor; ``norm_type`` plays no part."""
    return tensor_norms(tensors, counts, math.inf, device)


def unit_count(tensor: Tensor) -> int:
    """How many units a parameter has: the rows of a matrix, the filters of a convolution; else one."""
    return tensor.shape[0] if tensor.dim() > 1 else 1


def unit_norms(tensors: Sequence[Tensor | None], counts: Sequence[int], norm_type: float, device: torch.device) -> Any:
    """The p-norm of each unit of each tensor, in order: float64 of shape (sum of counts,)."""
    norms = torch.zeros(sum(counts), dtype=accumulation_dtype(device), device=device)
    for tensor, part in zip(tensors, torch.split(norms, list(counts)), strict=True):
        if tensor is None or stored(tensor).numel() == 0:
            continue
        if tensor.is_sparse and tensor.sparse_dim() > 1:
            tensor = tensor.to_dense()
        units = stored(tensor)
        if tensor.dim() <= 1:
            units = units.reshape(1, -1)
        if tensor.is_sparse and tensor.dim() > 1:
            part[tensor._indices()[0]] = _unit_norms(units, norm_type).to(part)
        else:
            part.copy_(_unit_norms(units, norm_type), non_blocking=True)
    return norms.numpy() if on_host(device) else norms


def combine(norms: Any, norm_type: float) -> Any:
    """The p-norm of a vector whose parts have these p-norms; 0 of no parts."""
    if len(norms) == 0:
        return norms.sum()
    if norm_type == 2 and not isinstance(norms, Tensor):
        norm = np.sqrt(norms @ norms)
        if 1e-150 < norm < 1e150:  # no square overflowed or vanished
            return norm
    largest = norms.max()
    if norm_type == math.inf:
        return largest
    xp = namespace(norms)
    unit = xp.where(xp.isfinite(largest) & (largest > 0), largest, 1.0)  # powers of the ratios cannot overflow
    return ((norms / unit) ** norm_type).sum() ** (1 / norm_type) * unit


def _host_norms(present: Sequence[tuple[int, Tensor]], count: int, norm_type: float) -> Any:
    if norm_type == 2:
        return _host_euclidean_norms(present, count)
    norms = np.zeros(count)
    for i, values in present:
        norms[i] = _largest(values) if norm_type == math.inf else _careful_norm(values, norm_type)
    return norms


def _host_euclidean_norms(present: Sequence[tuple[int, Tensor]], count: int) -> Any:
    if not present:
        return np.zeros(count)
    long: list[Tensor] = []
    long_owners: list[int] = []
    starts = [0]
    short: dict[Any, list[Tensor]] = {}
    short_owners: dict[Any, list[int]] = {}
    for i, values in present:
        size = values.numel()
        if size >= _SPLIT:
            values, tail = entries(values), size % _ROW
            long.append(_norms_of_rows((values[: size - tail] if tail else values).view(-1, _ROW)))
            long_owners.append(i)
            starts.append(starts[-1] + size // _ROW)
            if tail == 0:
                continue
            values = values[size - tail :]
        kind = values.shape, values.dtype
        if kind not in short:
            short[kind], short_owners[kind] = [], []
        short[kind].append(values)
        short_owners[kind].append(i)
    owners = [i for members in short_owners.values() for i in members] + long_owners
    squares = [
        _squared(_norms_of_rows(torch.stack(members[start : start + _TOGETHER])))
        for members in short.values()
        for start in range(0, len(members), _TOGETHER)
    ]
    if long:
        squares.append(np.add.reduceat(_squared(torch.cat(long)), starts[:-1]))
    lengths = np.sqrt(np.bincount(owners, squares[0] if len(squares) == 1 else np.concatenate(squares), count))
    numbers = lengths.tolist()
    if not (min(numbers) > _LOWEST and max(numbers) < math.inf):
        for i, values in present:
            if not _LOWEST < lengths[i] < math.inf and (lengths[i] != 0 or values.any()):
                lengths[i] = _careful_norm(values, 2)
    return lengths


def _norms_of_rows(rows: Tensor) -> Tensor:
    rows = rows if rows.dim() == 2 else rows.reshape(len(rows), -1)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32 if rows.dtype in _LOW_PRECISION else None)
    return norms


def _squared(norms: Tensor) -> Any:
    doubles = norms.numpy().astype(np.float64)
    return doubles * doubles


def _largest(values: Tensor) -> float:
    if values.is_complex():
        values = values.abs()
    low, high = torch.aminmax(values)
    return max(-float(low), float(high)) if low == low else math.nan


def _unit_norms(units: Tensor, norm_type: float) -> Tensor:
    dimensions = tuple(range(1, units.dim()))
    norms: Tensor
    if units[0].numel() >= _SPLIT and on_host(units.device):
        rows = tensor_norms(units.unbind(), [1] * len(units), norm_type, units.device)
        return torch.from_numpy(rows)
    if not on_host(units.device):
        units = units.abs() if units.is_complex() else units
        norms = torch.linalg.vector_norm(units, norm_type, dim=dimensions, dtype=accumulation_dtype(units.device))
        return norms
    if norm_type not in (2, math.inf):
        return _careful_unit_norms(units, norm_type)
    dtype = torch.float32 if units.dtype in _LOW_PRECISION else None
    norms = torch.linalg.vector_norm(units, norm_type, dim=dimensions, dtype=dtype).double()
    odd = ~((norms > _LOWEST) & (norms < math.inf))
    if odd.any():
        norms[odd] = _careful_unit_norms(units[odd], norm_type)
    return norms


def _careful_unit_norms(units: Tensor, norm_type: float) -> Tensor:
    """Norms in float64, relative to the largest entry of each unit, so that no power overflows or vanishes."""
    moduli = units.abs().double().flatten(1)
    largest = moduli.amax(1, keepdim=True)
    scale = torch.where(largest.isfinite() & (largest > 0), largest, 1.0)
    norms: Tensor = torch.linalg.vector_norm(moduli / scale, norm_type, dim=1) * scale[:, 0]
    return norms


def _careful_norm(values: Tensor, norm_type: float) -> float:
    parts = [_careful_unit_norms(chunk[None], norm_type).item() for chunk in torch.split(entries(values), _CHUNK)]
    return float(combine(np.array(parts), norm_type))


def _device_norms(present: Sequence[tuple[int, Tensor]], count: int, norm_type: float, device: torch.device) -> Tensor:
    """Without a host synchronization: float64 sums need no second look."""
    norms = [torch.zeros((), dtype=accumulation_dtype(device), device=device)] * count
    homes: defaultdict[torch.device, list[tuple[int, Tensor]]] = defaultdict(list)
    for i, values in present:
        homes[values.device].append((i, values.abs() if values.is_complex() else values))
    for home, members in homes.items():
        found = torch._foreach_norm([values for _, values in members], norm_type, dtype=accumulation_dtype(home))
        for (i, _), norm in zip(members, found, strict=True):
            norms[i] = norm.to(norms[i], non_blocking=True)
    return torch.stack(norms)
