"""Arithmetic for the few numbers of a step: numpy's on the host, torch's on an accelerator, whose values the host must not read.

A clip set has one :class:`Arrays` for all its numbers. On the host the numbers are numpy arrays, or numpy scalars if the clip set
is one block. On an accelerator they are tensors, and no operation here synchronizes with the host.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "HOST",
    "AcceleratorArrays",
    "Arrays",
    "Factor",
    "Numbers",
    "Truth",
    "accumulation_dtype",
    "arrays_of",
    "as_tensor",
    "chronological",
    "either",
    "numpy",
    "resized",
]


class Numbers(Protocol):
    """Array or scalar of numpy, or a tensor, that holds numbers or truth values."""

    @property
    def ndim(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, key: object, /) -> Numbers: ...
    def __setitem__(self, key: object, value: Numbers | float, /) -> None: ...
    def __add__(self, other: Numbers | float, /) -> Numbers: ...
    def __sub__(self, other: Numbers | float, /) -> Numbers: ...
    def __rsub__(self, other: float, /) -> Numbers: ...
    def __mul__(self, other: Numbers | float, /) -> Numbers: ...
    def __rmul__(self, other: float, /) -> Numbers: ...
    def __truediv__(self, other: Numbers | float, /) -> Numbers: ...
    def __rtruediv__(self, other: float, /) -> Numbers: ...
    def __pow__(self, other: Numbers | float, /) -> Numbers: ...
    def __rpow__(self, other: float, /) -> Numbers: ...
    def __mod__(self, other: int, /) -> Numbers: ...
    def __rshift__(self, other: int, /) -> Numbers: ...
    def __lt__(self, other: Numbers | float, /) -> Numbers: ...
    def __le__(self, other: Numbers | float, /) -> Numbers: ...
    def __gt__(self, other: Numbers | float, /) -> Numbers: ...
    def __ge__(self, other: Numbers | float, /) -> Numbers: ...
    def __and__(self, other: Numbers | bool, /) -> Numbers: ...
    def __or__(self, other: Numbers | bool, /) -> Numbers: ...
    def __xor__(self, other: Numbers | int, /) -> Numbers: ...
    def __invert__(self) -> Numbers: ...
    def __float__(self) -> float: ...
    def __int__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def sum(self, axis: int = ..., /) -> Numbers: ...
    def tolist(self) -> Any: ...


Moments = tuple[Numbers, Numbers, Numbers]

Factor = float | Numbers  # Numbers: a tensor on an accelerator, whose value the host does not read
Truth = bool | Numbers
numpy: Any = np  # typed as Any: numpy's types do not know Numbers


class Arrays:
    """Numpy's arithmetic, on the host. Scalars are not converted to arrays, which would take ten times as long."""

    is_host = True

    def where(self, condition: Numbers, one: Numbers | float, other: Numbers | float) -> Numbers:
        """Return ``one`` where the condition holds, else ``other``."""
        if isinstance(condition, (np.bool_, bool)):
            chosen = one if condition else other
            return numpy.float64(chosen) if isinstance(chosen, (float, int)) else chosen
        return numpy.where(condition, one, other)

    def full_like(self, like: Numbers, number: Numbers | float) -> Numbers:
        """Return the number in the shape of ``like``."""
        return numpy.float64(number) if like.ndim == 0 else numpy.full_like(like, number)

    def isfinite(self, values: Numbers) -> Numbers:
        """Return which values are neither inf nor NaN."""
        return numpy.isfinite(values)

    def are_finite(self, values: Numbers) -> tuple[Numbers, Numbers]:
        """Return which values are neither inf nor NaN, and whether all are."""
        finite = numpy.isfinite(values)
        return finite, finite if finite.ndim == 0 else numpy.logical_and.reduce(finite)

    def minimum(self, one: Numbers, other: Numbers) -> Numbers:
        """Return the smaller of two values, one by one."""
        return numpy.minimum(one, other)

    def at_least(self, values: Numbers, smallest: float) -> Numbers:
        """Return the values, smaller ones replaced by ``smallest``."""
        return numpy.maximum(values, smallest)

    def at_most(self, values: Numbers, largest: float) -> Numbers:
        """Return the values, greater ones replaced by ``largest``."""
        return numpy.minimum(values, largest)

    def as_coefficients(self, alpha: Numbers) -> Numbers:
        """Return min(1, alpha)."""
        return numpy.minimum(alpha, 1.0)

    def coefficients(self, alpha: Numbers, clipped: Numbers) -> Numbers:
        """Return min(1, alpha) where a block is clipped, else 1."""
        if alpha.ndim == 0:
            return alpha if clipped and alpha < 1 else numpy.float64(1.0)
        return numpy.where(clipped, numpy.minimum(alpha, 1.0), 1.0)

    def lerp_(self, values: Numbers, target: Numbers, share: Numbers) -> None:
        """Move values in place by a share of the way to a target."""
        values[...] = values + share * (target - values)

    def false(self, like: Numbers) -> Numbers:
        """Return False, on the device of ``like``."""
        return numpy.False_

    def concatenate(self, parts: Sequence[Numbers]) -> Numbers:
        """Return the values of all parts, concatenated."""
        return numpy.concatenate(parts)

    def stack(self, values: Sequence[Numbers]) -> Numbers:
        """Return the values as the entries of one array."""
        return numpy.array(values)

    def any(self, condition: Numbers) -> Numbers:
        """Return whether the condition holds anywhere."""
        return condition if condition.ndim == 0 else numpy.logical_or.reduce(condition)

    def norm(self, norms: Numbers, norm_type: float) -> Numbers:
        """Return the p-norm of a vector whose parts have these p-norms; 0 without parts."""
        if len(norms) == 1:
            return norms[0]
        if norm_type == 2:
            norm = numpy.sqrt(numpy.add.reduce(norms * norms))  # not @: its threads take milliseconds to wake up
            if 1e-150 < norm < 1e150:  # no square overflowed or vanished
                return norm
        largest = numpy.max(norms, initial=0.0)
        if norm_type == math.inf or not 0 < largest < math.inf:
            return largest
        return ((norms / largest) ** norm_type).sum() ** (1 / norm_type) * largest

    def median(self, values: Numbers, chosen: Numbers) -> Numbers:
        """Return the median of the chosen values; NaN if none is chosen."""
        if values.ndim == 0:
            return values
        kept = values[chosen] if len(values) > 1 else values
        return numpy.median(kept) if len(kept) else numpy.float64(math.nan)

    def push(self, history: SimpleNamespace, values: Numbers, valid: Numbers) -> None:
        """Record the values of the blocks that are ``valid`` in a history."""
        if values.ndim == 0:  # one block
            blocks: Iterable[tuple[object, float, object, int]] = [((), float(values), valid, int(history.count))]
        else:
            counts: list[int] = history.count.tolist()
            blocks = zip(range(len(counts)), values.tolist(), valid.tolist(), counts, strict=True)
        window, ordered = len(history.lengths), getattr(history, "ordered", None)
        for block, value, known, recorded in blocks:
            if not known:
                continue
            place = recorded % window if block == () else (recorded % window, block)
            if ordered is not None:
                rising = ordered[block or 0]
                if recorded >= window:
                    del rising[bisect_left(rising, history.lengths[place])]
                insort(rising, value)
            history.lengths[place] = value
            history.count[block] = recorded + 1

    def quantile(self, history: SimpleNamespace, probability: float) -> Numbers:
        """Return the quantile of each block's recorded values, linear between order statistics; inf where there are none."""
        if not hasattr(history, "ordered"):  # sorted once after a start or a load, kept sorted by push
            history.ordered = [array("d", np.sort(chronological(history, block))) for block in range(history.count.size)]
        quantiles = [_sorted_quantile(values, probability) for values in history.ordered]
        return numpy.array(quantiles) if history.count.ndim else numpy.float64(quantiles[0])

    def mean_and_std(self, history: SimpleNamespace) -> Moments:
        """Return the count, the mean and the sample standard deviation of each block's recorded values."""
        window, known = len(history.lengths), numpy.minimum(history.count, len(history.lengths))
        if known.min() == known.max():
            values = history.lengths[: int(known.max())]
            mean = values.sum(0) / numpy.maximum(known, 1)
            squares = ((values - mean) ** 2).sum(0)
        else:
            is_known = np.arange(window).reshape(-1, *[1] * known.ndim) < known
            mean = numpy.where(is_known, history.lengths, 0.0).sum(0) / numpy.maximum(known, 1)
            squares = numpy.where(is_known, (history.lengths - mean) ** 2, 0.0).sum(0)
        return known, mean, (squares / numpy.maximum(known - 1, 1)) ** 0.5


class AcceleratorArrays(Arrays):
    """Torch's arithmetic, for numbers that the host cannot read without waiting.

    Each operation costs the host some microseconds, so there should be few. Constants are kept as tensors, because making a
    tensor is another operation.
    """

    is_host = False
    _SMALLEST = 3e-39  # a coefficient: its inverse fits float32

    def __init__(self) -> None:
        self._kept: dict[object, Tensor] = {}

    def where(self, condition: Numbers, one: Numbers | float, other: Numbers | float) -> Numbers:
        like = cast(Tensor, one if isinstance(one, Tensor) else other if isinstance(other, Tensor) else condition)
        numbers = self._number(one, like), self._number(other, like)
        return cast(Numbers, torch.where(cast(Tensor, condition), *numbers))

    def _number(self, value: Numbers | float, like: Tensor) -> Tensor:
        if isinstance(value, Tensor):
            return value
        dtype = like.dtype if like.is_floating_point() else accumulation_dtype(like.device)
        key = value, dtype, like.device
        if key not in self._kept:
            self._kept[key] = torch.full((), cast(float, value), dtype=dtype, device=like.device)
        return self._kept[key]

    def _rows(self, history: SimpleNamespace) -> Tensor:
        window, device = len(history.lengths), history.lengths.device
        if (window, device) not in self._kept:
            self._kept[window, device] = torch.arange(window, device=device)
        return self._kept[window, device].reshape(-1, *[1] * history.count.ndim)

    def full_like(self, like: Numbers, number: Numbers | float) -> Numbers:
        shape = cast(Tensor, like)
        return cast(Numbers, self._number(number, shape).expand_as(shape))

    def isfinite(self, values: Numbers) -> Numbers:
        return values < math.inf  # values are not negative; one kernel, torch.isfinite takes four

    def are_finite(self, values: Numbers) -> tuple[Numbers, Numbers]:
        finite = self.isfinite(values)
        return finite, finite if finite.ndim == 0 else cast(Numbers, cast(Tensor, finite).all())

    def minimum(self, one: Numbers, other: Numbers) -> Numbers:
        return cast(Numbers, torch.minimum(cast(Tensor, one), cast(Tensor, other)))

    def at_least(self, values: Numbers, smallest: float) -> Numbers:
        return cast(Numbers, cast(Tensor, values).clamp(min=smallest))

    def at_most(self, values: Numbers, largest: float) -> Numbers:
        return cast(Numbers, cast(Tensor, values).clamp(max=largest))

    def as_coefficients(self, alpha: Numbers) -> Numbers:
        return cast(Numbers, cast(Tensor, alpha).clamp(self._SMALLEST, 1.0))

    def coefficients(self, alpha: Numbers, clipped: Numbers) -> Numbers:
        return self.where(clipped, self.as_coefficients(alpha), 1.0)

    def lerp_(self, values: Numbers, target: Numbers, share: Numbers) -> None:
        cast(Tensor, values).lerp_(cast(Tensor, target), cast(Tensor, share))

    def false(self, like: Numbers) -> Numbers:
        key = "false", cast(Tensor, like).device
        if key not in self._kept:
            self._kept[key] = torch.zeros((), dtype=torch.bool, device=key[1])
        return cast(Numbers, self._kept[key])

    def concatenate(self, parts: Sequence[Numbers]) -> Numbers:
        return cast(Numbers, torch.cat([*cast(Sequence[Tensor], parts)]))

    def stack(self, values: Sequence[Numbers]) -> Numbers:
        return cast(Numbers, torch.stack([*cast(Sequence[Tensor], values)]))

    def any(self, condition: Numbers) -> Numbers:
        return condition if condition.ndim == 0 else cast(Numbers, cast(Tensor, condition).any())

    def norm(self, norms: Numbers, norm_type: float) -> Numbers:
        parts = cast(Tensor, norms)
        if len(parts) == 0:
            return cast(Numbers, parts.sum())
        # float64 holds the squares of float32; higher powers may leave its range, which is corrected on the host only
        return cast(Numbers, parts[0] if len(parts) == 1 else torch.linalg.vector_norm(parts, norm_type))

    def median(self, values: Numbers, chosen: Numbers) -> Numbers:
        if values.ndim == 0:
            return values
        if len(values) < 2:
            return values[0] if len(values) else values.sum() * math.nan
        kept = torch.where(cast(Tensor, chosen), cast(Tensor, values), math.nan)
        middle = [kept.nanquantile(0.5, interpolation=side) for side in ("lower", "higher")]  # "linear" returns NaN for two infs
        return cast(Numbers, (middle[0] + middle[1]) / 2)

    def push(self, history: SimpleNamespace, values: Numbers, valid: Numbers) -> None:
        row = (history.count % len(history.lengths))[None]
        oldest = history.lengths.gather(0, row)
        history.lengths.scatter_(0, row, torch.where(cast(Tensor, valid), cast(Tensor, values).to(oldest.dtype), oldest))
        history.count.add_(valid)

    def quantile(self, history: SimpleNamespace, probability: Numbers | float) -> Numbers:
        window, count = len(history.lengths), history.count
        unknown = self._number(math.inf, history.lengths)
        rising = torch.where(self._rows(history) < count, history.lengths, unknown).sort(dim=0).values
        position = (count.clamp(1, window) - 1) * cast(Tensor, self.full_like(history.lengths[0], probability))
        lower, upper = position.long(), position.ceil().long()
        low, high = rising.gather(0, lower[None])[0], rising.gather(0, upper[None])[0]
        return cast(Numbers, torch.where(low < math.inf, torch.lerp(low, high, position - lower), low))

    def mean_and_std(self, history: SimpleNamespace) -> Moments:
        known, zero = history.count.clamp(max=len(history.lengths)), self._number(0.0, history.lengths)
        is_known = self._rows(history) < known
        mean = torch.where(is_known, history.lengths, zero).sum(0) / known.clamp(min=1)
        squares = torch.where(is_known, (history.lengths - mean).square_(), zero).sum(0)
        return cast(Moments, (known, mean, (squares / (known - 1).clamp_(min=1)).sqrt_()))


HOST = Arrays()


def arrays_of(values: object) -> Arrays:
    """Return the object that computes with these numbers."""
    return AcceleratorArrays() if isinstance(values, Tensor) else HOST


def either(one: Truth, other: Truth) -> Truth:
    """Return whether one or the other holds; a False on the host needs no operation on an accelerator."""
    if isinstance(one, bool):
        return one or other
    return one if other is False else one | other


def as_tensor(values: object) -> Tensor:
    """Return numbers as a tensor on their own device. (``torch.as_tensor`` would put arrays on torch's default device.)"""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of norms on a device: float64 if the device supports it."""
    return torch.float32 if device.type == "mps" else torch.float64


def chronological(history: SimpleNamespace, block: int = 0) -> Any:
    """Return the recorded values of a block, oldest first."""
    window, count = len(history.lengths), int(history.count.reshape(-1)[block])
    column = history.lengths.reshape(window, -1)[:, block]
    if count <= window:
        return column[:count]
    parts = column[count % window :], column[: count % window]
    return torch.cat(parts) if isinstance(column, Tensor) else np.concatenate(parts)


def resized(lengths: Tensor, count: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Return the same history with another window: the newest values that fit are kept."""
    history = SimpleNamespace(lengths=lengths, count=count)
    fresh_lengths, fresh_count = lengths.new_zeros(window, lengths.shape[1]), torch.zeros_like(count)
    for block in range(lengths.shape[1]):
        kept = chronological(history, block)[-window:]
        fresh_lengths[: len(kept), block] = kept
        fresh_count[block] = len(kept)
    return fresh_lengths, fresh_count


def _sorted_quantile(values: array[float], probability: float) -> float:
    if not values:
        return math.inf
    position = probability * (len(values) - 1)
    lower = int(position)
    if lower + 1 >= len(values):
        return values[-1]
    return values[lower] + (values[lower + 1] - values[lower]) * (position - lower)
