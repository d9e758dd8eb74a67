"""Draw the picture of ``thresholds`` from its files: a map of each problem, and the losses of its three best rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from ..common.style import BLACK, BLUE, GREY, VERMILION

Summary = dict[str, Any]
RANGE = 8  # largest loss with a colour of its own, as a power of the bar of usable losses
COLOURS = {"unclipped": BLACK, "clipped": BLUE, "normalized": VERMILION}
PALE = "#E4E4E4"  # diverged cells
EXPLAINED = (
    "Number: % of the steps clipped. Frame: best cell of its kind; its row is drawn on the right. "
    "\N{MULTIPLICATION SIGN}: half of the seeds or more diverged.\n"
    "Hatched: normalized (99 % or more clipped): there only learning rate \N{MULTIPLICATION SIGN} level counts."
)


def plot(summary_file: Path, picture: Path) -> None:
    """Draw a map and curves for each problem, below one another."""
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    problems, seeds = summary["problems"], summary["config"]["seeds"]
    figure = Figure(figsize=(10, 0.9 + 4.2 * len(problems)), layout="constrained")
    how = "interrupted" if summary["interrupted"] else f"median of {seeds} {'seed' if seeds == 1 else 'seeds'}"
    figure.suptitle(f"Validation loss after SGD with momentum, clipping type norm ({how})\n{EXPLAINED}", size=9.5)
    panels = figure.subplots(len(problems), 2, squeeze=False, width_ratios=(1.2, 1))
    for (cells, curves), problem in zip(panels, problems, strict=True):
        scale = scale_of(problem)
        _draw_map(figure, cells, problem, scale)
        _draw_curves(curves, problem, scale)
    figure.savefig(picture, dpi=150)


def scale_of(problem: Summary) -> LogNorm:
    """Return the scale of losses, from the best one to far above the usable ones."""
    losses = [cell["validation_loss"] for cell in problem["cells"] if cell["validation_loss"] is not None] or [1.0, 2.0]
    return LogNorm(min(losses), min(max(losses), min(losses) * problem["bar"] ** RANGE) * 1.0001)


def _draw_map(figure: Figure, axes: Axes, problem: Summary, scale: LogNorm) -> None:
    rows, columns = [*problem["levels"], "none"], problem["lrs"]
    losses = np.full((len(rows), len(columns)), np.nan)
    for cell in problem["cells"]:
        if not is_diverged(cell):
            losses[rows.index(cell["level"]), columns.index(cell["lr"])] = cell["validation_loss"]
    image = axes.imshow(losses, cmap="cividis_r", norm=scale, origin="lower", aspect="auto")
    for cell in problem["cells"]:
        _draw_cell(axes, cell, rows.index(cell["level"]), columns.index(cell["lr"]), scale)
    for kind, cell in problem["best"].items():
        if cell is not None:
            corner = (columns.index(cell["lr"]) - 0.46, rows.index(cell["level"]) - 0.46)
            axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=COLOURS[kind], linewidth=2.6, zorder=4))
    axes.axhline(len(rows) - 1.5, color="white", linewidth=4)
    axes.set_xticks(range(len(columns)), [power_words(lr) for lr in columns])
    axes.set_yticks(range(len(rows)), ["unclipped" if level == "none" else f"{level:g}" for level in rows])
    axes.set(xlabel="learning rate", ylabel="clipping level")
    axes.set_title(f"{problem['name']}, {problem['steps']} steps: {problem['loss_name']}", size="medium")
    colours = figure.colorbar(image, ax=axes, extend="max", pad=0.01)
    _label_losses(colours.ax, scale)


def _label_losses(axes: Axes, scale: LogNorm) -> None:
    """Label a logarithmic axis at a few losses with two digits."""
    ticks = np.geomspace(scale.vmin, scale.vmax, 6).tolist()
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(ticks, [f"{loss:.2g}" for loss in ticks])


def is_diverged(cell: Summary) -> bool:
    """Return whether at least half of the seeds diverged, or their median loss is not finite."""
    return bool(cell["diverged"] >= 0.5 or cell["validation_loss"] is None)


def percent(rate: float) -> str:
    """Return a share in percent, rounded down, so that cells labelled 99 are normalized."""
    return "<1" if 0 < rate < 0.01 else f"{math.floor(100 * rate + 1e-9)}"


def _draw_cell(axes: Axes, cell: Summary, row: int, column: int, scale: LogNorm) -> None:
    corner, diverged = (column - 0.5, row - 0.5), is_diverged(cell)
    dark = not diverged and float(scale(cell["validation_loss"])) > 0.5  # where the reversed colours are dark
    words = [] if cell["clip_rate"] is None else [percent(cell["clip_rate"])]
    if diverged:
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=PALE, edgecolor="white", linewidth=0.5))
        words.insert(0, "\N{MULTIPLICATION SIGN}")
    if cell["normalized"]:
        edge = "#BBBBBB" if dark else GREY
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=edge, hatch="////", linewidth=0))
    box = {"facecolor": image_colour(cell, scale), "edgecolor": "none", "pad": 1.0} if cell["normalized"] else None
    axes.text(column, row, "\n".join(words), ha="center", va="center", color="white" if dark else "black", size=9, bbox=box)


def image_colour(cell: Summary, scale: LogNorm) -> Any:
    """Return the colour of a cell, the background of its number in hatched cells."""
    return PALE if is_diverged(cell) else colormaps["cividis_r"](float(scale(cell["validation_loss"])))


def power_words(lr: float) -> str:
    """Return a learning rate as text, as a fraction if it is one half, one quarter and so on."""
    return f"1/{1 / lr:g}" if lr < 1 and (1 / lr).is_integer() else f"{lr:g}"


def _draw_curves(axes: Axes, problem: Summary, scale: LogNorm) -> None:
    """Draw loss against learning rate, medians and range over the seeds, of the row of the best cell of each kind."""
    bests = [(kind, best) for kind, best in problem["best"].items() if best is not None]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for kind, best in bests:
        _draw_row(axes, [cell for cell in problem["cells"] if cell["level"] == best["level"]], COLOURS[kind], 10 * scale.vmax)
    room = (scale.vmax / scale.vmin) ** 0.3  # below the curves, for the labels, side by side in the order of the points
    for place, (kind, best) in enumerate(sorted(bests, key=lambda one: (one[1]["lr"], one[1]["validation_loss"]))):
        axes.annotate(
            words_of(kind, best),
            (best["lr"], best["validation_loss"]),
            (0.17 + 0.33 * place, scale.vmin / room**0.4),
            textcoords=axes.get_yaxis_transform(),
            color=COLOURS[kind],
            size=9,
            ha="center",
            va="top",
            arrowprops={"arrowstyle": "-", "color": COLOURS[kind], "linewidth": 0.8, "relpos": (0.5, 1), "shrinkA": 0},
        )
    axes.set_ylim(scale.vmin / room, scale.vmax)
    axes.set_xticks(problem["lrs"], [power_words(lr) for lr in problem["lrs"]])
    axes.xaxis.set_minor_locator(NullLocator())
    _label_losses(axes, scale)
    axes.set(xlabel="learning rate", ylabel=problem["loss_name"])
    axes.set_title("lines: medians, bands: all seeds", size="medium")
    axes.grid(alpha=0.3)


def _draw_row(axes: Axes, row: list[Summary], colour: str, highest: float) -> None:
    """Draw the median losses of a row over a band from the lowest to the highest; infinite losses leave the panel at the top."""
    lrs = [cell["lr"] for cell in row]
    median, low, high = (
        [highest if cell[name] is None else min(cell[name], highest) for cell in row]
        for name in ("validation_loss", "lowest", "highest")
    )
    axes.plot(lrs, median, "-o", color=colour, markersize=3.5)
    axes.fill_between(lrs, low, high, color=colour, alpha=0.15, linewidth=0)


def words_of(kind: str, best: Summary) -> str:
    """Return the label of a curve: its level, the clip rate of its best cell, and the loss there."""
    end = f"{best['validation_loss']:#.3g} at {power_words(best['lr'])}"
    if kind == "unclipped":
        return f"unclipped\n{end}"
    rate = "normalized" if kind == "normalized" else f"{percent(best['clip_rate'])} % clipped"
    return f"level {best['level']:g}\n{rate}\n{end}"
