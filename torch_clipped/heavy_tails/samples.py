"""Checks of samples, and bootstrap confidence intervals for their statistics."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .._engine.validation import integer, number, refuse_masked
from .resamples import Resamples, Sample

__all__ = [
    "Array",
    "Estimate",
    "Samples",
    "checked",
    "estimates",
    "inverse",
    "relative",
    "scipy_stats",
    "share_between",
]

Array = NDArray[np.float64]
Samples = Tensor | ArrayLike


class Estimate(NamedTuple):
    """Statistic and the ends of its confidence interval; NaN if the samples do not determine it."""

    value: float
    low: float
    high: float


def scipy_stats() -> ModuleType:
    """Return the module scipy.stats, loaded at the first call."""
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError("torch_clipped.heavy_tails needs scipy: pip install torch-clipped[heavy-tails]") from error
    module: ModuleType = stats
    return module


def checked(name: str, samples: Samples, smallest: int, signed: bool = False) -> Array:
    """Return the samples as a 1-D float64 array; raise ValueError if too few, not finite or, unless ``signed``, negative."""
    refuse_masked(name, samples)
    try:
        found = np.asarray(_plain(samples))
    except (RuntimeError, TypeError, ValueError):
        found = np.array(None)
    if found.size and found.dtype.kind not in "iuf":  # otherwise numpy would convert text, dates and True to numbers
        raise ValueError(f"{name} must be numbers, got {reprlib.repr(samples)}")
    values = found.astype(np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {values.shape}")
    if len(values) < smallest:
        raise ValueError(f"{name} must be at least {smallest} samples, got {len(values)}")
    wrong = ~np.isfinite(values) if signed else ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        wanted = "finite" if signed else "finite and at least 0"
        raise ValueError(f"{name} must be {wanted}, got {values[wrong][0]} in place {wrong.argmax()}")
    return values


def _plain(samples: object) -> object:
    """Convert tensors for numpy, which has no bfloat16 and does not read tensors that require gradients."""
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        return (samples.double() if samples.is_floating_point() else samples).numpy()
    if isinstance(samples, (list, tuple)):
        return [one.item() if isinstance(one, Tensor) and one.dim() == 0 else one for one in samples]
    return samples


def relative(values: Array) -> Array:
    """Divide the values by a power of two about as large, for statistics without a unit; exact, and no power overflows."""
    return np.asarray(np.ldexp(values, -np.frexp(np.abs(values).max())[1]))


def share_between(name: str, value: object) -> float:
    """Return a number between 0 and 1, both excluded, as a float; raise ValueError for others."""
    found = number(name, value, "a number between 0 and 1")
    if not 0 < found < 1:
        raise ValueError(f"{name} must be between 0 and 1, both excluded, got {found}")
    return found


def estimates(
    values: Array, statistic: Callable[[Resamples], ArrayLike], confidence: float, resamples: int, seed: int
) -> list[Estimate]:
    """Return the one or more results of ``statistic`` for the values, with percentile intervals.

    Other intervals would need the statistic without each sample in turn. If the statistic is undefined in a resample, for
    example without variance, the interval is NaN.
    """
    confidence = share_between("confidence", confidence)
    count = integer("resamples", resamples, smallest=1)
    generator = np.random.default_rng(integer("seed", seed, smallest=0))
    sample = Sample(values)
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    with np.errstate(all="ignore"):
        found = np.atleast_2d(statistic(sample.itself))
        drawn = [np.atleast_2d(statistic(some)) for some in sample.resamples(count, generator)]
        low, high = np.quantile(np.concatenate(drawn, axis=1), ends, axis=1)
    return [Estimate(*numbers) for numbers in zip(found[:, 0].tolist(), low.tolist(), high.tolist(), strict=True)]


def inverse(estimate: Estimate) -> Estimate:
    """Return the estimate of 1 / statistic, for a statistic that is never negative."""
    value, low, high = (x if math.isnan(x) else 1 / x if x > 0 else math.inf for x in estimate)
    return Estimate(value, high, low)
