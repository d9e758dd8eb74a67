"""Pictures of losses, metrics and gradient norms over the steps of a collector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ._engine.validation import integer
from ._plot_parts import COLOURS, axes_of, finished, scale_of
from .heavy_tails.samples import Array
from .optimizers_collector import OptimizersCollector

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_gradient_norms", "plot_losses", "plot_metric"]

Collectors = OptimizersCollector | Sequence[OptimizersCollector]


def plot_losses(collectors: Collectors, ax: Axes | None = None, smoothing: int = 1) -> Axes:
    """Draw the losses of each optimizer over the steps.

    Args:
        collectors: one, or several with the same labels and other seeds, of which mean, lowest and highest value are drawn.
        ax (matplotlib.axes.Axes): where to draw. Default: None, a new figure.
        smoothing (int): how many of the last values each point of a training curve is the mean of. Default: 1.

    Returns:
        The axes. Lines are training, dashed lines with circles validation, dotted vertical lines restarts.

    Raises:
        ValueError: there is nothing to draw, or the collectors have other labels.
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
    """Draw a metric of each optimizer over the steps, by the name that it has in ``step`` and ``evaluate``.

    Args:
        collectors, ax, smoothing: as in :func:`plot_losses`.
        name (str): of the metric.

    Returns:
        The axes, as those of :func:`plot_losses`.

    Raises:
        ValueError: no collector has such a metric, or they have other labels.
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
    known = sorted({point.name for each in several for point in each.history} - {"restart"})
    if name not in known:
        raise ValueError(f"name must be one of {', '.join(known) or 'none, since no step was taken'}, got {name!r}")
    ax = axes_of(ax)
    for i, label in enumerate(several[0].models):
        colour = COLOURS[i % len(COLOURS)]
        for phase, look in (("train", {}), ("validation", {"linestyle": "--", "marker": "o", "markersize": 4})):
            curves = [_curve(each, label, phase, name) for each in several]
            words = label if phase == "train" else f"{label}, validation"
            _draw(ax, curves, colour, words, width if phase == "train" else 1, look)
        for step in {point.step for each in several for point in each.history if (point.label, point.name) == (label, "restart")}:
            ax.axvline(step, color=colour, linestyle=":", linewidth=0.8)
    ax.set(xlabel=_steps_of(several), ylabel=name)
    return finished(ax)


def plot_gradient_norms(collectors: Collectors, ax: Axes | None = None, smoothing: int = 1) -> Axes:
    """Draw the gradient norms of each optimizer that clips, before clipping, over its last steps.

    Args:
        collectors, ax, smoothing: as in :func:`plot_losses`.

    Returns:
        The axes.

    Raises:
        ValueError: no optimizer has recorded norms, or the collectors have other labels.
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
    several, width = _listed(collectors), integer("smoothing", smoothing, smallest=1)
    norms = [{label: np.array(own.tolist()) for label, own in each.grad_norms().items() if len(own)} for each in several]
    if not any(norms):
        raise ValueError("collectors must hold recorded gradient norms, but no optimizer has any")
    ax = axes_of(ax)
    for i, label in enumerate(several[0].models):
        taken = [len(each.losses[label]) for each in several]
        own = [
            (np.arange(n - len(found[label]), n, dtype=np.float64), found[label])
            for n, found in zip(taken, norms, strict=True)
            if label in found
        ]
        _draw(ax, own, COLOURS[i % len(COLOURS)], label, width, {})
    scale = scale_of(np.concatenate([values for found in norms for values in found.values()]))
    ax.set(xlabel=_steps_of(several), ylabel="gradient norm", yscale=scale)
    return finished(ax)


def _listed(collectors: Collectors) -> list[OptimizersCollector]:
    several = [collectors] if isinstance(collectors, OptimizersCollector) else list(collectors)
    if not several or not all(isinstance(each, OptimizersCollector) for each in several):
        raise ValueError(f"collectors must be an OptimizersCollector or a sequence of them, got {collectors!r}")
    for each in several:
        if [*each.models] != [*several[0].models]:
            raise ValueError(f"collectors must have the same labels, got {[*several[0].models]} and {[*each.models]}")
    return several


def _steps_of(several: list[OptimizersCollector]) -> str:
    return "steps" if len(several) == 1 else f"steps (lines: mean of {len(several)} seeds, bands: lowest and highest)"


def _curve(collector: OptimizersCollector, label: str, phase: str, name: str) -> tuple[Array, Array]:
    points = [(p.step, p.value) for p in collector.history if (p.label, p.phase, p.name) == (label, phase, name)]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64)


def _draw(ax: Axes, curves: list[tuple[Array, Array]], colour: str, words: str, width: int, look: dict[str, object]) -> None:
    """Draw the mean of some curves, up to the end of the shortest, in the band of the lowest and highest values."""
    length = min((len(steps) for steps, _ in curves), default=0)
    if not length:
        return
    smooth = np.array([_smoothed(values[:length], width) for _, values in curves])
    steps = curves[0][0][:length]
    if len(curves) > 1:
        ax.fill_between(steps, smooth.min(0), smooth.max(0), color=colour, alpha=0.2, linewidth=0)
    ax.plot(steps, smooth.mean(0), color=colour, linewidth=1.4, label=words, **look)  # type: ignore[arg-type]


def _smoothed(values: Array, width: int) -> Array:
    """Return the means of the last ``width`` values, of fewer at the beginning."""
    if width == 1:
        return values
    sums = np.cumsum(np.concatenate([np.zeros(1), values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    means: Array = (sums[ends] - sums[starts]) / (ends - starts)
    return means
