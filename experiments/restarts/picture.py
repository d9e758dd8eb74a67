"""Draw the picture of ``restarts`` from its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from ..common.files import read_csv
from ..common.style import BLACK, BLUE, GREEN, ORANGE, PINK, VERMILION

# The line styles differ too, for prints without colours
STYLES: list[dict[str, Any]] = [
    {"color": BLACK, "linestyle": "-"},
    {"color": VERMILION, "linestyle": (0, (5, 1))},
    {"color": BLUE, "linestyle": "--"},
    {"color": GREEN, "linestyle": "-."},
    {"color": PINK, "linestyle": ":"},
]
DECADE = 10.0
Array = NDArray[np.float64]


def plot(curves: Path, results: Path, picture: Path) -> None:
    """Draw a column for each problem: the loss, and below it the loss divided by that of no restart with the same seed."""
    rows = read_csv(curves)
    written = json.loads(results.read_text(encoding="utf-8"))
    figure = Figure(figsize=(12, 9), layout="constrained")
    figure.suptitle("Clipped SGD with restarts; line: median over the seeds, band: lowest to highest, triangle: restart")
    for column, result in zip(figure.subfigures(1, len(written), squeeze=False)[0], written, strict=True):
        _draw(column, [row for row in rows if row["problem"] == result["problem"]], result)
    figure.savefig(picture, dpi=150)


def _draw(figure: SubFigure, rows: Sequence[dict[str, str]], result: dict[str, Any]) -> None:
    config = result["config"]
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.2, 1))
    plain = None
    for style, one in zip(STYLES, result["contenders"], strict=False):
        steps, losses = _by_seed([row for row in rows if row["contender"] == one["contender"]])
        plain = losses if plain is None else plain
        words = f"{one['contender']}, lr {one['lr']:g}: validation loss {one['validation_loss']['median']:.3f}"
        _band(upper, steps, losses, one["restarts"], style, words)
        _band(lower, steps, losses / plain, one["restarts"], style, None)
    _mark_mean(upper, lower, result)
    upper.set(ylabel=f"training loss ({config['loss']})")
    upper.set_title(f"{config['data']}: {result['contenders'][0]['seeds']} seeds", size="medium")
    lower.set(ylabel="training loss / that of no restart", xlabel="step", xlim=(0, config["steps"]))
    for axes in (upper, lower):
        axes.set_yscale("log")
        bottom, top = axes.get_ylim()
        if top < DECADE * bottom:  # too few powers of ten as labels
            axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", frameon=False)


def _mark_mean(upper: Axes, lower: Axes, result: dict[str, Any]) -> None:
    """Mark the loss at the mean of the iterates of the last quarter without restarts, at the last step."""
    plain, steps = result["contenders"][0], result["config"]["steps"]
    loss, ratio = plain["mean_training_loss"]["median"], plain["mean_training_loss_against_no_restart"]["ratio"]
    look: dict[str, Any] = {"marker": "D", "markersize": 9, "linestyle": "none", "color": ORANGE, "markeredgecolor": "black"}
    words = f"no restart, mean of the last quarter: validation loss {plain['mean_validation_loss']['median']:.3f}"
    for axes, value, label in ((upper, loss, words), (lower, ratio, None)):
        axes.plot([steps], [value], label=label, clip_on=False, zorder=5, **look)


def _by_seed(rows: Sequence[dict[str, str]]) -> tuple[Array, Array]:
    """Return the measured steps, and the losses of shape (seeds, steps)."""
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    steps = np.array([float(row["step"]) for row in rows if row["seed"] == seeds[0]])
    return steps, np.array([[float(row["loss"]) for row in rows if row["seed"] == seed] for seed in seeds])


def _band(axes: Axes, steps: Array, values: Array, restarts: Sequence[int], style: dict[str, Any], label: str | None) -> None:
    low, median, high = np.quantile(values, [0, 0.5, 1], axis=0)
    axes.fill_between(steps, low, high, color=style["color"], alpha=0.13, linewidth=0)
    axes.plot(steps, median, label=label, linewidth=1.9, **style)
    marks: dict[str, Any] = {"marker": "v", "markersize": 7, "linestyle": "none", "markeredgecolor": "black"}
    axes.plot(restarts, median[np.isin(steps, restarts)], color=style["color"], markeredgewidth=0.6, **marks)
