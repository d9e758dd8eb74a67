"""Plots of gradient norms. All need matplotlib; the Hill plot also needs scipy.

Every function draws into ``ax``, or into the axes of a new figure, and returns those axes:
``plot_hill(lengths).figure.savefig("hill.png")``. The legend is below the axes; a figure without a layout engine gets the
constrained one, which makes room for the legend. pyplot is not used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from torch import Tensor

from ._curve_plots import plot_gradient_norms, plot_losses, plot_metric
from ._older_names import older_name
from ._plot_parts import BLACK, BLUE, ORANGE, SKY, VERMILION, axes_of, draw_band, draw_normal_law, finished, scale_of
from .heavy_tails import hill_curve, hill_index, variance_curve
from .heavy_tails.samples import Array, Samples, checked
from .heavy_tails.tail_indices import tail_count
from .mixin import Clipped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "plot_gradient_norms",
    "plot_hill",
    "plot_histogram",
    "plot_losses",
    "plot_metric",
    "plot_norms",
    "plot_survival",
    "plot_variance",
]
__getattr__ = older_name(__name__)

_STRIP = 0.25  # share of the height for the coefficient
_EQUAL = 1e-9  # relative to the largest: norms that differ by less get no bins


def plot_histogram(lengths: Samples, ax: Axes | None = None) -> Axes:
    """Draw a histogram of gradient norms, with logarithmic counts, and a normal distribution of the same mean and variance.

    Args:
        lengths: 1-D, finite, at least 0, at least two norms.
        ax (matplotlib.axes.Axes): the axes to draw into. Default: None, a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: ``lengths`` is invalid.
        ImportError: matplotlib is missing.

    Example:
        >>> from torch_clipped.plots import plot_histogram
        >>> plot_histogram([1.0, 2.0, 2.0, 3.0]).get_yscale()
        'log'
    """
    values = checked("lengths", lengths, smallest=2)
    ax = axes_of(ax)
    bins = min(80, max(10, math.isqrt(len(values))))
    low, high = values.min(), values.max()
    equal = high - low <= _EQUAL * high
    ends = (0.9 * low, 1.1 * high) if equal else (low, high)
    words = f"{len(values)} gradients, in {bins} bins"
    counts, edges, _ = ax.hist(values, bins, range=ends, color=SKY, edgecolor=BLACK, linewidth=0.6, label=words)
    highest = np.max(counts) if equal else max(np.max(counts), draw_normal_law(ax, values, edges))
    ax.set(yscale="log", ylim=(0.5, 2 * highest), xlabel="gradient norm", ylabel="gradients in a bin")
    return finished(ax)


def plot_survival(lengths: Samples, share: float = 0.05, ax: Axes | None = None) -> Axes:
    """Draw the share of gradients of norm x or more over x, on logarithmic scales; a power-law tail is a straight line.

    The Hill fit (k + 1) / n (x / x_{k+1})^-a is drawn over the k largest: see :func:`torch_clipped.heavy_tails.hill_index`.

    Args:
        lengths: 1-D, finite, at least 0, and positive in the tail.
        share (float): the share of samples in the tail. Default: 0.05.
        ax (matplotlib.axes.Axes): the axes to draw into. Default: None, a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: an argument is invalid, or the share is less than one sample.
        ImportError: matplotlib is missing.

    Example:
        >>> from torch_clipped.plots import plot_survival
        >>> plot_survival([1.0, 2.0, 4.0, 8.0], share=0.5).get_xscale()
        'log'
    """
    values = checked("lengths", lengths, smallest=2)
    k, index = tail_count(values, share), hill_index(values, share)
    ax = axes_of(ax)
    falling = -np.sort(-values)
    shares = np.arange(1, len(values) + 1) / len(values)
    last = np.count_nonzero(falling)
    ax.plot(falling[:last], shares[:last], "o", color=BLUE, markersize=3, label=f"{len(values)} gradients")
    ends = np.array([falling[k], falling[0]])
    if math.isfinite(index.value):
        words = f"Hill fit to the longest {k}:\nindex {index.value:.3g} ({index.low:.3g} to {index.high:.3g})"
        ax.plot(ends, shares[k] * (ends / ends[0]) ** -index.value, "--", color=VERMILION, linewidth=2.2, label=words)
    ax.set(xscale="log", yscale="log", xlabel="gradient norm x", ylabel="share of gradients of norm x or more")
    return finished(ax)


def plot_hill(lengths: Samples, share: float = 0.05, ax: Axes | None = None) -> Axes:
    """Draw the Hill index over the number k of samples in the tail, with its 95 % band and the k of ``share``.

    Args:
        lengths: 1-D, finite, at least 0, at least two positive.
        share (float): the share of samples that is marked by a line. Default: 0.05.
        ax (matplotlib.axes.Axes): the axes to draw into. Default: None, a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: an argument is invalid.
        ImportError: matplotlib or scipy is missing.

    Example:
        >>> from torch_clipped.plots import plot_hill
        >>> plot_hill([1.0, 2.0, 4.0, 8.0], share=0.5).get_ylabel()
        'Hill tail index'
    """
    curve = hill_curve(lengths)
    k = tail_count(checked("lengths", lengths, smallest=2), share)
    ax = axes_of(ax)
    draw_band(ax, curve, "Hill index of the longest k", "95 % interval")
    ax.axvline(k, color=BLACK, linestyle=":", linewidth=1.6, label=f"k = {k}, {100 * share:g} % of the gradients")
    ax.set(xscale="log", yscale=scale_of(curve.values), xlabel="k, gradients that count as the tail", ylabel="Hill tail index")
    return finished(ax)


def plot_variance(lengths: Samples, ax: Axes | None = None) -> Axes:
    """Draw the empirical variance of the first n norms over n, with its 95 % band.

    The numbers are those of :func:`torch_clipped.heavy_tails.variance_curve`, and its warning about the band holds here.

    Args:
        lengths: 1-D, finite, at least 0, at least two norms, in the order of measuring.
        ax (matplotlib.axes.Axes): the axes to draw into. Default: None, a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: ``lengths`` is invalid.
        ImportError: matplotlib is missing.

    Example:
        >>> from torch_clipped.plots import plot_variance
        >>> plot_variance([1.0, 2.0, 4.0, 8.0]).get_xlabel()
        'gradients'
    """
    curve = variance_curve(lengths)
    ax = axes_of(ax)
    draw_band(ax, curve, "variance of the first gradients", "95 % bootstrap interval,\ntoo narrow for heavy tails")
    ax.set(xscale="log", yscale=scale_of(curve.values), xlabel="gradients", ylabel="variance of the gradient norm")
    return finished(ax)


def plot_norms(history: Clipped | Samples | Sequence[Mapping[str, float]], ax: Axes | None = None) -> Axes:
    """Draw gradient norms over time, with threshold, coefficient and clipped steps if ``history`` holds the statistics.

    Args:
        history: a list of the results of ``optimizer.clipping_stats()`` after each step; or an optimizer that clips or norms,
            which give only the norms. Threshold and coefficient of types that clip tensor by tensor are medians over the
            tensors, not comparable with the norm of the whole gradient.
        ax (matplotlib.axes.Axes): the axes to draw into. Default: None, a new figure. The coefficient gets its own axis on
            the right, in the upper quarter.

    Returns:
        The axes of the norms.

    Raises:
        ValueError: the history is empty, has no norms, or is invalid.
        ImportError: matplotlib is missing.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedSGD
        >>> from torch_clipped.plots import plot_norms
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> optimizer, history = ClippedSGD([weight], lr=0.1), []
        >>> for step in range(4):
        ...     weight.grad = torch.full((3,), 2.0**-step)
        ...     optimizer.step()
        ...     history.append(optimizer.clipping_stats())
        >>> ax = plot_norms(history)
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('steps', 'gradient norm')
    """
    columns = _columns(history)
    ax = axes_of(ax)
    steps, norms = columns["steps"], columns["grad_norm"]
    ax.plot(steps, norms, color=BLUE, linewidth=1, marker=".", markersize=3, label="gradient norm, before clipping")
    ax.set(yscale=scale_of(norms), xlabel="steps", ylabel="gradient norm")
    if "threshold" not in columns:
        return finished(ax)
    threshold = columns["threshold"]
    alone = "" if np.isfinite(threshold).all() else "_"  # a single step with a threshold gives no visible line
    ax.plot(steps, threshold, "--", marker=alone, color=BLACK, linewidth=1.6, label="threshold")
    clipped = columns["clipped"] > 0
    words = f"clipped, {clipped.sum()} of {len(np.unique(steps))} steps"
    ax.plot(steps[clipped], norms[clipped], "x", color=VERMILION, markersize=6, label=words)
    return finished(ax, _draw_coefficient(ax, steps, columns["coefficient"]))


def _draw_coefficient(ax: Axes, steps: Array, coefficients: Array) -> Axes:
    """Draw the coefficient in the upper part of the axes, after making room; return the axes of the coefficient."""
    place = ax.transScale + ax.transLimits  # to shares of the height
    ax.set_ylim(top=place.inverted().transform((0, 1 / (0.95 - _STRIP)))[1])
    right = ax.twinx()
    right.plot(steps, coefficients, "-.", color=ORANGE, linewidth=1.4, marker="v", markersize=3, label="coefficient (right)")
    right.set(ylim=(1.05 - 1.1 / _STRIP, 1.05), yticks=[0, 1])
    right.set_ylabel("coefficient", y=1 - _STRIP / 2)
    right.axhline(-0.05, color=BLACK, linewidth=0.6)
    return right


def _columns(history: object) -> dict[str, Array]:
    """Return steps, norms and the other known statistics as arrays of the same size."""
    if isinstance(history, Clipped):
        norms = checked("history", history.grad_norms(), smallest=1)
        last = int(history.clipping_stats()["steps"])
        return {"steps": np.arange(last - len(norms) + 1, last + 1, dtype=np.float64), "grad_norm": norms}
    several = isinstance(history, Iterable) and not isinstance(history, (str, Tensor, np.ndarray))
    rows = list(cast(Iterable[Mapping[str, float]], history)) if several else []
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        norms = checked("history", cast(Samples, rows if several else history), smallest=1)
        return {"steps": np.arange(1, len(norms) + 1, dtype=np.float64), "grad_norm": norms}
    names = ("steps", "grad_norm", "threshold", "coefficient", "clipped_steps")
    missing = next((name for name in names for row in rows if name not in row), None)
    if missing is not None:
        raise ValueError(f"history must hold what clipping_stats() returns, but {missing!r} is not in all of it")
    columns = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in names}
    if not np.isfinite(columns["grad_norm"]).any():
        raise ValueError("history must hold gradient norms, but this clipping type measures none, or no step was taken")
    first = columns["clipped_steps"][0] - (columns["coefficient"][0] < 1)  # the count before the first of these steps
    return columns | {"clipped": np.diff(columns["clipped_steps"], prepend=first)}
