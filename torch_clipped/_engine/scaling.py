"""Scaling: multiply or clamp the blocks of a gradient in place.

Each function takes the gradients (None for a parameter without one), the number of blocks of each parameter, and for each block
its coefficient and its threshold, in the scale of the gradients. On the host it reads the coefficients and writes only gradients
that change, beginning with those measured last, which are still in the cache. On an accelerator the host must not read the
coefficients, so all gradients are multiplied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from .arrays import Numbers, as_tensor
from .norms import LOW_PRECISION, stored

__all__ = ["Scaling", "clamp_entries_", "scale_all_", "scale_each_", "scale_units_"]

Gradients = Sequence[Tensor | None]
Scaling = Callable[[Gradients, Sequence[int], Numbers, Numbers, bool], None]

_Bound = float | Tensor
_DOUBLE = (torch.float64, torch.complex128)
_PART = 1 << 16  # entries copied at a time, or at least a row
_SMALL = 1e-30  # smaller coefficients are multiplied in two steps: float32 has few digits left below 1e-38, and ends at 1e-45


def scale_all_(grads: Gradients, counts: Sequence[int], coefficients: Numbers, thresholds: Numbers, is_host: bool) -> None:
    """Multiply every gradient by the one coefficient."""
    if is_host and coefficients < 1:
        _multiply_([g for g in reversed(grads) if g is not None], [float(coefficients)] * sum(g is not None for g in grads))
    elif not is_host:
        for members in _alike(grads).values():
            _multiply_on_accelerator_([g for _, g in members], cast(Tensor, coefficients))


def scale_each_(grads: Gradients, counts: Sequence[int], coefficients: Numbers, thresholds: Numbers, is_host: bool) -> None:
    """Multiply each gradient by its own coefficient."""
    if is_host:
        pairs = zip(reversed(grads), reversed(coefficients.tolist()), strict=True)
        clipped = [(g, coefficient) for g, coefficient in pairs if coefficient < 1 and g is not None]
        _multiply_([g for g, _ in clipped], [coefficient for _, coefficient in clipped])
        return
    for (device, dtype), members in _alike(grads).items():
        own = cast(Tensor, coefficients).to(device, _exact(dtype)).unbind()
        torch._foreach_mul_([g for _, g in members], [own[i] for i, _ in members])


def clamp_entries_(grads: Gradients, counts: Sequence[int], coefficients: Numbers, thresholds: Numbers, is_host: bool) -> None:
    """Clamp the entries of each gradient with a coefficient below 1 to plus or minus its threshold.

    Complex entries are clamped by modulus. An entry with a modulus of inf has no direction to keep and is not changed.
    """
    if is_host:
        pairs = zip(coefficients.tolist(), thresholds.tolist(), strict=True)
        limits: Sequence[_Bound | None] = [limit if coefficient < 1 else None for coefficient, limit in pairs]
        lowest: Sequence[_Bound | None] = [None if limit is None else -limit for limit in limits]
    else:
        bounds = torch.where(cast(Tensor, coefficients < 1), cast(Tensor, thresholds), torch.inf)
        limits, lowest = bounds.unbind(), (-bounds).unbind()
    for grad, low, limit in zip(grads, lowest, limits, strict=True):
        if grad is None or limit is None:
            continue
        values, bound = stored(grad), limit.to(grad.device) if isinstance(limit, Tensor) else limit
        if values.is_complex():
            quarters = values.mul(0.25)  # the modulus of the whole can overflow
            parts = torch.view_as_real(quarters).div_(quarters.abs().unsqueeze(-1)).mul_(bound)
            values.copy_(torch.where((values.abs() <= bound) | ~values.isfinite(), values, torch.view_as_complex(parts)))
        else:
            lower = low.to(grad.device) if isinstance(low, Tensor) else low
            values.clamp_(cast(Tensor, lower), cast(Tensor, bound))


def scale_units_(grads: Gradients, counts: Sequence[int], coefficients: Numbers, thresholds: Numbers, is_host: bool) -> None:
    """Multiply each unit of each gradient by its own coefficient."""
    chosen, factors = [i for i, grad in enumerate(grads) if grad is not None and counts[i]], as_tensor(coefficients)
    tiny: list[int] = []
    if is_host:
        ends = np.cumsum(counts).tolist()
        bounds = [place for i in chosen for place in (ends[i] - counts[i], ends[i])]
        smallest = np.minimum.reduceat(np.append(factors.numpy(), 1.0), bounds)[::2].tolist() if chosen else []
        clipped = {i: coefficient for i, coefficient in zip(chosen, smallest, strict=True) if coefficient < 1}
        alone = [i for i in reversed(clipped) if counts[i] == 1]
        _multiply_([grads[i] for i in alone], [clipped[i] for i in alone])
        tiny = [i for i in clipped if counts[i] > 1 and clipped[i] < _SMALL]
        chosen = [i for i in clipped if counts[i] > 1 and clipped[i] >= _SMALL]
    for i in 2 * tiny:
        _multiply_rows_([grads[i]], [torch.split(factors.sqrt(), list(counts))[i]])  # type: ignore[list-item]
    if chosen:
        exact, rounded = torch.split(factors, list(counts)), torch.split(factors.float(), list(counts))
        own = [(exact if grads[i].dtype in _DOUBLE else rounded)[i] for i in chosen]  # type: ignore[union-attr]
        _multiply_rows_([grads[i] for i in chosen], own)  # type: ignore[misc]


def _multiply_rows_(grads: Sequence[Tensor], factors: Sequence[Tensor]) -> None:
    """Multiply each row of each gradient by its factor; never in low precision, which would round the factor."""
    rows: list[Tensor] = []
    by_row: list[Tensor] = []
    for grad, own in zip(grads, factors, strict=True):
        values = stored(grad)
        own = own.to(grad.device, _exact(grad.dtype))
        own = own[grad._indices()[0]] if grad.is_sparse and grad.dim() > 1 else own
        own = own.view(-1, *[1] * (values.dim() - 1)) if values.dim() > 0 else own[0]
        is_copied = values.is_cpu and values.dtype in LOW_PRECISION  # to float32, by torch
        if is_copied and values.numel() > _PART and len(own) == len(values):
            count = max(1, _PART * len(values) // values.numel())
            rows += torch.split(values, count)
            by_row += torch.split(own, count)
        else:
            rows.append(values)
            by_row.append(own)
    torch._foreach_mul_(rows, by_row)


def _multiply_(grads: Sequence[Tensor], coefficients: Sequence[float]) -> None:
    """Multiply by numbers in (0, 1), also by numbers that float32 cannot hold."""
    if not grads:
        return
    values, times = [g._values() if g.is_sparse else g for g in grads], 1
    if min(coefficients) < _SMALL:
        coefficients, times = [coefficient**0.5 for coefficient in coefficients], 2
    for _ in range(times):
        if {v.dtype for v in values}.isdisjoint(LOW_PRECISION):
            torch._foreach_mul_(values, coefficients)
            continue
        for value, coefficient in zip(values, coefficients, strict=True):  # _foreach_mul_ would round it to float16 first
            value.mul_(coefficient)


def _multiply_on_accelerator_(values: list[Tensor], coefficient: Tensor) -> None:
    """Multiply all values by one number; a factor of another dtype would take one launch per tensor."""
    torch._foreach_mul_(values, coefficient.to(values[0].device, _exact(values[0].dtype)))


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of factors for values of a dtype: never low precision, which would round them."""
    return torch.float64 if dtype in _DOUBLE else torch.float32


def _alike(grads: Gradients) -> dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]]:
    found: defaultdict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]] = defaultdict(list)
    for i, grad in enumerate(grads):
        if grad is not None and grad.numel() > 0:
            found[grad.device, grad.dtype].append((i, stored(grad)))
    return found
