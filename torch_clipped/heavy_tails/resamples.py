"""Resamples for the bootstrap: samples drawn with replacement from a sample, held as counts of its values in rising order.

Up to 20,000 values are counted one by one. In larger samples neighbouring values are counted together in blocks, so that a
resample takes a few thousand counts however large the sample is. The 500 smallest and the 500 largest values stay single; each
block further in holds 1/500 of the values between it and the nearer end. The scatter within a block is neglected, about one
thousandth of the variance of a quantile in the resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["Resamples", "Sample"]

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

_SINGLE = 20_000  # largest size of a sample that is not cut into blocks
_END = 500  # values at either end that stay single, and the inverse of the share of a block further in
_BATCH = 1 << 21  # counts in memory at a time
_ROUNDING = 1e-13  # a variance below this share of the mean square is 0 up to rounding


class Sample:
    """Sample in rising order, cut into blocks of neighbours."""

    def __init__(self, values: Array) -> None:
        count = len(values)
        if count <= _SINGLE:
            order = np.argsort(values)
            self.rising, self.ranks = values[order], np.empty(count, np.int64)
            self.ranks[order] = np.arange(count)
            self.edges = np.arange(count + 1)
        else:
            self.rising, self.edges = np.sort(values), _edges(count)
        self.sizes = np.diff(self.edges)

    @property
    def itself(self) -> Resamples:
        """Return the sample as one resample, in which every value occurs once."""
        return Resamples(self, self.sizes[None])

    def resamples(self, count: int, generator: np.random.Generator) -> Iterator[Resamples]:
        """Draw ``count`` resamples, in parts of a size that fits the memory of small machines."""
        rows = max(1, _BATCH // len(self.sizes))
        for start in range(0, count, rows):
            yield Resamples(self, self._draw(min(rows, count - start), generator))

    def _draw(self, rows: int, generator: np.random.Generator) -> Counts:
        count = len(self.rising)
        if count > _SINGLE:
            return generator.multinomial(count, self.sizes / count, size=rows)
        places = self.ranks[generator.integers(0, count, size=(rows, count))] + count * np.arange(rows)[:, None]
        return np.bincount(places.ravel(), minlength=rows * count).reshape(rows, count)

    @cached_property
    def exponent(self) -> int:
        """Return e with 2**e about as large as the values; values are divided by 2**e so that no moment overflows."""
        return int(np.frexp(np.abs(self.rising[[0, -1]]).max())[1])

    @cached_property
    def center(self) -> float:
        """Return the median / 2**exponent: moments about it lose few digits when they are moved to the mean."""
        return float(np.ldexp(self.rising[len(self.rising) // 2], -self.exponent))

    @cached_property
    def powers(self) -> Array:
        """Return the mean of (x / 2**exponent - center)^p in every block, of shape (blocks, 4) for p = 1 to 4."""
        centred = np.ldexp(self.rising, -self.exponent) - self.center
        power, means = centred.copy(), []
        for _ in range(4):
            means.append(self._means(power))
            power *= centred
        return np.stack(means, axis=1)

    @cached_property
    def logs(self) -> Array:
        """Return the mean of the logarithms in every block; for equal values it is exactly their logarithm."""
        logs = np.log(self.rising)
        return np.clip(self._means(logs), logs[self.edges[:-1]], logs[self.edges[1:] - 1])

    def _means(self, values: Array) -> Array:
        return np.asarray(np.add.reduceat(values, self.edges[:-1]) / self.sizes)


@dataclass(frozen=True)
class Resamples:
    """Resamples of a sample, as numbers of values from every block, in an array of shape (resamples, blocks)."""

    sample: Sample
    counts: Counts

    @cached_property
    def _firsts(self) -> Counts:
        """Return the places at which resamples begin if all resamples are in one row."""
        return len(self.sample.rising) * np.arange(len(self.counts))

    @cached_property
    def _ends(self) -> Counts:
        """Return the places at which blocks end if all resamples are in one row."""
        return np.asarray(self.counts.cumsum(axis=1) + self._firsts[:, None])

    def _at(self, rank: int) -> Array:
        """Return the value of this rank, from 0, in every resample; inside a block by interpolation."""
        rows, blocks = np.arange(len(self.counts)), self.counts.shape[1]
        block = np.searchsorted(self._ends.ravel(), rank + self._firsts, side="right") - blocks * rows
        drawn = self.counts[rows, block]
        inside = rank + 0.5 - (self._ends[rows, block] - self._firsts - drawn)
        places = self.sample.edges[block] + (inside / drawn * self.sample.sizes[block]).astype(np.int64)
        return np.asarray(self.sample.rising[places])

    def quantile(self, p: float) -> Array:
        """Return the quantile of every resample, interpolated as in numpy."""
        place = p * (len(self.sample.rising) - 1)
        below, above = self._at(math.floor(place)), self._at(math.ceil(place))
        return np.asarray(below + (place - math.floor(place)) * (above - below))

    def share_above(self, limits: Array) -> Array:
        """Return the share of each resample above its limit."""
        sample, count = self.sample, len(self.sample.rising)
        places = np.searchsorted(sample.rising, limits, side="right")
        block = np.minimum(np.searchsorted(sample.edges, places, side="right") - 1, len(sample.sizes) - 1)
        rows = np.arange(len(self.counts))
        part = (sample.edges[block + 1] - places) / sample.sizes[block] * self.counts[rows, block]
        return np.asarray((self._firsts + count - self._ends[rows, block] + part) / count)

    def tail_weight(self, k: int) -> Array:
        """Return the mean of log(x / x_{k+1}) over the k largest values of every resample; NaN if x_{k+1} is 0."""
        smallest = self._at(len(self.sample.rising) - k - 1)
        first = np.searchsorted(self.sample.edges, np.searchsorted(self.sample.rising, smallest.min()), side="right") - 1
        above = np.maximum(self.sample.logs[first:] - np.log(smallest)[:, None], 0)
        return np.asarray((self.counts[:, first:] * above).sum(axis=1) / k)

    def mean(self) -> Array:
        """Return the mean of every resample."""
        from_center = self.counts @ self.sample.powers[:, 0] / len(self.sample.rising)
        return np.asarray(np.ldexp(self.sample.center + from_center, self.sample.exponent))

    def variance(self) -> Array:
        """Return the variance of every resample, with n - 1 in the denominator."""
        count = len(self.sample.rising)
        return np.asarray(np.ldexp(self._moments[0] * (count / (count - 1)), 2 * self.sample.exponent))

    def skewness(self) -> Array:
        """Return m_3 / m_2^(3/2) of every resample; NaN without variance."""
        return np.asarray(self._moments[1] / self._moments[0] ** 1.5)

    def excess_kurtosis(self) -> Array:
        """Return m_4 / m_2^2 - 3 of every resample; NaN without variance."""
        return np.asarray(self._moments[2] / self._moments[0] ** 2 - 3)

    @cached_property
    def _moments(self) -> Array:
        """Return the central moments m_2, m_3 and m_4 of x / 2**exponent; 0 if the values differ by rounding only."""
        a, b, c, d = (self.counts @ self.sample.powers / len(self.sample.rising)).T
        second = b - a**2
        rounding = np.maximum(_ROUNDING * b, (np.finfo(np.float64).eps * (self.sample.center + a)) ** 2)
        moments = np.stack([second, c - 3 * a * b + 2 * a**3, d - 4 * a * c + 6 * a**2 * b - 3 * a**4])
        return np.where(second <= rounding, 0.0, moments)


def _edges(count: int) -> Counts:
    """Return the places at which blocks of neighbours begin, and the end."""
    half = count // 2
    geometric = np.geomspace(_END, half, round(_END * math.log(half / _END)) + 1)
    near = np.concatenate([np.arange(_END), geometric]).astype(np.int64)
    return np.unique(np.concatenate([near, count - near]))
