"""Measures: how long is which block of the gradient?

The norms of all tensors are taken once, without copying a gradient, and combined in float64. On the CPU torch's own norms
run on one thread and lose digits over millions of numbers; norms of rows do neither. Results that float32 could not hold,
and norm types other than 2 and inf, are measured carefully in float64. No sum is split by the number of threads: norms are
the same to the last bit with any number of them.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from ..history import accumulation_dtype, as_tensor, namespace, on_host

__all__ = ["combine", "entries", "largest_entries", "stored", "tensor_norms", "unit_count", "unit_norms"]

_ROW = 4096  # entries a row: long enough to be fast, short enough for float32 to keep its digits
_SPLIT = 8192  # tensors from here on are measured by rows, in parallel
_TOGETHER = 256  # shorter ones of one shape are copied beside each other, so many at a time: a call for each takes longer
_CHUNK = 1 << 20  # entries that are converted at a time, from low precision or to float64
_LOWEST = 1e-15  # shorter than this, float32 squares lose digits
_PLAIN = {Tensor, Parameter}  # whose numbers numpy may look at
_CAREFUL_ROW = 16384  # entries a row in float64: torch sums longer ones in a part for each thread, which changes the last bits
_LOW_PRECISION = (torch.float16, torch.bfloat16)
_local = threading.local()


def stored(tensor: Tensor) -> Tensor:
    """What a tensor stores: the values of a sparse one, else itself."""
    return tensor._values() if tensor.is_sparse else tensor


def entries(tensor: Tensor) -> Tensor:
    """The numbers of a dense tensor as one dimension; a view wherever one stride leads through them."""
    if not tensor.is_contiguous() and torch.ops.aten.is_non_overlapping_and_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.reshape(-1)


def tensor_norms(tensors: Sequence[Tensor | None], counts: Sequence[int], norm_type: float, device: torch.device) -> Any:
    """The p-norm of each tensor, 0 for None: float64 of shape (tensors,), numpy on the host and else a tensor on device."""
    values = [t if t is None or not t.is_sparse else t._values() for t in tensors]
    places = [i for i, v in enumerate(values) if v is not None and v.numel()]
    present = [v for v in values if v is not None and v.numel()] if len(places) < len(values) else cast(list[Tensor], values)
    if not on_host(device):
        return _device_norms(places, present, len(tensors), norm_type, device)
    if not present:
        return np.zeros(len(tensors))
    if not {*map(type, present)} <= _PLAIN:
        found = np.array([_norm_of_any_kind(v, norm_type).item() for v in present])
    else:
        found = _euclidean_norms(present) if norm_type == 2 else np.array([_host_norm(v, norm_type) for v in present])
    if len(found) == len(tensors):
        return found
    norms = np.zeros(len(tensors))
    norms[places] = found
    return norms


def largest_entries(tensors: Sequence[Tensor | None], counts: Sequence[int], norm_type: float, device: torch.device) -> Any:
    """The largest absolute value of each tensor; ``norm_type`` plays no part."""
    return tensor_norms(tensors, counts, math.inf, device)


def unit_count(tensor: Tensor) -> int:
    """How many units a parameter has: the rows of a matrix, the filters of a convolution; else one."""
    return tensor.shape[0] if tensor.dim() > 1 else 1


def unit_norms(tensors: Sequence[Tensor | None], counts: Sequence[int], norm_type: float, device: torch.device) -> Any:
    """The p-norm of each unit of each tensor, in order: float64 of shape (sum of counts,)."""
    if not tensors:
        return tensor_norms(tensors, counts, norm_type, device)
    nothing = torch.empty(0, device="cpu")
    pieces = [nothing] * len(tensors)
    single: list[tuple[int, Tensor]] = []
    for i, (tensor, count) in enumerate(zip(tensors, counts, strict=True)):
        if tensor is None or stored(tensor).numel() == 0:
            pieces[i] = torch.zeros(count, dtype=accumulation_dtype(device), device=device)
        elif count == 1:
            single.append((i, tensor))
        elif tensor.is_sparse:
            pieces[i] = _sparse_unit_norms(tensor, count, norm_type)
        else:
            pieces[i] = _unit_norms(tensor, norm_type)
    found = as_tensor(tensor_norms([tensor for _, tensor in single], [], norm_type, device)) if single else nothing
    for (i, _), norm in zip(single, torch.split(found, 1), strict=False):
        pieces[i] = norm
    if not on_host(device):
        return torch.cat([piece.to(device, accumulation_dtype(device), non_blocking=True) for piece in pieces])
    return torch.cat(pieces).to(torch.float64).numpy()


def combine(norms: Any, norm_type: float) -> Any:
    """The p-norm of a vector whose parts have these p-norms; 0 of no parts."""
    if len(norms) == 0:
        return norms.sum()
    if norm_type == 2 and not isinstance(norms, Tensor):
        norm = np.sqrt(np.add.reduce(norms * norms))  # not @, whose threads take milliseconds to wake up
        if 1e-150 < norm < 1e150:  # no square overflowed or vanished
            return norm
    largest = norms.max()
    if norm_type == math.inf:
        return largest
    xp = namespace(norms)
    unit = xp.where(xp.isfinite(largest) & (largest > 0), largest, 1.0)  # powers of the ratios cannot overflow
    return ((norms / unit) ** norm_type).sum() ** (1 / norm_type) * unit


class _Layout(NamedTuple):
    """In which order tensors of some shapes are measured, and how many norms each gives."""

    long: list[int]
    short: list[list[int]]  # alike, so that they can be measured together
    starts: Any  # of the norms of each tensor among all, in the order of measuring
    order: Any  # the places of the tensors in that order


@lru_cache(maxsize=32)
def _layout(shapes: tuple[torch.Size, ...]) -> _Layout:
    long = [i for i, shape in enumerate(shapes) if shape.numel() >= _SPLIT]
    alike: defaultdict[torch.Size, list[int]] = defaultdict(list)
    for i, shape in enumerate(shapes):
        if shape.numel() < _SPLIT:
            alike[shape].append(i)
    short = [members[start : start + _TOGETHER] for members in alike.values() for start in range(0, len(members), _TOGETHER)]
    norms = [math.ceil(shapes[i].numel() / _ROW) for i in long] + [1] * (len(shapes) - len(long))
    return _Layout(long, short, np.cumsum([0, *norms[:-1]]), np.argsort([*long, *(i for members in short for i in members)]))


def _euclidean_norms(tensors: Sequence[Tensor]) -> Any:
    layout = _layout(tuple([t.shape for t in tensors]))
    norms = [norms for i in layout.long for norms in _norms_by_rows(entries(tensors[i]))]
    norms += [_norms_of_rows(torch.stack([tensors[i] for i in members])) for members in layout.short]
    doubles = (torch.cat(norms) if len(norms) > 1 else norms[0]).numpy().astype(np.float64)
    lengths = np.sqrt(np.add.reduceat(doubles * doubles, layout.starts))[layout.order]
    numbers = lengths.tolist()
    if not (min(numbers) > _LOWEST and max(numbers) < math.inf):
        for i, tensor in enumerate(tensors):
            if not _LOWEST < numbers[i] < math.inf and (numbers[i] != 0 or tensor.any()):
                lengths[i] = _careful_norm(tensor, 2)
    return lengths


def _norms_by_rows(values: Tensor) -> list[Tensor]:
    tail = len(values) % _ROW
    if tail == 0:
        return [_norms_of_rows(values.view(-1, _ROW))]
    return [_norms_of_rows(values[:-tail].view(-1, _ROW)), _norms_of_rows(values[-tail:][None])]


def _norms_of_rows(rows: Tensor, norm_type: float = 2) -> Tensor:
    """The norm of each row, in float32 at least; what torch returns in low precision would be rounded to it."""
    rows = rows.view(len(rows), -1) if rows.is_contiguous() else rows  # one dimension is the fastest
    dimensions = tuple(range(1, rows.dim()))
    if rows.dtype not in _LOW_PRECISION:
        norms: Tensor = torch.linalg.vector_norm(rows, norm_type, dim=dimensions)
        return norms
    buffer = _float_buffer()
    parts = torch.split(rows, max(1, _CHUNK // rows[0].numel()))
    copies = (buffer[: part.numel()].view(part.shape).copy_(part) for part in parts)
    return torch.cat([torch.linalg.vector_norm(copy, norm_type, dim=dimensions) for copy in copies])


def _float_buffer() -> Tensor:
    """Room for a part of a tensor, one for each thread: fresh memory would cost more time than the norms."""
    if not hasattr(_local, "buffer"):
        with torch.inference_mode(False):
            _local.buffer = torch.empty(_CHUNK, dtype=torch.float32, device="cpu")
    buffer: Tensor = _local.buffer
    return buffer


def _norm_of_any_kind(tensor: Tensor, norm_type: float, dimensions: tuple[int, ...] | None = None) -> Tensor:
    """Return the norm of a tensor of a class that is not torch's own, by what such classes have to know."""
    moduli = tensor.abs() if tensor.is_complex() else tensor
    norm: Tensor = torch.linalg.vector_norm(moduli.detach(), norm_type, dim=dimensions, dtype=torch.float64)
    return norm


def _host_norm(values: Tensor, norm_type: float) -> float:
    return _largest(values) if norm_type == math.inf else _careful_norm(values, norm_type)


def _largest(values: Tensor) -> float:
    low, high = torch.aminmax(values.abs() if values.is_complex() else values)
    if high == math.inf and values.dtype is torch.complex64:  # a modulus that float32 cannot hold, or an inf
        high = _moduli(values).max()
    return max(-float(low), float(high)) if low == low else math.nan


def _moduli(values: Tensor) -> Tensor:
    """The absolute values, in float64; a modulus can overflow the type of its parts."""
    return (values.to(torch.complex128) if values.is_complex() else values).abs().double()


def _unit_norms(units: Tensor, norm_type: float) -> Tensor:
    norms: Tensor
    if not on_host(units.device):
        moduli = units.abs() if units.is_complex() else units
        dimensions = tuple(range(1, units.dim()))
        norms = torch.linalg.vector_norm(moduli, norm_type, dim=dimensions, dtype=accumulation_dtype(units.device))
        return norms
    if type(units) not in _PLAIN:
        found = [norm.item() for norm in _norm_of_any_kind(units, norm_type, tuple(range(1, units.dim()))).unbind()]
        return torch.tensor(found, dtype=torch.float64, device="cpu")
    if units[0].numel() >= _SPLIT:
        return torch.from_numpy(tensor_norms(units.unbind(), [], norm_type, units.device))
    if norm_type not in (2, math.inf):
        return _careful_unit_norms(units, norm_type)
    norms = _norms_of_rows(units, norm_type)
    shortest, longest = (x.item() for x in torch.aminmax(norms))
    if not (shortest > _LOWEST and longest < math.inf):  # also where one is NaN
        norms = norms.double()
        odd = ~((norms > _LOWEST) & (norms < math.inf))
        norms[odd] = _careful_unit_norms(units[odd], norm_type)
    return norms


def _sparse_unit_norms(tensor: Tensor, count: int, norm_type: float) -> Tensor:
    if tensor.sparse_dim() > 1:
        return _unit_norms(tensor.to_dense(), norm_type)
    rows = _unit_norms(tensor._values().reshape(len(tensor._values()), -1), norm_type)
    return rows.new_zeros(count).index_copy(0, tensor._indices()[0], rows)


def _careful_unit_norms(units: Tensor, norm_type: float) -> Tensor:
    """Norms in float64, relative to the largest entry of each unit, so that no power overflows or vanishes."""
    moduli = _moduli(units).flatten(1)
    largest = moduli.amax(1, keepdim=True)
    scale = torch.where(largest.isfinite() & (largest > 0), largest, 1.0)
    norms: Tensor = torch.linalg.vector_norm(moduli.div_(scale), norm_type, dim=1) * scale[:, 0]
    return norms


def _careful_norm(values: Tensor, norm_type: float) -> float:
    parts = []
    for chunk in torch.split(entries(values), _CHUNK):
        in_rows = len(chunk) // _CAREFUL_ROW * _CAREFUL_ROW
        rows = chunk[:in_rows].view(-1, _CAREFUL_ROW), chunk[in_rows:][None]
        parts += [_careful_unit_norms(part, norm_type) for part in rows if part.numel()]
    return float(combine(torch.cat(parts).numpy(), norm_type))


def _device_norms(places: Sequence[int], tensors: Sequence[Tensor], count: int, norm_type: float, device: torch.device) -> Tensor:
    """Without a host synchronization: float64 sums need no second look."""
    norms = [torch.zeros((), dtype=accumulation_dtype(device), device=device)] * count
    homes: defaultdict[torch.device, list[tuple[int, Tensor]]] = defaultdict(list)
    for i, tensor in zip(places, tensors, strict=True):
        homes[tensor.device].append((i, tensor.abs() if tensor.is_complex() else tensor))
    for home, members in homes.items():
        found = torch._foreach_norm([tensor for _, tensor in members], norm_type, dtype=accumulation_dtype(home))
        for (i, _), norm in zip(members, found, strict=True):
            norms[i] = norm.to(norms[i], non_blocking=True)
    return torch.stack(norms) if norms else torch.zeros(0, dtype=accumulation_dtype(device), device=device)
