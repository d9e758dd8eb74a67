"""Plots of losses, metrics and gradient norms over the steps of a collector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ._engine.validation import integer
from ._plot_parts import COLOURS, axes_of, finished
from .heavy_tails.samples import Array
from .optimizers_collector import OptimizersCollector

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_gradient_norms", "plot_losses", "plot_metric"]

Collectors = OptimizersCollector | Sequence[OptimizersCollector]


def plot_losses(collectors: Collectors, ax: Axes | None = None, smoothing: int = 1) -> Axes:
    """Draw the losses of each optimizer over the steps.

    Args:
        collectors: one collector, or several with the same labels and other seeds; of several, the mean, lowest and highest value
            are drawn.
        ax (matplotlib.axes.Axes): the axes to draw into. Default: None, a new figure.
        smoothing (int): the number of last values that are averaged for each point of a training curve. Default: 1.

    Returns:
        The axes. Solid lines show training, dashed lines with circles validation, dotted vertical lines restarts.

    Raises:
        ValueError: there is nothing to draw, or the collectors have different labels.
        ImportError: matplotlib is missing.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedSGD, ModelProperties, OptimizerProperties, OptimizersCollector
        >>> from torch_clipped.plots import plot_losses
        >>> collector = OptimizersCollector(ModelProperties(torch.nn.Linear, 3, 1), [OptimizerProperties(ClippedSGD, lr=0.1)])
        >>> for batch in torch.ones(4, 8, 3):
        ...     losses = collector.step(batch, lambda model, batch: (model(batch) - 1).square().mean())
        >>> plot_losses(collector).get_ylabel()
        'loss'
    """
    return plot_metric(collectors, "loss", ax, smoothing)


def plot_metric(collectors: Collectors, name: str, ax: Axes | None = None, smoothing: int = 1) -> Axes:
    """Draw a metric of each optimizer over the steps, by its name in ``step`` and ``evaluate``.

    Args:
        collectors, ax, smoothing: as in :func:`plot_losses`.
        name (str): the name of the metric.

    Returns:
        The axes, as from :func:`plot_losses`.

    Raises:
        ValueError: no collector has such a metric, or the collectors have different labels.
        ImportError: matplotlib is missing.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedSGD, ModelProperties, OptimizerProperties, OptimizersCollector
        >>> from torch_clipped.plots import plot_metric
        >>> collector = OptimizersCollector(ModelProperties(torch.nn.Linear, 3, 1), [OptimizerProperties(ClippedSGD, lr=0.1)])
        >>> def error(model, batch):
        ...     return (model(batch) - 1).abs().mean()
        >>> for batch in torch.ones(4, 8, 3):
        ...     losses = collector.step(batch, error, metrics={"error": error})
        >>> plot_metric(collector, "error").get_ylabel()
        'error'
    """
    several, width = _listed(collectors), integer("smoothing", smoothing, smallest=1)
    names = [{point.name for point in each.history} - {"restart"} for each in several]
    if not any(names):
        raise ValueError("collectors must have taken a step, or evaluated a loader")
    known = set.intersection(*names)
    if name not in known:
        few = " (only some of the collectors have it)" if any(name in own for own in names) else ""
        raise ValueError(f"name must be one of {', '.join(sorted(known))}, got {name!r}{few}")
    ax = axes_of(ax)
    for i, label in enumerate(several[0].models):
        colour = COLOURS[i % len(COLOURS)]
        for phase, look in (("train", {}), ("validation", {"linestyle": "--", "marker": "o", "markersize": 4})):
            curves = [_curve(each, label, phase, name, width if phase == "train" else 1) for each in several]
            _draw(ax, curves, colour, label if phase == "train" else f"{label}, validation", look)
        for step in {point.step for each in several for point in each.history if (point.label, point.name) == (label, "restart")}:
            ax.axvline(step, color=colour, linestyle=":", linewidth=0.8)
    ax.set(xlabel=_steps_of(several), ylabel=name)
    return finished(ax)


def plot_gradient_norms(collectors: Collectors, ax: Axes | None = None, smoothing: int = 1) -> Axes:
    """Draw the gradient norms of each optimizer that clips, before clipping, over the steps.

    Args:
        collectors, ax, smoothing: as in :func:`plot_losses`.

    Returns:
        The axes.

    Raises:
        ValueError: no optimizer has recorded norms, or the collectors have different labels.
        ImportError: matplotlib is missing.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedSGD, ModelProperties, OptimizerProperties, OptimizersCollector
        >>> from torch_clipped.plots import plot_gradient_norms
        >>> collector = OptimizersCollector(ModelProperties(torch.nn.Linear, 3, 1), [OptimizerProperties(ClippedSGD, lr=0.1)])
        >>> for batch in torch.ones(4, 8, 3):
        ...     losses = collector.step(batch, lambda model, batch: (model(batch) - 1).square().mean())
        >>> plot_gradient_norms(collector).get_yscale()
        'log'
    """
    if not any(point.name == "grad_norm" and np.isfinite(point.value) for each in _listed(collectors) for point in each.history):
        raise ValueError("collectors must hold recorded gradient norms, but no optimizer has any")
    ax = plot_metric(collectors, "grad_norm", ax, smoothing)
    ax.set(ylabel="gradient norm", yscale="log")
    return finished(ax)


def _listed(collectors: Collectors) -> list[OptimizersCollector]:
    several = [*collectors] if isinstance(collectors, Sequence) else [collectors]
    if not several or not all(isinstance(each, OptimizersCollector) for each in several):
        raise ValueError(f"collectors must be an OptimizersCollector or a sequence of them, got {collectors!r}")
    for each in several:
        if [*each.models] != [*several[0].models]:
            raise ValueError(f"collectors must have the same labels, got {[*several[0].models]} and {[*each.models]}")
    return several


def _steps_of(several: list[OptimizersCollector]) -> str:
    return "steps" if len(several) == 1 else f"steps (lines: mean of {len(several)} seeds, bands: lowest and highest)"


def _curve(collector: OptimizersCollector, label: str, phase: str, name: str, width: int) -> dict[int, float]:
    """Return the smoothed values by step."""
    points = {p.step: p.value for p in collector.history if (p.label, p.phase, p.name) == (label, phase, name)}
    return dict(zip(points, _smoothed(np.array([*points.values()], dtype=np.float64), width).tolist(), strict=True))


def _draw(ax: Axes, curves: list[dict[int, float]], colour: str, words: str, look: dict[str, object]) -> None:
    """Draw the mean of the curves, at their common steps, in the band of the lowest and highest values."""
    steps = sorted(set.intersection(*map(set, curves)))
    if not steps:
        if any(curves):
            raise ValueError(f"collectors must have steps in common, but have none of {words!r}")
        return
    values = np.array([[curve[step] for step in steps] for curve in curves])
    if len(curves) > 1:
        ax.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
    ax.plot(steps, values.mean(0), color=colour, linewidth=1.4, label=words, **look)  # type: ignore[arg-type]


def _smoothed(values: Array, width: int) -> Array:
    """Return the means of the last ``width`` values, or of fewer at the beginning."""
    if width == 1 or not len(values):
        return values
    width = min(width, len(values))
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate([np.zeros(width - 1), values]), width)
    means: Array = windows.sum(1) / np.minimum(np.arange(1, len(values) + 1), width)
    return means
