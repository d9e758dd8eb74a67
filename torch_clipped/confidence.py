"""Samples checked, and confidence intervals for statistics of them by the bootstrap of scipy."""

from __future__ import annotations

import math
import reprlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ._engine.validation import integer, number

__all__ = [
    "Array",
    "Estimate",
    "Samples",
    "checked",
    "estimates",
    "inverse",
    "quantile",
    "refuse_masked",
    "relative",
    "scipy_stats",
    "share_between",
]

Array = NDArray[np.float64]
Samples = Tensor | ArrayLike
_BATCH = 1 << 21  # numbers that are drawn at a time
_DRAWN = 20_000_000  # numbers that are drawn at most, by fewer resamples of many samples
_FEWEST = 100  # resamples, however many samples there are


class Estimate(NamedTuple):
    """A statistic and the ends of its confidence interval; NaN where the samples do not determine it."""

    value: float
    low: float
    high: float


def scipy_stats() -> Any:
    """The module scipy.stats, loaded at the first call."""
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError("torch_clipped.heavy_tails needs scipy: pip install torch-clipped[heavy-tails]") from error
    return stats


def checked(name: str, samples: Samples, smallest: int, signed: bool = False) -> Array:
    """The samples as a float64 array; ValueError if they are too few, not finite or, unless ``signed``, negative."""
    refuse_masked(name, samples)
    try:
        found = np.asarray(_plain(samples))
    except (RuntimeError, TypeError, ValueError):
        found = np.array(None)
    if found.size and found.dtype.kind not in "iuf":  # else numpy would take text, dates and True for numbers
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


def refuse_masked(name: str, samples: Any) -> None:
    """Raise ValueError if samples are masked: numpy would take them for samples like the others."""
    masked = int(np.ma.getmaskarray(samples).sum()) if isinstance(samples, np.ma.MaskedArray) else 0
    if masked:
        raise ValueError(f"{name} must not be masked, got {masked} masked of {samples.size} samples: pass {name}.compressed()")


def _plain(samples: Any) -> Any:
    """What numpy understands: it has no bfloat16, and takes no number from a tensor that requires a gradient."""
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        return (samples.double() if samples.is_floating_point() else samples).numpy()
    if isinstance(samples, (list, tuple)):
        return [one.item() if isinstance(one, Tensor) and one.dim() == 0 else one for one in samples]
    return samples


def relative(values: Array) -> Array:
    """The values over a power of two about as large, for statistics without a unit: exact, and no power overflows."""
    return np.asarray(np.ldexp(values, -np.frexp(np.abs(values).max())[1]))


def share_between(name: str, value: Any) -> float:
    """A number between 0 and 1, both excluded."""
    found = number(name, value, "a number between 0 and 1")
    if not 0 < found < 1:
        raise ValueError(f"{name} must be between 0 and 1, both excluded, got {found}")
    return found


def estimates(values: Array, statistic: Callable[[Array], Any], confidence: float, resamples: int, seed: int) -> list[Estimate]:
    """What ``statistic`` finds along the last axis of its argument, one number or more, with percentile intervals.

    It gets samples in rising order. Their places in it are drawn, since numpy sorts 16 bits several times as fast as floats.
    Percentile intervals, since those of the other methods would need a statistic for each sample left out. A sample in which
    the statistic is not defined, such as one without variance, leaves an interval of NaN. Of more than 20,000 samples fewer are
    drawn than ``resamples`` says: so many that 20 million numbers are drawn, and 100 at least.
    """
    confidence = share_between("confidence", confidence)
    resamples = min(integer("resamples", resamples, smallest=1), max(_FEWEST, _DRAWN // len(values)))
    generator = np.random.default_rng(integer("seed", seed, smallest=0))
    stats = scipy_stats()
    order = np.argsort(values)
    rising = values[order]
    short = len(values) <= 1 << 16
    places = np.empty(len(values), np.uint16 if short else np.uint32)
    places[order] = np.arange(len(values))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = statistic(rising)
        interval = stats.bootstrap(
            (places,),
            lambda drawn, axis: statistic(rising[np.sort(drawn, stable=short)]),
            n_resamples=resamples,
            batch=max(1, _BATCH // len(values)),
            confidence_level=confidence,
            method="percentile",
            random_state=generator,
        ).confidence_interval
    columns = (np.atleast_1d(column).tolist() for column in (found, interval.low, interval.high))
    return [Estimate(*numbers) for numbers in zip(*columns, strict=True)]


def quantile(rising: Array, p: float) -> Array:
    """The quantile of samples in rising order along the last axis: as numpy interpolates it, which would sort again."""
    place = p * (rising.shape[-1] - 1)
    below, above = rising[..., math.floor(place)], rising[..., math.ceil(place)]
    return np.asarray(below + (place - math.floor(place)) * (above - below))


def inverse(estimate: Estimate) -> Estimate:
    """That of 1 / statistic, where the statistic is one that is never negative."""
    value, low, high = (x if math.isnan(x) else 1 / x if x > 0 else math.inf for x in estimate)
    return Estimate(value, high, low)
