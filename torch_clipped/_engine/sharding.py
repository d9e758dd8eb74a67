"""Sharded parameters (DTensor): from the local parts of a rank to norms on which all ranks agree.

Elementwise operations act on the rank's own part of a gradient. The norms of its blocks to the power p are summed over the
process group of every mesh dimension, in one all-reduce for all tensors. A block that is copied on each rank of the group counts
with the share 1 / ranks on each. All ranks therefore get bitwise the same norms, even if only one of them has seen a value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import is_
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor

from .arrays import Arrays, Numbers, as_tensor, numpy

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor

__all__ = ["Shards", "is_sharded", "lay_out_gradients", "local", "process_groups"]

_SMALLEST = 1e-290  # smaller powers have lost digits


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Return whether a tensor is a DTensor. (Importing the class would take longer than importing this library.)"""
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, to be changed in place."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def lay_out_gradients(params: Sequence[Tensor]) -> None:
    """Give each gradient in ``p.grad`` the placements of its parameter; for example, sum up partial sums."""
    for p in filter(is_sharded, params):
        grad: Any = p.grad  # may be a DTensor
        if grad is not None and grad.placements != p.placements:
            p.grad = grad.redistribute(placements=p.placements)


def process_groups(params: Sequence[Tensor]) -> list[ProcessGroup] | None:
    """Return the process groups of all mesh dimensions of these parameters, in the same order on all ranks.

    Dimensions of one rank have no entry. Return None if no parameter is a DTensor.
    """
    meshes = [p.device_mesh for p in params if is_sharded(p)]
    groups = [mesh.get_group(dim) for mesh in meshes for dim in range(mesh.ndim) if mesh.size(dim) > 1]
    return list(dict.fromkeys(groups)) if meshes else None


class Shards:
    """Distribution of the blocks of some parameters over the ranks of some process groups.

    Args:
        params: the parameters, sharded or not.
        counts: the number of blocks of each parameter: one, or one for each entry of its first dimension.
        groups: the process groups of the ranks that must agree.
        device: the device of the norms.
        arrays: the arithmetic for norms on that device.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        counts: Sequence[int],
        groups: Sequence[ProcessGroup],
        device: torch.device,
        arrays: Arrays,
    ) -> None:
        held = [_held_blocks(p, count) for p, count in zip(params, counts, strict=True)]
        starts = np.cumsum([0, *counts])
        places = torch.cat(
            [torch.arange(0, device="cpu"), *(own.cpu() + int(start) for own, start in zip(held, starts, strict=False))]
        )
        self.counts = tuple([len(own) for own in held])
        self._params, self._rest = [*params], ([*counts], [*groups], device, arrays)
        self._size, self._is_host = int(starts[-1]), arrays.is_host
        self._places = places.numpy() if arrays.is_host else places.to(device)
        self._reductions: list[tuple[ProcessGroup, Numbers]] = []
        for group in groups:
            shares = [1.0 if _is_split_by(p, group) else 1.0 / group.size() for p in params]
            by_block = torch.from_numpy(np.repeat(shares, counts))
            self._reductions.append((group, cast(Numbers, by_block.numpy() if arrays.is_host else by_block.to(device))))

    def are_of(
        self,
        params: Sequence[Tensor],
        counts: Sequence[int],
        groups: Sequence[ProcessGroup],
        device: torch.device,
        arrays: Arrays,
    ) -> bool:
        """Return whether this object matches the arguments. A new one takes longer than a step, and schedules edit levels."""
        same_params = len(params) == len(self._params) and all(map(is_, params, self._params))
        return same_params and self._rest == ([*counts], [*groups], device, arrays)

    def local(self, by_block: Numbers) -> Numbers:
        """Return the values of this rank's blocks, from the values of all blocks."""
        return by_block[self._places]

    def lengths(self, norms: Numbers, norm_type: float) -> Numbers:
        """Return the p-norms of all blocks (blocks,), the same on every rank, from the norms of the local parts."""
        zeros = numpy.zeros(self._size) if self._is_host else cast(Tensor, norms).new_zeros(self._size)
        values = cast(Numbers, zeros)
        values[self._places] = norms
        if norm_type == math.inf:
            return self._largest(values)
        lengths, exact = self._combined(values, norm_type)
        if not exact:
            largest = self._largest(values)
            unit = numpy.where(numpy.isfinite(largest) & (largest > 0), largest, 1.0)
            lengths = self._combined(values / unit, norm_type)[0] * unit
        return lengths

    def _combined(self, values: Numbers, norm_type: float) -> tuple[Numbers, bool]:
        """Return the p-norms of values on several ranks, and whether all powers fit float64 (True on an accelerator)."""
        powers = values**norm_type
        if not self._is_host:
            for group, shares in self._reductions:
                powers = _reduced(powers * shares, "SUM", group)
            return powers ** (1 / norm_type), True
        lost = ((values > 0) & (powers < _SMALLEST)).sum()  # sent along, so that all ranks know
        for group, shares in self._reductions:
            sent = _reduced(numpy.append(powers * shares, lost), "SUM", group)
            powers, lost = sent[:-1], sent[-1]
        return powers ** (1 / norm_type), float(lost) == 0 and bool(numpy.isfinite(powers).all())

    def _largest(self, values: Numbers) -> Numbers:
        xp = numpy if self._is_host else torch
        values = xp.where(xp.isnan(values), math.inf, values)  # the largest of NaN and a number is undefined
        for group, _ in self._reductions:
            values = _reduced(values, "MAX", group)
        return values


def _held_blocks(param: Tensor, count: int) -> Tensor:
    """Return the indices of the parameter's blocks that are completely or partly on this rank."""
    if count == 1 or not is_sharded(param):
        return torch.arange(count, device="cpu")
    from torch.distributed.tensor import DTensor, Replicate

    mesh = param.device_mesh
    whole = DTensor.from_local(torch.arange(count, device=mesh.device_type), mesh, [Replicate()] * mesh.ndim, run_check=False)
    by_rows = [placement if getattr(placement, "dim", None) == 0 else Replicate() for placement in param.placements]
    held: Tensor = whole.redistribute(placements=by_rows).to_local()
    return held


def _is_split_by(param: Tensor, group: ProcessGroup) -> bool:
    if not is_sharded(param):
        return False
    mesh = param.device_mesh
    return any(mesh.get_group(dim) is group and not param.placements[dim].is_replicate() for dim in range(mesh.ndim))


def _reduced(values: Numbers, operation: str, group: ProcessGroup) -> Numbers:
    import torch.distributed as dist

    sent, backends = as_tensor(values), dist.get_backend_config(group)
    if f"{sent.device.type}:" not in backends:  # offloaded parameters, and a group of accelerators only
        sent = sent.to(backends.partition(":")[0])
    dist.all_reduce(sent, getattr(dist.ReduceOp, operation), group)
    return cast(Numbers, sent.cpu().numpy() if isinstance(values, np.ndarray) else sent)
