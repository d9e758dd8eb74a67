"""Draw the pictures of ``compare`` from its files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from ..common.files import read_csv
from ..common.style import BLACK, BLUE, GREY, VERMILION
from .summary import best_clipped

Summary = dict[str, Any]
COLOURS = {"SGD": BLUE, "Adam": VERMILION}
DETAILS = 4  # panels in a row


def plot(csv: Path, written: Summary, picture: Path) -> None:
    """Draw the test metric of each method, its difference from no clipping, and the validation metric over the steps."""
    settings = written["settings"]
    known = [one for one in written["methods"] if one["test"]["mean"] is not None]
    ordered = sorted(known, key=lambda one: one["test"]["mean"])
    figure = Figure(figsize=(12, 1.6 + 0.28 * max(8, len(written["methods"]))), layout="constrained")
    figure.suptitle(f"{settings['source']}\n{settings['steps']} steps, {len(settings['seeds'])} seeds", size="medium")
    results, differences, courses = figure.subplots(1, 3, width_ratios=(1.25, 1, 1.1))
    _draw_results(results, ordered, written)
    _draw_differences(differences, ordered, results)
    _draw_courses(courses, csv, ordered, settings["metric"])
    figure.savefig(picture, dpi=110)


def _draw_results(axes: Axes, ordered: Sequence[Summary], written: Summary) -> None:
    for place, one in enumerate(ordered):
        colour, values = _colour(one["method"]), [value for value in one["test"]["by_seed"] if value is not None]
        axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.35, markersize=4)
        axes.plot(
            one["test"]["mean"], place, "D", color=colour, markersize=6, markerfacecolor="white" if one["baseline"] else colour
        )
    axes.set_yticks(range(len(ordered)), [_label(one) for one in ordered], size="small")
    trivial, (low, high) = written["trivial"]["test"], axes.get_xlim()
    if ordered and low - trivial < 2 * (high - low):
        axes.axvline(trivial, color=GREY, linestyle=":")
        words = {"color": GREY, "size": "small", "rotation": 90, "ha": "left", "va": "bottom"}
        axes.text(trivial, -0.3, f" {written['trivial']['method']}", **words)
    axes.set(xlabel=f"test {written['settings']['metric']}\n(diamonds: means, dots: seeds)")
    axes.grid(alpha=0.3)


def _label(one: Summary) -> str:
    level = "" if one["level"] is None else f", level {one['level']:g}"
    diverged = f", {one['diverged']} diverged" if one["diverged"] else ""
    return f"{one['method']}, lr {one['lr']:g}{level}{diverged}"


def _draw_differences(axes: Axes, ordered: Sequence[Summary], beside: Axes) -> None:
    """Draw the mean differences from the same optimizer without clipping, with their intervals, in the rows of the methods."""
    for place, one in enumerate(ordered):
        apart = one["difference"]
        if apart is not None and apart["mean"] is not None:
            shown = apart["words"] != "no difference shown"
            errors = [[apart["mean"] - apart["low"]], [apart["high"] - apart["mean"]]]
            look = {"color": _colour(one["method"]), "markerfacecolor": _colour(one["method"]) if shown else "white"}
            axes.errorbar(apart["mean"], place, xerr=errors, fmt="o", capsize=3, **look)  # type: ignore[arg-type]
    axes.axvline(0, color=BLACK, linewidth=1)
    axes.set_yticks(range(len(ordered)), [""] * len(ordered))
    axes.set_ylim(beside.get_ylim())
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set(xlabel="difference from no clipping, 95 % interval\n(filled: excludes 0)")
    axes.grid(alpha=0.3)


def _draw_courses(axes: Axes, csv: Path, ordered: Sequence[Summary], metric: str) -> None:
    """Draw the metric on validation data of both optimizers without clipping and with the clipping that tuning found best."""
    chosen = [one for name in COLOURS for one in ordered if one["method"] == name]
    chosen += [one for name in COLOURS if (one := best_clipped(ordered, name)) is not None]
    values: dict[str, dict[int, list[float]]] = {one["method"]: {} for one in chosen}
    for row in read_csv(csv):
        if row["method"] in values and row["validation_metric"] and int(row["step"]):  # step 0 would hide the differences
            values[row["method"]].setdefault(int(row["step"]), []).append(float(row["validation_metric"]))
    for one in chosen:
        means = {step: float(np.mean(of_seeds)) for step, of_seeds in sorted(values[one["method"]].items())}
        look = {"color": _colour(one["method"]), "linestyle": "--" if one["baseline"] is None else "-"}
        axes.plot([*means], [*means.values()], label=one["method"], **look)
    axes.set(xlabel="step", ylabel=f"validation {metric} (mean over the seeds)")
    if chosen:
        axes.legend(frameon=False, fontsize="small")
    axes.grid(alpha=0.3)


def plot_details(written: Summary, picture: Path) -> None:
    """Draw, for each method, the metric on validation data of the candidates of the first tuning seed over learning rates."""
    methods = written["methods"]
    lines = math.ceil(len(methods) / DETAILS)
    figure = Figure(figsize=(12, 2.4 * lines + 0.8), layout="constrained")
    figure.suptitle(f"Tuning: validation {written['settings']['metric']} with the first tuning seed, by learning rate and level")
    panels = figure.subplots(lines, DETAILS, sharey=True, squeeze=False).flat
    for one, panel in zip(methods, panels, strict=False):  # this order, so that zip takes no extra panel
        levels = sorted({candidate["level"] for candidate in one["candidates"]}, key=lambda level: -1 if level is None else level)
        for level, marker in zip(levels, "osD", strict=False):
            own = sorted((c for c in one["candidates"] if c["level"] == level), key=lambda c: float(c["lr"]))
            values = [math.nan if c["validation"] is None else c["validation"] for c in own]
            words = "no clipping" if level is None else f"level {level:g}"
            panel.plot([c["lr"] for c in own], values, marker=marker, markersize=4, linewidth=1, label=words)
        panel.axvline(one["lr"], color=GREY, linestyle=":")
        lrs = sorted({float(candidate["lr"]) for candidate in one["candidates"]})
        panel.set_xlim(lrs[0] / 1.5, lrs[-1] * 1.5)
        panel.set(xscale="log", title=f"{one['method']}: lr {one['lr']:g}")
        panel.set_xticks(lrs[:: math.ceil(len(lrs) / 4)], [f"{lr:g}" for lr in lrs[:: math.ceil(len(lrs) / 4)]])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.title.set_size("small")
        panel.tick_params(labelsize="small")
        panel.legend(fontsize="x-small", frameon=False)
        panel.grid(alpha=0.3)
    for panel in list(panels):
        panel.set_axis_off()
    figure.savefig(picture, dpi=110)


def _colour(method: str) -> str:
    return COLOURS[method.partition(" ")[0]]
