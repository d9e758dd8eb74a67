"""The picture of ``compare``, drawn from what it has written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from torch_clipped.plots import plot_histogram

from ..common.files import read_csv
from ..common.style import smooth

# Colours that colour-blind readers tell apart (M. Okabe and K. Ito); for a print without colours the line styles do.
BASELINE: dict[str, Any] = {"color": "#000000", "linestyle": (0, (4, 1.5)), "linewidth": 1.3}
METHOD: dict[str, Any] = {"color": "#0072B2", "linestyle": "-", "linewidth": 1.6}
COLOURS = ("#000000", "#D55E00", "#0072B2")
COLUMNS = 4
Array = NDArray[np.float64]
Rows = dict[str, dict[str, list[dict[str, str]]]]  # by method and seed
Summary = dict[str, Any]


def plot(csv: Path, summary: Path, picture: Path) -> None:
    """A panel of losses for each method, then metrics over the steps, at the end, and the lengths without clipping."""
    written = json.loads(summary.read_text(encoding="utf-8"))
    rows: Rows = {}
    for row in read_csv(csv):
        rows.setdefault(row["method"], {}).setdefault(row["seed"], []).append(row)
    panels = math.ceil((len(written["methods"]) - 1) / COLUMNS)  # the two baselines share one
    figure = Figure(figsize=(13, 2.2 * panels + 6.6), layout="constrained")
    settings = written["settings"]
    figure.suptitle(f"{settings['source']}\n{settings['steps']} steps in batches of {settings['batch']}, {_seeds(written)}")
    losses, rest = figure.subfigures(2, 1, height_ratios=(2.2 * panels, 6), squeeze=False)[:, 0]
    _draw_losses(losses, rows, written, panels)
    course, ends, lengths = rest.subfigures(1, 3, width_ratios=(1, 1.15, 1), squeeze=False)[0]
    _draw_course(course, rows, written)
    _draw_ends(ends, written)
    _draw_lengths(lengths, rows, written["steps_between_rows_of_the_csv"])
    figure.savefig(picture, dpi=150)


def _seeds(written: Summary) -> str:
    count = len(written["settings"]["seeds"])
    return f"{count} {'seed' if count == 1 else 'seeds'}; lines: mean over the seeds, bands and bars: lowest to highest"


def _draw_losses(figure: SubFigure, rows: Rows, written: Summary, panels: int) -> None:
    """Every clipped method beside its baseline; first the two baselines."""
    steps = written["settings"]["steps"]
    lrs = {one["method"]: one["lr"] for one in written["methods"]}
    pairs = [("Adam", "SGD"), *((one["method"], one["baseline"]) for one in written["methods"] if one["baseline"])]
    starts = [float(of_seed[1]["loss"]) for of_seed in rows["SGD"].values()]
    start = max(filter(math.isfinite, starts), default=1.0)  # of no meaning where no training had a loss
    every = max(1, steps // 20)
    curves = {name: _losses(rows[name], 1.3 * start, every) for name in lrs}
    axes = figure.subplots(panels, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for panel, (name, baseline) in zip(axes.flat, pairs, strict=False):
        words = f"without clipping: SGD, lr {lrs['SGD']:g}; beside ClippedAdam: Adam, lr {lrs['Adam']:g}"
        _band(panel, *curves[baseline], BASELINE, words)
        _band(panel, *curves[name], METHOD, "method of the title")
        panel.set_title(f"{name}, lr {lrs[name]:g}", size="medium")
        panel.set(yscale="log", xlim=(0, steps))
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.grid(alpha=0.3)
    for panel in axes.flat[len(pairs) :]:
        panel.set_axis_off()
    figure.supylabel(f"training loss (mean of the last {every} steps)" if every > 1 else "training loss", size="medium")
    figure.supxlabel("step", size="medium")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)


def _losses(by_seed: dict[str, list[dict[str, str]]], roof: float, window: int) -> tuple[Array, Array]:
    """The steps, and the smoothed losses of shape (seeds, steps), cut at ``roof``, where those of a diverged training stay."""
    longest = max(by_seed.values(), key=len)
    steps = np.array([float(row["step"]) for row in longest[1:]])
    losses = np.full((len(by_seed), len(steps)), roof)
    for values, of_seed in zip(losses, by_seed.values(), strict=True):
        found = np.array([float(row["loss"]) for row in of_seed[1:]])
        values[: len(found)] = np.where(np.isfinite(found), np.minimum(found, roof), roof)
    written_every = max(1, round(steps[-1] / len(steps)))
    return steps, smooth(losses, max(1, window // written_every))


def _band(axes: Axes, steps: Array, values: Array, style: dict[str, Any], label: str | None) -> None:
    axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.15, linewidth=0)
    axes.plot(steps, values.mean(axis=0), label=label, **style)


def _draw_course(figure: SubFigure, rows: Rows, written: Summary) -> None:
    clipped = [one for one in written["methods"] if one["baseline"] and one["validation"]["mean"] is not None]
    best = max(clipped, key=lambda one: one["validation"]["mean"], default=None)
    axes = figure.subplots()
    names = ["SGD", "Adam", *([best["method"]] if best else [])]
    for name, colour in zip(names, COLOURS, strict=False):
        for column, linestyle in (("validation_metric", "-"), ("train_metric", ":")):
            measured = [[row for row in of_seed if row[column]] for of_seed in rows[name].values()]
            common = min(map(len, measured))  # a training that diverged has fewer
            values = np.array([[float(row[column]) for row in of_seed[:common]] for of_seed in measured])
            steps = np.array([float(row["step"]) for row in measured[0][:common]])
            words = f"{name}{', the best of the clipped' if name == names[2:] else ''}, {column.partition('_')[0]}"
            _band(axes, steps, values, {"color": colour, "linestyle": linestyle, "linewidth": 1.6}, words)
    axes.set(xlabel="step", ylabel=written["settings"]["metric"], xlim=(0, written["settings"]["steps"]))
    axes.set_title(
        "Metric during training" + (f"\n{best['method']} has the best mean of the clipped" if best else ""), size="medium"
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", frameon=False, fontsize="small")


def _draw_ends(figure: SubFigure, written: Summary) -> None:
    axes, everyone = figure.subplots(), written["methods"]
    looks: tuple[tuple[str, float, dict[str, Any]], ...] = (
        ("train", -0.17, {"marker": "s", "color": "#D55E00", "markerfacecolor": "white"}),
        ("validation", 0.17, {"marker": "o", "color": "#0072B2"}),
    )
    for kind, offset, look in looks:
        found = [(place + offset, one[kind]) for place, one in enumerate(everyone, start=1) if one[kind]["mean"] is not None]
        heights = [height for height, _ in found]
        axes.hlines(heights, [x["lowest"] for _, x in found], [x["highest"] for _, x in found], look["color"], linewidth=1.6)
        axes.plot([x["mean"] for _, x in found], heights, label=kind, markersize=5, linestyle="none", **look)
    reference = everyone[0]["validation"]["mean"]
    if reference is not None:
        axes.axvline(reference, color="black", linestyle="--", linewidth=1, label="validation, SGD", zorder=0)
    axes.set_yticks(range(1, len(everyone) + 1), [_name(one) for one in everyone], size="small")
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set(xlabel=written["settings"]["metric"])
    axes.set_title("Metric at the end", size="medium")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")


def _name(one: Summary) -> str:
    return f"{one['method']} ({one['diverged']} diverged)" if one["diverged"] else str(one["method"])


def _draw_lengths(figure: SubFigure, rows: Rows, every: int) -> None:
    """The lengths of SGD without clipping, all seeds, and of the steps those that the csv file has."""
    norms = np.array([float(row["gradient_norm"]) for of_seed in rows["SGD"].values() for row in of_seed[1:]])
    norms = norms[np.isfinite(norms)]
    axes = figure.subplots()
    if len(norms) > 1:
        plot_histogram(norms, axes).get_legend().remove()  # too wide for this panel
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, [fill(label, 50) for label in labels], loc="outside lower center", frameon=False, fontsize="small")
    beyond = int((norms > norms.mean() + 3 * norms.std()).sum()) if len(norms) else 0
    which = "" if every == 1 else f", one step in {every}"
    axes.set_title(f"SGD without clipping{which}:\n{len(norms)} gradients, {beyond} over mean + 3 std", size="medium")
