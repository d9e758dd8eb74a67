"""Scaling: make the blocks of a gradient as short as the rule says, in place.

Each function takes the gradients (None where a parameter has none), how many blocks each parameter has, and, one a block,
the coefficients and the thresholds, both on the scale on which the gradients stand. On the CPU it looks first and writes only
what changes, beginning with the gradients that were measured last and are still in the cache; on an accelerator the host must
not look, and everything is multiplied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..history import as_tensor
from .norms import stored

__all__ = ["clamp_entries_", "scale_all_", "scale_each_", "scale_units_"]

Gradients = Sequence[Tensor | None]

_SMALL = 1e-30  # coefficients below are multiplied in two steps: float32 has few digits left below 1e-38, and ends at 1e-45


def scale_all_(grads: Gradients, counts: Sequence[int], coefficients: Any, thresholds: Any) -> None:
    """Multiply every gradient by the one coefficient."""
    if not isinstance(coefficients, Tensor):
        for grad in reversed(grads) if coefficients < 1 else ():
            if grad is not None:
                _multiply_(stored(grad), float(coefficients))
        return
    for members in _by_device(grads).values():
        torch._foreach_mul_([g for _, g in members], coefficients.to(members[0][1].device, non_blocking=True))


def scale_each_(grads: Gradients, counts: Sequence[int], coefficients: Any, thresholds: Any) -> None:
    """Multiply each gradient by its own coefficient."""
    if not isinstance(coefficients, Tensor):
        for grad, coefficient in zip(reversed(grads), reversed(coefficients.tolist()), strict=True):
            if grad is not None and coefficient < 1:
                _multiply_(stored(grad), coefficient)
        return
    for device, members in _by_device(grads).items():
        own = coefficients.to(device, non_blocking=True)
        torch._foreach_mul_([g for _, g in members], [own[i] for i, _ in members])


def clamp_entries_(grads: Gradients, counts: Sequence[int], coefficients: Any, thresholds: Any) -> None:
    """Clamp the entries of each gradient whose coefficient says so to plus or minus its threshold.

    Complex ones are clamped by modulus; where that is inf, no direction is left to keep, and they stay as they are.
    """
    on_host = not isinstance(coefficients, Tensor)
    for i, grad in enumerate(grads):
        if grad is None or (on_host and coefficients[i] == 1):
            continue
        limit: Any = (
            float(thresholds[i])
            if on_host
            else torch.where(coefficients[i] == 1, torch.inf, thresholds[i]).to(grad.device, non_blocking=True)
        )
        values = stored(grad)
        if values.is_complex():
            quarters = values.mul(0.25)  # the modulus of the whole can overflow
            parts = torch.view_as_real(quarters).div_(quarters.abs().unsqueeze(-1)).mul_(limit)
            values.copy_(torch.where((values.abs() <= limit) | ~values.isfinite(), values, torch.view_as_complex(parts)))
        else:
            values.clamp_(-limit, limit)


def scale_units_(grads: Gradients, counts: Sequence[int], coefficients: Any, thresholds: Any) -> None:
    """Multiply each unit of each gradient by its own coefficient."""
    on_host = not isinstance(coefficients, Tensor)
    if on_host and not (coefficients < 1).any():
        return
    steps = 2 if on_host and (coefficients < _SMALL).any() else 1
    parts = torch.split(as_tensor(coefficients), list(counts))
    for grad, part in zip(grads, parts, strict=True):
        if grad is None or (on_host and not (part < 1).any()):
            continue
        if grad.is_sparse and grad.dim() > 1:
            part = part[grad._indices()[0]]
        values = stored(grad)
        exact = values.dtype in (torch.float64, torch.complex128)
        part = part if steps == 1 else part.sqrt()
        factors = part.to(values.device, torch.float64 if exact else torch.float32, non_blocking=True)  # never in float16
        for _ in range(steps):
            torch.mul(values, factors.view(-1, *[1] * (values.dim() - 1)) if values.dim() > 0 else factors[0], out=values)


def _by_device(grads: Gradients) -> dict[torch.device, list[tuple[int, Tensor]]]:
    devices: defaultdict[torch.device, list[tuple[int, Tensor]]] = defaultdict(list)
    for i, grad in enumerate(grads):
        if grad is not None and grad.numel() > 0:
            devices[grad.device].append((i, stored(grad)))
    return devices


def _multiply_(values: Tensor, coefficient: float) -> None:
    """Multiply by a number in (0, 1), also by one that float32 cannot hold. (_foreach_mul_ would round it to float16 first.)"""
    if coefficient < _SMALL:
        coefficient = coefficient**0.5
        values.mul_(coefficient)
    values.mul_(coefficient)
