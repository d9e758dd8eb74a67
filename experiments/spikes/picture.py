"""Draw the picture of ``spikes`` from its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from ..common.files import read_csv
from ..common.style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, SKY, VERMILION

# The line styles differ too, for prints without colours
STYLES: dict[str, dict[str, Any]] = {
    "none": {"color": VERMILION, "linestyle": "-"},
    "norm": {"color": BLUE, "linestyle": "--"},
    "auto": {"color": GREEN, "linestyle": "-."},
    "zscore": {"color": PINK, "linestyle": ":"},
    "zclip": {"color": ORANGE, "linestyle": (0, (5, 1))},
    "adagc": {"color": SKY, "linestyle": (0, (3, 1, 1, 1))},
    "zclip, cap": {"color": "#8A4B00", "linestyle": (0, (7, 2))},
    "skip": {"color": "#6A3D9A", "linestyle": (0, (2, 1))},
    "left out": {"color": BLACK, "linestyle": (0, (1, 2))},
}
LABELS = {
    "none": "not clipped",
    "zclip, cap": "zclip at 2.5, cap 1",
    "skip": "zscore at 6, skip",
    "left out": "corrupted batches skipped",
}
UNHARMED_STYLE: dict[str, Any] = {"color": GREY, "linestyle": "-"}
Array = NDArray[np.float64]


def plot(rows_file: Path, summary_file: Path, picture: Path) -> None:
    """Draw a column for each kind of corrupted batches: the loss, and below it the increase over the loss without any."""
    rows = read_csv(rows_file)
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    config = summary["config"]
    unharmed, *kinds = dict.fromkeys(row["batches"] for row in rows)
    figure = Figure(figsize=(13, 8.6), layout="constrained")
    seeds = len({row["seed"] for row in rows})
    figure.suptitle(
        f"{config['data']}, Adam, lr {config['lr']:g}; mean of the last {config['smoothing']} losses\n"
        f"line: median over {seeds} {'seed' if seeds == 1 else 'seeds'}, band: lowest to highest; "
        f"vertical lines: corrupted batches{', interrupted' if summary['interrupted'] else ''}"
    )
    panels = figure.subplots(2, max(1, len(kinds)), sharex=True, sharey="row", squeeze=False)
    plain = _curves(rows, unharmed, "none", config["smoothing"])
    for column, kind in zip(panels.T, kinds, strict=False):
        _draw(column, rows, kind, plain, config)
    panels[0, 0].set_ylabel("training loss (nats a character)")
    panels[1, 0].set_ylabel("increase over the loss without\ncorrupted batches (nats)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(picture, dpi=150)


def _draw(column: Sequence[Axes], rows: list[dict[str, str]], kind: str, plain: dict[str, Array], config: dict[str, Any]) -> None:
    upper, lower = column
    _band(upper, np.array(list(plain.values())), UNHARMED_STYLE, "no corrupted batch")
    for name in config["contenders"]:
        curves = _curves(rows, kind, name, config["smoothing"])
        level = config["clipping_levels"][name]
        label = LABELS.get(name, f"{name} at {level:g}" if level else name)
        _band(upper, np.array(list(curves.values())), STYLES[name], label)
        _band(lower, np.array([curves[seed] - plain[seed] for seed in curves]), STYLES[name], None)
    upper.set_title(f"{kind}: {config['weights'][kind]:g} x the mean loss of a character", size="medium")
    upper.set_yscale("log")
    upper.yaxis.set_major_locator(MaxNLocator(8))
    upper.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    upper.yaxis.set_minor_locator(NullLocator())
    first = max(0, config["corrupted"][0] - 50)
    lower.set(xlabel="step", xlim=(first, config["steps"] - 1))
    lower.set_yscale("symlog", linthresh=0.1)
    lower.set_yticks([-0.05, 0, 0.05, 0.1, 0.3, 1, 3])
    lower.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    lower.yaxis.set_minor_locator(NullLocator())
    lower.set_ylim(bottom=-0.06)
    for axes in column:
        for step in config["corrupted"]:
            axes.axvline(step, color=GREY, linewidth=0.8, zorder=0)
        axes.grid(alpha=0.3)


def _curves(rows: list[dict[str, str]], kind: str, name: str, smoothing: int) -> dict[str, Array]:
    """Return for each seed the mean of the last ``smoothing`` losses at every step, NaN after the end of a training."""
    curves = {}
    for seed in dict.fromkeys(row["seed"] for row in rows if row["batches"] == kind):
        losses = np.array([float(row[name]) for row in rows if (row["batches"], row["seed"]) == (kind, seed)])
        if not np.isnan(losses).all():
            padded = np.concatenate([np.full(smoothing - 1, losses[0]), losses])
            curves[seed] = np.lib.stride_tricks.sliding_window_view(padded, smoothing).mean(axis=1)
    return curves


def _band(axes: Axes, curves: Array, style: dict[str, Any], label: str | None) -> None:
    if not len(curves):
        return
    low, median, high = np.quantile(curves, [0, 0.5, 1], axis=0)
    steps = np.arange(curves.shape[1])
    axes.fill_between(steps, low, high, color=style["color"], alpha=0.13, linewidth=0)
    axes.plot(steps, median, label=label, linewidth=1.8, **style)
