"""Draw the picture of ``heavy_tails`` from its files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from torch_clipped.clipping import CLIPPING_TYPES

from ..common.language_models import MODELS
from ..common.style import BLACK, BLUE, SKY, VERMILION
from .summary import Row, read_rows, select
from .table import by_lr, label

BINS = 80
# The line styles differ too, for prints without colours
STYLES: dict[str, dict[str, Any]] = {
    "clipped": {"color": BLUE, "linestyle": "-", "linewidth": 2.0},
    "same lr": {"color": VERMILION, "linestyle": "--", "linewidth": 1.6},
    "best lr": {"color": BLACK, "linestyle": ":", "linewidth": 2.2},
}
Run = dict[str, Any]


def plot(rows_file: Path, summary_file: Path, picture: Path) -> None:
    """Draw gradient norms of the clipped and of the best unclipped run on the left, losses on the right."""
    rows = read_rows(rows_file)
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    figure.suptitle(_title(summary))
    halves = figure.subfigures(1, 2, squeeze=False)[0]
    _draw_norms(halves[0], rows, summary)
    _draw_losses(halves[1], rows, summary)
    figure.savefig(picture, dpi=150)


def _title(summary: Run) -> str:
    settings, seeds = summary["settings"], len(summary["settings"]["seeds"])
    what: str = f"{MODELS[settings['model']].__name__} on the characters of {settings['data']}"
    how = f"{settings['steps']} steps, {seeds} {'seed' if seeds == 1 else 'seeds'}"
    return f"{what}: {how}{', interrupted' if summary['interrupted'] else ''}"


def _chosen(summary: Run) -> dict[str, Run]:
    """Return the runs to draw by their style; after an interruption some may be missing."""
    lr, comparison = summary["settings"]["lr"], summary["comparison"]
    best_lr = comparison["best_unclipped_lr"] if comparison else lr
    chosen = {"clipped": by_lr(summary, True, lr), "same lr": by_lr(summary, False, lr)}
    if best_lr != lr:
        chosen["best lr"] = by_lr(summary, False, best_lr)
    return {style: run for style, run in chosen.items() if run is not None}


def _draw_norms(figure: SubFigure, rows: list[Row], summary: Run) -> None:
    chosen = _chosen(summary)
    styles = [style for style in ("clipped", "best lr" if "best lr" in chosen else "same lr") if style in chosen]
    panels = figure.subplots(len(styles), 1, sharex=True, squeeze=False)[:, 0]
    shown = [select(rows, chosen[style]["optimizer"], chosen[style]["lr"]) for style in styles]
    largest = max((norm for mine in shown for norm in _norms(mine)), default=0.0) or 1.0
    edges = np.linspace(0, largest, BINS + 1)
    for panel, style, mine in zip(panels, styles, shown, strict=True):
        _draw_histogram(panel, mine, edges, chosen[style], summary["start_steps"])
        if style == "clipped":
            _mark_threshold(panel, mine, summary["settings"]["clipping_type"])
    panels[-1].set_xlabel("gradient norm (before clipping)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False)


def _norms(rows: list[Row]) -> list[float]:
    return [row.grad_norm for row in rows if math.isfinite(row.grad_norm)]


def _draw_histogram(axes: Axes, rows: list[Row], edges: NDArray[Any], run: Run, start_steps: int) -> None:
    """Draw the norms of all steps, and in front those without the first steps, whose norms are large."""
    later = [row for row in rows if row.step >= start_steps]
    look: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.6}
    counts, *_ = axes.hist(_norms(rows), edges.tolist(), color="white", hatch="//////", label="all steps", **look)
    axes.hist(_norms(later), edges.tolist(), color=SKY, label=f"without the first {start_steps} steps of each seed", **look)
    places = np.linspace(0, edges[-1], 1000)
    for words, tail, linestyle in (
        ("normal distribution, mean and variance of all steps", run["grad_norm"], "-."),
        (f"normal distribution, without the first {start_steps} steps", run["grad_norm_after_start"], ":"),
    ):
        if tail.get("std"):
            heights = np.exp(-0.5 * ((places - tail["mean"]) / tail["std"]) ** 2) / (tail["std"] * math.sqrt(2 * math.pi))
            finite = tail["count"] - tail["not_finite"]
            axes.plot(places, finite * edges[1] * heights, linestyle, color="black", linewidth=1.8, label=words)
    axes.set(yscale="log", ylabel="gradients in a bin", xlim=(0, edges[-1]), ylim=(0.5, 3 * max(1, np.max(counts))))
    axes.set_title(f"{label(run)}: {_tail(run['grad_norm'])}", size="medium")


def _tail(tail: Run) -> str:
    words = f"{tail['count']} gradients"
    if "std" in tail:
        words += f", {tail['beyond_3_std']} over mean + 3 std (normal: {tail['beyond_3_std_if_normal']:.1f})"
    return words + (f", {tail['not_finite']} not finite" if tail["not_finite"] else "")


def _mark_threshold(axes: Axes, rows: list[Row], clipping_type: str) -> None:
    """Mark the threshold if it is one for the whole gradient; other thresholds cannot be compared with these norms."""
    rule = CLIPPING_TYPES[clipping_type]
    thresholds = [row.threshold for row in rows if math.isfinite(row.threshold)]
    if rule is None or rule.measure != "global" or not thresholds:
        return
    threshold, edge = float(np.median(thresholds)), axes.get_xlim()[1]
    beyond = " (beyond the axis)" if threshold > edge else ""
    name = "threshold" if min(thresholds) == max(thresholds) else "median threshold"
    axes.axvline(
        threshold,
        color=VERMILION,
        linewidth=2,
        linestyle="--",
        label=f"{name}, {threshold:.3g}{beyond}",
    )


def _draw_losses(figure: SubFigure, rows: list[Row], summary: Run) -> None:
    guessing, longest = summary["settings"]["loss_of_guessing"], summary["longest_training"]
    window, roof = max(1, longest // 20), 1.05 * guessing
    axes = figure.subplots()
    cut = False
    for style, run in _chosen(summary).items():
        losses = _by_seed(select(rows, run["optimizer"], run["lr"]), longest)
        cut |= bool((losses > roof).any())
        curves = smooth(np.minimum(losses, roof), window)
        steps = np.arange(1, losses.shape[1] + 1)
        axes.fill_between(
            steps, np.nanmin(curves, axis=0), np.nanmax(curves, axis=0), color=STYLES[style]["color"], alpha=0.2, linewidth=0
        )
        axes.plot(steps, np.nanmean(curves, axis=0), label=_loss_label(style, run, summary["comparison"]), **STYLES[style])
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(8))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    smoothed = f" and the last {window} steps" if window > 1 else ""
    axes.set_title(f"Mean over the seeds{smoothed}; band: lowest to highest seed", size="medium")
    note = f"\nlosses over {roof:.2f} are drawn at the upper edge (guessing gives {guessing:.2f})" if cut else ""
    axes.set(xlabel="step" + note, ylabel="training loss (nats a character)", xlim=(0, longest + 1))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", frameon=False)


def _loss_label(style: str, run: Run, comparison: Run | None) -> str:
    words = ""
    if style == "best lr" and comparison:
        words = ", the best of " + ", ".join(f"{lr:g}" for lr in comparison["unclipped_lrs"])
    if run["diverged"]:
        words += f", diverged with {run['diverged']} of {len(run['seeds'])} seeds"
    loss = run["validation_loss"]
    return label(run) + words + ("" if loss is None else f": validation loss {loss:.3f}")


def _by_seed(rows: list[Row], steps: int) -> NDArray[Any]:
    """Return the losses, shape (seeds, steps): inf after a loss that is not finite, NaN after an interrupted training.

    Steps that no seed has reached are dropped.
    """
    seeds = list(dict.fromkeys(row.seed for row in rows))
    losses = np.full((len(seeds), steps), np.nan)
    for row in rows:
        place = seeds.index(row.seed)
        losses[place, row.step] = row.loss
        if not math.isfinite(row.loss):
            losses[place, row.step :] = math.inf
    return losses[:, ~np.isnan(losses).all(axis=0)]


def smooth(curves: NDArray[Any], window: int) -> NDArray[Any]:
    """Return the mean of each value and the ``window - 1`` values before it, of fewer at the start."""
    return np.stack([curves[:, max(0, step + 1 - window) : step + 1].mean(axis=1) for step in range(curves.shape[1])], axis=1)
