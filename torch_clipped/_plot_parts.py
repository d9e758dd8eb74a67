"""Common parts of the plots: colours, bands, ticks, and the place of the legend."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .heavy_tails.samples import Array, relative
from .heavy_tails.tail_indices import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "BLACK",
    "BLUE",
    "COLOURS",
    "ORANGE",
    "SKY",
    "VERMILION",
    "axes_of",
    "draw_band",
    "draw_normal_law",
    "finished",
    "scale_of",
]

# Colours that colour-blind readers can tell apart (M. Okabe and K. Ito); for print without colours, lines and markers differ.
BLACK, BLUE, SKY, VERMILION, ORANGE = "#000000", "#0072B2", "#56B4E9", "#D55E00", "#E69F00"
COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", ORANGE, SKY, BLACK)  # of curves
_LEGEND = 4.2  # distance from the axes down to the legend, in letter heights: below tick labels and axis label
_NARROW, _WIDE = 4.0, 100.0  # ratios of the ends of a logarithmic axis: with too few powers of ten to read it, and with enough
_FEW = 40  # points that may each have a marker


def axes_of(ax: Axes | None) -> Axes:
    """Return these axes, in a figure with room for the legend, or the axes of a new figure outside pyplot."""
    if ax is not None:
        figure = ax.figure.figure  # also if the axes are in a subfigure
        if figure.get_layout_engine() is None:
            figure.set_layout_engine("constrained")
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("torch_clipped.plots needs matplotlib: pip install torch-clipped[heavy-tails]") from error
    return Figure(figsize=(6.4, 4.8), layout="constrained").subplots()


def draw_band(ax: Axes, curve: Curve, words: str, interval: str) -> None:
    """Draw a curve in the band of its confidence intervals."""
    look: dict[str, Any] = {"marker": "o", "markersize": 4} if len(curve.samples) <= _FEW else {}
    ax.fill_between(curve.samples, curve.low, curve.high, color=SKY, alpha=0.4, linewidth=0, label=interval)
    ax.plot(curve.samples, curve.values, color=BLUE, linewidth=1.8, label=words, **look)


def draw_normal_law(ax: Axes, values: Array, edges: Array) -> float:
    """Draw the normal distribution with the mean and the variance of the values; return its highest point."""
    scaled = relative(values)  # no square overflows
    unit = values.max() / scaled.max()
    mean, std = unit * scaled.mean(), unit * scaled.std()
    near = np.clip(mean + std * np.linspace(-5, 5, 200), edges[0], edges[-1])  # points where a narrow curve is not flat
    places = np.union1d(near, np.linspace(edges[0], edges[-1], 1000))
    heights = len(values) * (edges[1] - edges[0]) / std * np.exp(-0.5 * ((places - mean) / std) ** 2) / math.sqrt(2 * math.pi)
    words = f"normal law of mean {mean:.3g}\nand standard deviation {std:.3g}"
    ax.plot(places, heights, "--", color=VERMILION, linewidth=2, label=words)
    return float(heights.max())


def scale_of(values: Array) -> str:
    """Return the name of the axis scale: logarithmic if any value is positive and finite, else linear."""
    return "log" if (np.isfinite(values) & (values > 0)).any() else "linear"


def finished(ax: Axes, *others: Axes) -> Axes:
    """Add a grid, ticks and a legend at a fixed distance below the axes; return the axes."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
    from matplotlib.transforms import ScaledTranslation

    pairs = [pair for one in (ax, *others) for pair in zip(*one.get_legend_handles_labels(), strict=True)]
    inches = _LEGEND * float(ax.xaxis.label.get_fontsize()) / 72
    below = ax.transAxes + ScaledTranslation(0, -inches, ax.figure.dpi_scale_trans)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": below, "borderaxespad": 0}
    ax.legend([handle for handle, _ in pairs], [label for _, label in pairs], frameon=False, **place)
    ax.grid(alpha=0.3)
    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        if axis.get_scale() == "log":
            axis.set_minor_formatter(NullFormatter())
            if high < _WIDE * low:
                few = MaxNLocator(6, steps=[1, 2, 5, 10]) if high < _NARROW * low else LogLocator(subs=(1, 2, 5))
                axis.set_major_locator(few)
                axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    return ax
