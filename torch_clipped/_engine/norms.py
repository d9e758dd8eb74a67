"""Norms of the blocks of tensors, in full precision and without a copy of a gradient.

On the host small tensors are copied into a buffer of float64, and the blocks of all of them are measured by one call. For large
tensors torch computes the norms of rows in float32, which is fast and accurate; these are combined in float64. Values that
float32 cannot hold, and norm types other than 2 and inf, are measured in float64. No sum is split by the number of threads, so
norms are bitwise the same with any number of threads.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from .arrays import HOST, AcceleratorArrays, Numbers, accumulation_dtype

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Places = npt.NDArray[np.int64]

__all__ = ["LOW_PRECISION", "PLAIN", "accelerator_norms", "entries", "host_norms", "plain_norms", "stored", "total_norm"]

PLAIN = {Tensor, Parameter}  # classes whose values numpy may read
_LARGE = 8192  # tensors with this many entries are measured without a copy
_ROW = 4096  # entries a row: long enough to be fast, short enough for float32 to keep its digits
_CHUNK = (1 << 15) - 1  # entries copied at a time: they stay in the cache, and one thread sums them up
_BUFFER = 1 << 19  # float64 numbers, or twice as many float32 numbers, converted at a time
_LOWEST = 1e-15  # a norm below this may have lost digits of its squares in float32
LOW_PRECISION = (torch.float16, torch.bfloat16)
_WHOLE = np.zeros(1, np.int64)  # where the only block starts
_local = threading.local()


def stored(tensor: Tensor) -> Tensor:
    """Return the stored numbers of a tensor: the values of a sparse one, else the tensor itself."""
    return tensor._values() if tensor.is_sparse else tensor


def entries(tensor: Tensor) -> Tensor:
    """Return the numbers of a dense tensor in one dimension, as a view if one stride is enough."""
    if not tensor.is_contiguous() and torch.ops.aten.is_non_overlapping_and_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.reshape(-1)


def host_norms(tensors: Sequence[Tensor | None], counts: tuple[int, ...] | None, norm_type: float) -> Floats:
    """Return the p-norm of each block of each tensor on the CPU, 0 for None: float64 of shape (sum of counts,).

    A tensor has ``counts`` blocks, of equal numbers of its rows. Without counts the norms are those of any partition of all
    tensors.
    """
    if counts is None:  # parameters without a gradient do not change the norm, not even its last bit
        tensors = [t for t in tensors if t is not None]
    plain = [type(t) in PLAIN and not t.is_sparse for t in tensors]  # type: ignore[union-attr]
    if all(plain):
        return plain_norms(tensors, counts, norm_type)  # type: ignore[arg-type]
    blocks = counts or (1,) * len(tensors)
    parts = [np.zeros(count) for count in blocks]
    if any(plain):
        chosen = [i for i, is_plain in enumerate(plain) if is_plain]
        own = tuple([blocks[i] for i in chosen])
        found = np.split(plain_norms([tensors[i] for i in chosen], own, norm_type), np.cumsum(own)[:-1])  # type: ignore[misc]
        for i, part in zip(chosen, found, strict=True):
            parts[i] = part
    for i, tensor in enumerate(tensors):
        if not plain[i] and tensor is not None and tensor.numel():
            parts[i] = _odd_norms(tensor, blocks[i], norm_type)
    return np.concatenate(parts) if parts else np.zeros(0)


@torch.no_grad()
def total_norm(tensors: Sequence[Tensor]) -> float:
    """Return the Euclidean norm of all entries of all tensors."""
    device = next((t.device for t in tensors if not t.is_cpu), None)
    if device is None:
        return _combined(host_norms(tensors, None, 2.0), 2.0)
    return float(AcceleratorArrays().norm(cast(Numbers, accelerator_norms(tensors, None, 2.0, device)), 2.0))


class _Chunk(NamedTuple):
    """Small tensors measured together, and the part of the buffer into which they are copied."""

    members: list[int]
    views: list[Tensor]  # of the buffer, in the shapes of the tensors; none for complex tensors, which are not copied
    flat: Tensor
    values: Floats  # the same as an array
    starts: Places  # of the blocks


class _Layout(NamedTuple):
    """Order in which tensors of some shapes are measured, and the buffers for the small ones."""

    large: list[int]
    starts: Places  # of the blocks of large tensors among the norms of their rows
    chunks: list[_Chunk]
    places: Places | None  # of the measured blocks among all; None: they are in order
    blocks: int


@lru_cache(maxsize=64)
def _layout(
    shapes: tuple[torch.Size, ...], dtypes: tuple[torch.dtype, ...], counts: tuple[int, ...] | None, thread: int
) -> _Layout:
    sizes = [shape.numel() for shape in shapes]
    large = [i for i, size in enumerate(sizes) if size >= _LARGE]
    blocks = counts or (1,) * len(sizes)
    firsts = np.cumsum([0, *blocks])
    rows = [_row_count(sizes[i], blocks[i]) for i in large for _ in range(blocks[i])]
    members: defaultdict[torch.dtype | None, list[list[int]]] = defaultdict(lambda: [[]])
    for i, size in enumerate(sizes):
        if 0 < size < _LARGE:
            lists = members[dtypes[i] if dtypes[i].is_complex else None]
            if sum(sizes[j] for j in lists[-1]) + size > _CHUNK:
                lists.append([])
            lists[-1].append(i)
    small = [chosen for lists in members.values() for chosen in lists]
    chunks = []
    for chosen in small:
        lengths = [sizes[i] // blocks[i] for i in chosen for _ in range(blocks[i])]
        flat = _buffer()[: sum(lengths)]
        views = [part.view(shapes[i]) for i, part in zip(chosen, torch.split(flat, [sizes[i] for i in chosen]), strict=True)]
        are_complex = dtypes[chosen[0]].is_complex
        starts = np.cumsum([0, *lengths[:-1]]) if counts else _WHOLE
        chunks.append(_Chunk(chosen, [] if are_complex else views, flat, flat.numpy(), starts))
    order = [*large, *chain.from_iterable(small)]
    places = np.concatenate([np.arange(firsts[i], firsts[i + 1]) for i in order]) if order else np.zeros(0, np.int64)
    are_in_order = counts is None or np.array_equal(places, np.arange(firsts[-1]))
    return _Layout(large, np.cumsum([0, *rows[:-1]]), chunks, None if are_in_order else places, int(firsts[-1]))


def _row_count(size: int, blocks: int) -> int:
    """Return the number of norms that :func:`_row_norms` takes of a block of a large tensor."""
    return math.ceil(size / blocks / _ROW) if blocks == 1 or size // blocks >= _LARGE else 1


def plain_norms(tensors: Sequence[Tensor], counts: tuple[int, ...] | None, norm_type: float) -> Floats:
    """Return the same as :func:`host_norms` for dense tensors of torch's own class."""
    layout = _layout(tuple([t.shape for t in tensors]), tuple([t.dtype for t in tensors]), counts, threading.get_ident())
    parts = []
    large = [(tensors[i], counts[i] if counts else 1) for i in layout.large]
    if large and norm_type == 2:
        parts.append(_large_euclidean_norms(large, layout.starts))
    elif large:
        parts += [_large_norms(tensor, count, norm_type) for tensor, count in large]
    for chunk in layout.chunks:
        small = [*tensors] if len(chunk.members) == len(tensors) else [tensors[i] for i in chunk.members]
        if not chunk.views:
            parts.append(_flat_norms(small, chunk.starts, norm_type))
            continue
        torch._foreach_copy_(chunk.views, small)
        parts.append(_norms_of(chunk.flat, chunk.values, chunk.starts, norm_type))
    found = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.zeros(0)
    if layout.places is None:
        return found
    norms = np.zeros(layout.blocks)
    norms[layout.places] = found
    return norms


def _flat_norms(tensors: Sequence[Tensor], starts: Places, norm_type: float) -> Floats:
    """Return the norms of the blocks of tensors, copied to fresh memory."""
    flat: Tensor = torch._utils._flatten_dense_tensors(tensors)  # type: ignore[no-untyped-call]
    if flat.is_complex() and norm_type == 2:
        flat, starts = torch.view_as_real(flat).view(-1), 2 * starts
    elif flat.is_complex():
        flat = flat.to(torch.complex128).abs()  # a modulus can overflow the type of its parts
    flat = flat.double()
    return _norms_of(flat, flat.numpy(), starts, norm_type)


def _norms_of(flat: Tensor, values: Floats, starts: Places, norm_type: float) -> Floats:
    """Return the norms of the blocks of float64 entries, given as a tensor and as an array."""
    if norm_type != 2:
        return _careful_norms(values, starts, norm_type)
    if starts is _WHOLE:
        norm = torch.linalg.vector_norm(flat).item()
        return np.array([norm]) if 1e-140 < norm < 1e150 else _careful_norms(values, starts, 2)
    norms = np.sqrt(np.add.reduceat(values * values, starts))
    if not (norms.min() > 1e-140 and norms.max() < 1e150):  # a square may have vanished or overflowed
        norms = np.where((norms > 1e-140) & (norms < 1e150), norms, _careful_norms(values, starts, 2))
    return norms


def _careful_norms(values: Floats, starts: Places, norm_type: float) -> Floats:
    """Return norms relative to the largest value of each block, so that no power overflows or vanishes."""
    magnitudes = np.abs(values)
    largest = np.maximum.reduceat(magnitudes, starts)
    if norm_type == math.inf:
        return largest
    unit = np.where(np.isfinite(largest) & (largest > 0), largest, 1.0)
    magnitudes /= np.repeat(unit, np.diff(starts, append=len(values)))
    return np.add.reduceat(magnitudes**norm_type, starts) ** (1 / norm_type) * unit


def _large_euclidean_norms(large: Sequence[tuple[Tensor, int]], starts: Places) -> Floats:
    rows = [norms for tensor, count in large for norms in _row_norms(tensor, count)]
    doubles = (torch.cat(rows) if len(rows) > 1 else rows[0]).numpy().astype(np.float64)
    norms = np.sqrt(np.add.reduceat(doubles * doubles, starts))
    if not (norms.min() > _LOWEST and norms.max() < math.inf):
        blocks = [block for tensor, count in large for block in (tensor.unbind() if count > 1 else [tensor])]
        for i, block in enumerate(blocks):
            if not _LOWEST < norms[i] < math.inf and (norms[i] != 0 or block.any()):
                norms[i] = _norm_by_chunks(entries(block), 2)
    return norms


def _row_norms(tensor: Tensor, count: int) -> list[Tensor]:
    if count > 1 and tensor.numel() // count < _LARGE:
        return [_norms_of_rows(tensor.view(count, -1) if tensor.is_contiguous() else tensor)]
    found = []
    for block in tensor.unbind() if count > 1 else [tensor]:
        values = entries(block)
        whole = len(values) // _ROW * _ROW
        found += [_norms_of_rows(values[:whole].view(-1, _ROW))]
        if whole < len(values):
            found += [_norms_of_rows(values[whole:][None])]
    return found


def _norms_of_rows(rows: Tensor) -> Tensor:
    """Return the norm of each row in float32 at least; torch would round norms in low precision."""
    dimensions = tuple(range(1, rows.dim()))
    if rows.dtype not in LOW_PRECISION:
        norms: Tensor = torch.linalg.vector_norm(rows, dim=dimensions)
        return norms
    buffer = _buffer().view(torch.float32)
    parts = torch.split(rows, max(1, len(buffer) // rows[0].numel()))
    copies = (buffer[: part.numel()].view(part.shape).copy_(part) for part in parts)
    return torch.cat([torch.linalg.vector_norm(copy, dim=dimensions) for copy in copies])


def _buffer() -> Tensor:
    """Return this thread's buffer for small tensors or a part of a large one; fresh memory would take longer than the norms."""
    if not hasattr(_local, "buffer"):
        with torch.inference_mode(False):
            _local.buffer = torch.empty(_BUFFER, dtype=torch.float64, device="cpu")
    buffer: Tensor = _local.buffer
    return buffer


def _large_norms(tensor: Tensor, count: int, norm_type: float) -> Floats:
    """Return p-norms of the blocks of a large tensor; p is not 2."""
    if count == 1 and norm_type == math.inf and not tensor.is_complex():
        low, high = (float(x) for x in torch.aminmax(tensor))
        return np.array([max(-low, high)])
    rows = tensor.reshape(count, -1) if count > 1 else entries(tensor)[None]
    if rows.shape[1] > _CHUNK:
        return np.array([_norm_by_chunks(row, norm_type) for row in rows])
    parts = torch.split(rows, _CHUNK // rows.shape[1])
    return np.concatenate([_flat_norms([part], np.arange(len(part)) * rows.shape[1], norm_type) for part in parts])


def _norm_by_chunks(values: Tensor, norm_type: float) -> float:
    parts = [_flat_norms([chunk], _WHOLE, norm_type) for chunk in torch.split(values, _CHUNK)]
    return _combined(np.concatenate(parts), norm_type)


def _combined(norms: Floats, norm_type: float) -> float:
    return float(HOST.norm(cast(Numbers, norms), norm_type))


def _odd_norms(tensor: Tensor, count: int, norm_type: float) -> Floats:
    """Return the norms of a sparse tensor, or of a tensor of another class than torch's own."""
    if tensor.is_sparse and (count == 1 or tensor.sparse_dim() == 1):
        values = tensor._values()
        if count == 1:
            return np.array([_combined(host_norms([values], None, norm_type), norm_type)])
        norms = np.zeros(count)
        norms[tensor._indices()[0].numpy()] = host_norms([values], (len(values),), norm_type)
        return norms
    if tensor.is_sparse:
        return host_norms([tensor.to_dense()], (count,), norm_type)
    moduli = (tensor.abs() if tensor.is_complex() else tensor).detach()
    dimensions = tuple(range(1, tensor.dim())) if count > 1 else None
    norms = torch.linalg.vector_norm(moduli, norm_type, dim=dimensions, dtype=torch.float64)
    return np.array([norm.item() for norm in norms.reshape(-1).unbind()])


def accelerator_norms(
    tensors: Sequence[Tensor | None], counts: tuple[int, ...] | None, norm_type: float, device: torch.device
) -> Tensor:
    """Return the same as :func:`host_norms` for tensors on any devices, on ``device``, without waiting for a device."""
    dtype = accumulation_dtype(device)
    blocks = counts or (1,) * len(tensors)
    alike: defaultdict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    parts: list[Tensor | None] = [None] * len(tensors)
    for i, tensor in enumerate(tensors):
        if tensor is not None and stored(tensor).numel():
            if blocks[i] == 1:
                alike[tensor.device, tensor.dtype].append(i)
            else:
                parts[i] = _rows_on_accelerator(tensor, blocks[i], norm_type).to(device)
    for (home, _), members in alike.items():
        values = [stored(tensors[i]) for i in members]  # type: ignore[arg-type]
        values = [v.abs() if v.is_complex() else v for v in values]
        norms = torch.stack(torch._foreach_norm(values, norm_type, dtype=accumulation_dtype(home))).to(device, dtype)
        if len(members) == len(tensors) or (counts is None and len(alike) == 1):
            return norms
        for i, norm in zip(members, torch.split(norms, 1), strict=True):
            parts[i] = norm
    if not tensors:
        return torch.zeros(0, dtype=dtype, device=device)
    filled = [torch.zeros(n, dtype=dtype, device=device) if p is None else p for p, n in zip(parts, blocks, strict=True)]
    return torch.cat(filled).to(dtype)


def _rows_on_accelerator(tensor: Tensor, count: int, norm_type: float) -> Tensor:
    if tensor.is_sparse and tensor.sparse_dim() > 1:
        tensor = tensor.to_dense()
    values = stored(tensor)
    moduli = values.abs() if values.is_complex() else values
    dtype = torch.float32 if moduli.dtype in LOW_PRECISION else None  # float64 would convert the whole tensor first
    norms: Tensor = torch.linalg.vector_norm(moduli, norm_type, dim=tuple(range(1, values.dim())), dtype=dtype)
    return norms.new_zeros(count).index_copy(0, tensor._indices()[0], norms) if tensor.is_sparse else norms
