"""The picture of ``thresholds``, drawn from what it has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

RANGE = 8  # losses of more than so many times (on a logarithmic scale) what is usable get the last colour


def plot(summary_file: Path, picture: Path) -> None:
    """A heat map for each problem: learning rates over levels, the column without clipping on the right."""
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    problems, seeds = summary["problems"], summary["config"]["seeds"]
    figure = Figure(figsize=(13.5, 6.2), layout="constrained")
    how = "interrupted" if summary["interrupted"] else f"median of {seeds} {'seed' if seeds == 1 else 'seeds'}"
    figure.suptitle(
        f"Validation loss after training by SGD with momentum, clipping type norm ({how})\n"
        "bold frame: usable (see below); hatched: diverged"
    )
    for axes, problem in zip(figure.subplots(1, len(problems), squeeze=False)[0], problems, strict=True):
        _draw(figure, axes, problem)
    figure.savefig(picture, dpi=150)


def _draw(figure: Figure, axes: Axes, problem: dict[str, Any]) -> None:
    columns, rows = [*problem["levels"], "none"], problem["lrs"]
    losses = np.full((len(rows), len(columns)), np.nan)
    for cell in problem["cells"]:
        if cell["validation_loss"] is not None:
            losses[rows.index(cell["lr"]), columns.index(cell["level"])] = cell["validation_loss"]
    lowest, highest = (np.nanmin(losses), np.nanmax(losses)) if np.isfinite(losses).any() else (1.0, 2.0)
    last = min(highest, lowest * problem["bar"] ** RANGE) * 1.0001
    scale = LogNorm(lowest, last)
    image = axes.imshow(losses, cmap="cividis_r", norm=scale, origin="lower", aspect="auto")
    for cell in problem["cells"]:
        _draw_cell(axes, cell, rows.index(cell["lr"]), columns.index(cell["level"]), problem["usable_up_to"], scale)
    bar = "-" if problem["usable_up_to"] is None else f"{problem['usable_up_to']:.3g}"
    words = f"usable: at most {bar}, {problem['bar']:g} times the lowest loss without clipping"
    axes.axvline(len(columns) - 1.5, color="white", linewidth=4)
    axes.set_xticks(range(len(columns)), [str(x) if x == "none" else f"{x:g}" for x in columns])
    axes.set_yticks(range(len(rows)), [f"{lr:g}" for lr in rows])
    axes.set(xlabel=f"clipping level (none: not clipped)\n{words}", ylabel="learning rate")
    axes.set_title(f"{problem['data']}\n{problem['steps']} steps", size="medium")
    colours = figure.colorbar(image, ax=axes, label=problem["loss_name"], extend="max" if highest > last else "neither")
    ticks = np.geomspace(lowest, last, 6)
    colours.ax.yaxis.set_minor_locator(NullLocator())
    colours.set_ticks(ticks.tolist(), labels=[f"{loss:.2g}" for loss in ticks])


def words_of(loss: float) -> str:
    """Three digits, in the width of a cell."""
    return f"{loss:.3g}".replace("e+0", "e")


def _draw_cell(axes: Axes, cell: dict[str, Any], row: int, column: int, bar: float | None, scale: LogNorm) -> None:
    loss = cell["validation_loss"]
    corner = (column - 0.5, row - 0.5)
    if loss is None:
        axes.add_patch(Rectangle(corner, 1, 1, facecolor="white", edgecolor="#888888", hatch="////", linewidth=0))
        return
    dark = float(scale(loss)) > 0.5  # where the reversed colours are dark
    axes.text(column, row, words_of(loss), ha="center", va="center", color="white" if dark else "black", size=9)
    if bar is not None and loss <= bar:
        frame = Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor="black", linewidth=2.6)
        axes.add_patch(frame)
