"""Tail indices: measures of how quickly large samples become rare."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._engine.validation import integer
from .samples import Array, Estimate, Samples, checked, estimates, inverse, relative, scipy_stats, share_between

__all__ = ["Curve", "hill_curve", "hill_estimate", "hill_index", "stable_index", "tail_count"]


class Curve(NamedTuple):
    """Statistic for growing numbers of samples, with the ends of its confidence intervals, in arrays of the same size."""

    samples: NDArray[np.int64]
    values: Array
    low: Array
    high: Array


def hill_index(
    lengths: Samples, share: float = 0.05, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Return the Hill estimate of a in P(X > x) ~ x^-a, from the largest samples x_1 >= x_2 >= ...

        a = k / (log(x_1 / x_{k+1}) + ... + log(x_k / x_{k+1}))          k = share of the samples, rounded

    A distribution with a <= 2 has no variance, one with a <= 1 no mean. Distributions with lighter tails than any power get a
    large index, which grows with fewer samples k: see :func:`hill_curve`. The interval does not show that dependence on k.

    Args:
        lengths: 1-D, finite, at least 0, with the k + 1 largest positive.
        share (float): the share of samples in the tail, between 0 and 1. Default: 0.05.
        confidence, resamples, seed: as in :func:`torch_clipped.heavy_tails.quantiles`.

    Returns:
        The index; inf if the k + 1 largest are equal.

    Raises:
        ValueError: an argument is invalid, or the share is less than one sample.

    Example:
        >>> from torch_clipped.heavy_tails import hill_index
        >>> index = hill_index([1 / (i + 0.5) ** 0.5 for i in range(1000)])  # quantiles of P(X > x) = x^-2
        >>> round(index.value, 2), index.low < 2 < index.high
        (1.99, True)

    References:
        Bruce M. Hill, A Simple General Approach to Inference About the Tail of a Distribution, 1975,
        https://doi.org/10.1214/aos/1176343247.
    """
    values = checked("lengths", lengths, smallest=2)
    k = tail_count(values, share)
    return hill_estimate(values, k, *estimates(values, lambda drawn: drawn.tail_weight(k), confidence, resamples, seed))


def hill_estimate(values: Array, k: int, weight: Estimate) -> Estimate:
    """Return the Hill index of an estimated tail weight; the weight itself is computed again, value by value."""
    logs = np.log(np.partition(values, -k - 1)[-k - 1 :])
    return inverse(weight._replace(value=float((logs[1:] - logs[0]).mean())))


def tail_count(values: Array, share: float) -> int:
    """Return the number k of samples in a share; raise ValueError if k is 0 or all, or the (k + 1)-th largest is not positive."""
    k = round(share_between("share", share) * len(values))
    if not 0 < k < len(values):
        raise ValueError(f"share must be at least one sample and not all, got {share} of {len(values)} samples")
    if not -np.partition(-values, k)[k] > 0:
        raise ValueError(f"lengths must be positive in the tail, but of the largest {k + 1} not all are")
    return k


def hill_curve(lengths: Samples, *, confidence: float = 0.95) -> Curve:
    """Return the Hill estimate for every k from 1 to half of the samples; a power-law tail gives a flat stretch.

        low, high = a c_p / (2 k)          c_p: the quantile p of the chi-squared distribution with 2 k degrees of freedom

    with p = (1 -+ confidence) / 2. The interval is exact for a Pareto distribution, and otherwise valid for many samples if the
    bias is small. For large k it is a (1 -+ z / sqrt(k)).

    Args:
        lengths: 1-D, finite, at least 0, at least two positive; k ends before the first x_{k+1} that is 0.
        confidence (float): confidence of each single interval, between 0 and 1. Default: 0.95.

    Returns:
        The values of k, the index at each, and the ends of its interval.

    Raises:
        ValueError: an argument is invalid.
        ImportError: scipy is missing.

    Example:
        >>> from torch_clipped.heavy_tails import hill_curve
        >>> hill_curve([1.0, 2.0, 4.0, 8.0]).values.round(3)
        array([1.443, 0.962])

    References:
        Bruce M. Hill, A Simple General Approach to Inference About the Tail of a Distribution, 1975,
        https://doi.org/10.1214/aos/1176343247.
    """
    confidence = share_between("confidence", confidence)
    values = checked("lengths", lengths, smallest=2)
    logs = np.log(-np.sort(-values[values > 0]))
    last = min(len(values) // 2, len(logs) - 1)
    if last < 1:
        raise ValueError(f"lengths must hold at least two positive ones, got {len(logs)}")
    k = np.arange(1, last + 1)
    weights = (
        np.cumsum(k * (logs[:last] - logs[1 : last + 1])) / k
    )  # the same sum by its steps, which rounding cannot make negative
    with np.errstate(divide="ignore"):
        index = 1 / weights
    chi2 = scipy_stats().chi2
    low, high = (index * chi2.ppf((1 + sign * confidence) / 2, 2 * k) / (2 * k) for sign in (-1, 1))
    return Curve(k, index, low, high)


def stable_index(
    samples: Samples, block: int | None = None, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Estimate the index a of a symmetric stable distribution, 2 for the normal one, from sums over blocks of m samples.

        1 / a = (mean of log|sum of a block| - mean of log|x|) / log m

    because the sum of m such numbers is distributed as m^(1/a) times one of them. The samples must be independent, from a
    distribution symmetric about 0: entries of the gradient noise, or differences of pairs of norms. Norms themselves are not
    supported: their sums grow like m and give about 1. For a distribution that is not stable the index only shows how fast sums
    of m grow; with a variance the index tends to 2 as m grows. The formula is from Mohammadi et al., its use from Simsekli et al.

    Args:
        samples: 1-D, finite, of both signs.
        block (int): the number m of samples in a block, at least 2, at most half of the samples; a rest that does not fill a
            block is not used. Default: None, the square root of the number of samples.
        confidence, resamples, seed: as in :func:`torch_clipped.heavy_tails.quantiles`. Whole blocks are drawn. The formula is a
            mean over blocks that has a variance, so the bootstrap is valid also for distributions without a variance.

    Returns:
        The index. By chance it can exceed 2, and be inf if the sums do not grow. NaN if a sample or a sum is 0.

    Raises:
        ValueError: an argument is invalid, or there are fewer than 4 samples.

    Example:
        >>> import torch
        >>> from torch_clipped.heavy_tails import stable_index
        >>> noise = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
        >>> index = stable_index(noise)
        >>> index.low < 2 < index.high
        True

    References:
        Mohammad Mohammadi, Adel Mohammadpour, Hiroaki Ogata, On Estimating the Tail Index and the Spectral Measure of
        Multivariate alpha-Stable Distributions, 2015, https://doi.org/10.1007/s00184-014-0515-7.

        Umut Simsekli, Levent Sagun, Mert Gurbuzbalaban, A Tail-Index Analysis of Stochastic Gradient Noise in Deep Neural
        Networks, 2019, https://arxiv.org/abs/1901.06053.
    """
    values = checked("samples", samples, smallest=4, signed=True)
    size = math.isqrt(len(values)) if block is None else integer("block", block, smallest=2)
    if 2 * size > len(values):
        raise ValueError(f"block must be at most half of the samples, got {block} of {len(values)}")
    blocks = relative(values)[: len(values) // size * size].reshape(-1, size)
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = np.log(np.abs(blocks.sum(axis=1))) - np.log(np.abs(blocks)).mean(axis=1)
    growth[~np.isfinite(growth)] = np.nan
    return inverse(*estimates(growth / math.log(size), lambda drawn: drawn.mean(), confidence, resamples, seed))
