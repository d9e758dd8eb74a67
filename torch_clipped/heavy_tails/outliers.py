"""Counts and shares of the samples beyond the fences of a box plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .resamples import Resamples, Sample
from .samples import Array, Estimate, Samples, checked, estimates

__all__ = ["NORMAL_SHARES", "OutlierShare", "beyond_fences", "outlier_shares", "outliers"]

NORMAL_SHARES = {1.5: 0.0034883016, 3.0: 1.1709712e-6}  # of a normal distribution, beyond Q3 + 1.5 IQR and Q3 + 3 IQR


@dataclass(frozen=True)
class OutlierShare:
    """Count and share of the samples beyond a fence, and the ratio of this share to that of a normal distribution."""

    fence: float
    count: int
    share: Estimate
    ratio: Estimate


def outlier_shares(
    lengths: Samples, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> dict[float, OutlierShare]:
    """Return the shares beyond the fences Q3 + c IQR with c = 1.5 and 3, and their ratios to those of a normal distribution.

        share_c = P(X > Q3 + c (Q3 - Q1))          normal: 0.0034883 for c = 1.5, 1.171e-6 for c = 3

    Q1 and Q3 are quartiles. The shares exist for every distribution and do not depend on its unit or a shift.

    Args:
        lengths: 1-D, finite, at least 0, at least four samples.
        confidence, resamples, seed: as in :func:`torch_clipped.heavy_tails.quantiles`. If no sample is beyond a fence, the
            interval is 0 to 0, although shares up to 3 / number of samples are likely then.

    Returns:
        For 1.5 and 3.0 the fence, the number and the share of samples beyond it, and the ratio to the share of a normal
        distribution.

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> from torch_clipped.heavy_tails import outlier_shares
        >>> found = outlier_shares([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 50.0])
        >>> found[3.0].fence, found[3.0].count, found[3.0].share.value
        (16.75, 1, 0.125)

    References:
        John W. Tukey, Exploratory Data Analysis, 1977 (the fences).

        Pavlina K. Jordanova, Monika P. Petkova, Measuring Heavy-Tailedness of Distributions, 2017,
        https://doi.org/10.1063/1.5013996.
    """
    values = checked("lengths", lengths, smallest=4)
    return outliers(values, estimates(values, beyond_fences, confidence, resamples, seed))


def beyond_fences(drawn: Resamples) -> list[Array]:
    """Return the shares of each resample beyond both of its fences."""
    return [drawn.share_above(fence) for fence in _fences(drawn)]


def _fences(drawn: Resamples) -> list[Array]:
    low, high = drawn.quantile(0.25), drawn.quantile(0.75)
    with np.errstate(over="ignore"):
        return [high + c * (high - low) for c in NORMAL_SHARES]


def outliers(values: Array, shares: Sequence[Estimate]) -> dict[float, OutlierShare]:
    """Return the fence, the count, the share and the ratio of the samples beyond each fence, given the estimated shares."""
    found = {}
    for (c, normal), fence, share in zip(NORMAL_SHARES.items(), _fences(Sample(values).itself), shares, strict=True):
        ratio = Estimate(*(end / normal for end in share))
        found[c] = OutlierShare(float(fence[0]), int((values > fence).sum()), share, ratio)
    return found
