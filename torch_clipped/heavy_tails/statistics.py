"""Statistics of samples, with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .._engine.validation import number
from .outliers import NORMAL_SHARES, beyond_fences, outliers
from .resamples import Resamples
from .samples import Array, Estimate, Samples, checked, estimates
from .tail_indices import Curve, hill_estimate, stable_index, tail_count

__all__ = ["excess_kurtosis", "quantiles", "skewness", "tail_statistics", "variance_curve"]

PROBABILITIES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_POINTS = 20  # points of the variance curve


def quantiles(
    lengths: Samples,
    probabilities: Sequence[float] = PROBABILITIES,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[float, Estimate]:
    """Return the quantiles: a share p of the samples is below the quantile of p, interpolated linearly between two samples.

    Args:
        lengths: 1-D, finite, at least 0, at least two samples.
        probabilities: each between 0 and 1, both included. Default: 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99.
        confidence (float): confidence of the interval, between 0 and 1. Default: 0.95.
        resamples (int): the number of resamples for the interval. More than 20,000 samples are drawn in blocks of neighbours, as
            described in :mod:`torch_clipped.heavy_tails`, so that ten million take seconds. Default: 1000.
        seed (int): seed of the resamples, at least 0; no global random state is used. Default: 0.

    Returns:
        An estimate for every probability.

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> from torch_clipped.heavy_tails import quantiles
        >>> median = quantiles(range(101), [0.5])[0.5]
        >>> median.value, 35 < median.low < 50 < median.high < 65
        (50.0, True)

    References:
        Rob J. Hyndman, Yanan Fan, Sample Quantiles in Statistical Packages, 1996,
        https://doi.org/10.1080/00031305.1996.10473566.
    """
    wanted = [number("probabilities", p, "numbers between 0 and 1") for p in probabilities]
    if not wanted or min(wanted) < 0 or max(wanted) > 1:
        raise ValueError(f"probabilities must be numbers between 0 and 1, got {probabilities!r}")
    values = checked("lengths", lengths, smallest=2)
    found = estimates(values, lambda drawn: [drawn.quantile(p) for p in wanted], confidence, resamples, seed)
    return dict(zip(wanted, found, strict=True))


def skewness(lengths: Samples, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Return the skewness m_3 / m_2^(3/2) with m_p = mean of (x - mean)^p (scipy.stats.skew); 0 for a symmetric distribution.

    The skewness cannot exceed sqrt(number of samples), however heavy the tail. The interval is unreliable, mostly too narrow, if
    the distribution has no sixth moment.

    Args:
        lengths: 1-D, finite, at least 0, at least three samples; the result is NaN if all are equal.
        confidence, resamples, seed: as in :func:`quantiles`.

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> from torch_clipped.heavy_tails import skewness
        >>> round(skewness([1.0, 1.0, 1.0, 5.0]).value, 3)
        1.155

    References:
        D. N. Joanes, C. A. Gill, Comparing Measures of Sample Skewness and Kurtosis, 1998,
        https://doi.org/10.1111/1467-9884.00122.
    """
    values = checked("lengths", lengths, smallest=3)
    return estimates(values, lambda drawn: drawn.skewness(), confidence, resamples, seed)[0]


def excess_kurtosis(lengths: Samples, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Return the excess kurtosis m_4 / m_2^2 - 3 with m_p = mean of (x - mean)^p (scipy.stats.kurtosis).

    It is 0 for a normal distribution and cannot exceed the number of samples, however heavy the tail. The interval is unreliable,
    mostly too narrow, if the distribution has no eighth moment.

    Args:
        lengths: 1-D, finite, at least 0, at least four samples; the result is NaN if all are equal.
        confidence, resamples, seed: as in :func:`quantiles`.

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> from torch_clipped.heavy_tails import excess_kurtosis
        >>> round(excess_kurtosis([1.0, 1.0, 1.0, 5.0]).value, 3)
        -0.667

    References:
        D. N. Joanes, C. A. Gill, Comparing Measures of Sample Skewness and Kurtosis, 1998,
        https://doi.org/10.1111/1467-9884.00122.
    """
    values = checked("lengths", lengths, smallest=4)
    return estimates(values, lambda drawn: drawn.excess_kurtosis(), confidence, resamples, seed)[0]


def variance_curve(lengths: Samples, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> Curve:
    """Return the empirical variance s^2 = sum of (x - mean)^2 / (n - 1) of the first n samples, for growing n.

    It converges if the distribution has a variance, and otherwise keeps growing in jumps. The intervals are unreliable, mostly
    far too narrow, if the distribution has no fourth moment.

    Args:
        lengths: 1-D, finite, at least 0, at least two samples, in the order of measuring.
        confidence, resamples, seed: as in :func:`quantiles`.

    Returns:
        At most 20 numbers n, evenly spread on a logarithmic scale, the variances, and the ends of their intervals.

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> from torch_clipped.heavy_tails import variance_curve
        >>> curve = variance_curve([0.0, 2.0, 4.0])
        >>> curve.samples.tolist(), curve.values.tolist()
        ([3], [4.0])

    References:
        Jingzhao Zhang, Sai Praneeth Karimireddy, Andreas Veit, Seungyeon Kim, Sashank J. Reddi, Sanjiv Kumar, Suvrit Sra, Why
        are Adaptive Methods Good for Attention Models?, 2020, https://arxiv.org/abs/1912.03194.
    """
    values = checked("lengths", lengths, smallest=2)
    counts = np.unique(np.geomspace(min(10, len(values)), len(values), _POINTS).round().astype(np.int64))
    firsts = (values[:count] for count in counts.tolist())
    found = [estimates(first, lambda drawn: drawn.variance(), confidence, resamples, seed)[0] for first in firsts]
    return Curve(counts, *(np.array(column) for column in zip(*found, strict=True)))


def tail_statistics(
    lengths: Samples, share: float = 0.05, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Return all statistics of this package except its curves in one dict of plain numbers, for a table or a logger.

    The stable index is that of the differences x_1 - x_2, x_3 - x_4, ..., which are symmetric about 0, unlike the norms.
    Resamples of more than 20,000 samples are drawn in blocks of neighbours (see ``resamples`` of :func:`quantiles`).

    Args:
        lengths: 1-D, finite, at least 0.
        share (float): the share of samples in the tail for the Hill index. Default: 0.05.
        confidence, resamples, seed: as in :func:`quantiles`.

    Returns:
        ``count``; ``variance``, ``quantile_0.5`` and others, ``skewness``, ``excess_kurtosis``, ``hill_index``, ``stable_index``,
        ``beyond_1.5_iqr`` and ``beyond_3_iqr`` (shares) and the same with ``_ratio``, each with the ends of its interval under
        its name plus ``_low`` and ``_high``; ``hill_samples``, ``beyond_1.5_iqr_count``, ``beyond_3_iqr_count``.

    Raises:
        ValueError: an argument is invalid, or there are too few samples: at least 8 and about 1 / share are needed.

    Example:
        >>> from torch_clipped.heavy_tails import tail_statistics
        >>> found = tail_statistics(range(1, 101))
        >>> found["count"], found["quantile_0.5"], found["hill_samples"], found["beyond_1.5_iqr_count"]
        (100, 50.5, 5, 0)
    """
    values = checked("lengths", lengths, smallest=8)
    k = tail_count(values, share)
    names = ["variance", *(f"quantile_{p:g}" for p in PROBABILITIES), "skewness", "excess_kurtosis", "hill_index"]
    fences = {f"beyond_{c:g}_iqr": c for c in NORMAL_SHARES}

    def all_of_them(drawn: Resamples) -> list[Array]:
        middle = [drawn.quantile(p) for p in PROBABILITIES]
        moments = [drawn.skewness(), drawn.excess_kurtosis()]
        return [drawn.variance(), *middle, *moments, drawn.tail_weight(k), *beyond_fences(drawn)]

    found = dict(zip([*names, *fences], estimates(values, all_of_them, confidence, resamples, seed), strict=True))
    pairs = values[: len(values) // 2 * 2].reshape(-1, 2)
    found["hill_index"] = hill_estimate(values, k, found["hill_index"])
    found["stable_index"] = stable_index(pairs[:, 0] - pairs[:, 1], confidence=confidence, resamples=resamples, seed=seed)
    beyond = outliers(values, [found[name] for name in fences])
    numbers: dict[str, float] = {"count": len(values), "hill_samples": k}
    for name, c in fences.items():
        found[f"{name}_ratio"] = beyond[c].ratio
        numbers[f"{name}_count"] = beyond[c].count
    for name, estimate in found.items():
        numbers |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return numbers
