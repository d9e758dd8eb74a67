"""Statistics of the tails of gradient norms, each with a confidence interval.

The norms come from ``optimizer.grad_norms()``, :func:`gradient_lengths` or :func:`noise_lengths`; the argument is named
``lengths``. The intervals are percentiles of the statistic in samples drawn from the norms with replacement (the bootstrap:
Bradley Efron, Bootstrap Methods: Another Look at the Jackknife, 1979, https://doi.org/10.1214/aos/1176344552). The bootstrap
assumes independent norms of one distribution; the norms of a training are neither exactly. For variance, skewness and kurtosis
the intervals are unreliable, mostly far too narrow, if the distribution has no such moment: K. B. Athreya, Bootstrap of the Mean
in the Infinite Variance Case, 1987, https://doi.org/10.1214/aos/1176350371. The intervals of quantiles, shares and indices are
reliable there, too.

Up to 20,000 norms are drawn one by one, as in scipy.stats.bootstrap. More norms are sorted and cut into a few thousand blocks of
neighbours, and each resample draws the number of its norms from each block. The 500 smallest and the 500 largest norms are blocks
of their own; a block further in holds 1/500 of the norms between it and the nearer end. This neglects the scatter within a block,
about a thousandth of the variance of a quantile. Statistics themselves are always computed from all norms. Ten million norms take
seconds, and memory of a few times their own. Masked arrays with masked entries are refused.
"""

from .lengths import gradient_lengths, noise_lengths
from .outliers import OutlierShare, outlier_shares
from .samples import Estimate
from .statistics import excess_kurtosis, quantiles, skewness, tail_statistics, variance_curve
from .tail_indices import Curve, hill_curve, hill_index, stable_index

__all__ = [
    "Curve",
    "Estimate",
    "OutlierShare",
    "excess_kurtosis",
    "gradient_lengths",
    "hill_curve",
    "hill_index",
    "noise_lengths",
    "outlier_shares",
    "quantiles",
    "skewness",
    "stable_index",
    "tail_statistics",
    "variance_curve",
]
