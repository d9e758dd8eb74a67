"""Statistics of the tails of gradient norms, each with a confidence interval.

The norms, here called lengths, come from ``optimizer.grad_norms()``, :func:`gradient_lengths` or :func:`noise_lengths`. The
intervals are percentiles of the statistic in samples drawn from the lengths with replacement (the bootstrap: Bradley Efron,
Bootstrap Methods: Another Look at the Jackknife, 1979, https://doi.org/10.1214/aos/1176344552). They take the lengths to be
independent and of one law, which those of a training are not quite. For variance, skewness and kurtosis they are unreliable,
mostly far too narrow, where the law has no such moment: K. B. Athreya, Bootstrap of the Mean in the Infinite Variance Case, 1987,
https://doi.org/10.1214/aos/1176350371. The intervals of quantiles, shares and indices are reliable there, too.

Up to 20,000 lengths are drawn one by one, as scipy.stats.bootstrap draws them. More are sorted and cut into a few thousand
blocks of neighbours, and each resample draws how many lengths it holds of each block. The 500 smallest and the 500 largest
lengths are blocks of their own; a block further in holds 1/500 of the lengths between it and the nearer end. This leaves out the
scatter within a block, about a thousandth of the variance of a quantile. Statistics themselves are always computed from
all lengths. Ten million lengths take seconds, and memory of a few times their own. Masked arrays with masked entries are refused.
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
