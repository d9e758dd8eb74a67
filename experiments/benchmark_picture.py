"""The picture of ``benchmark``, drawn from what it has written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from .benchmark_contenders import FLOOR, TORCH
from .benchmark_rows import TRAFFIC, Row, read_rows, traffic
from .benchmark_table import NAMES, OPTIMIZER_NAMES, shown

# Colours that colour-blind readers tell apart (M. Okabe and K. Ito); the shapes differ too.
LOOKS = {
    "-": ("D", "#000000", "#000000", "no clipping there is"),
    "no": ("o", "white", "#0072B2", "step not clipped"),
    "yes": ("o", "#0072B2", "#0072B2", "step clipped"),
}
TICKS = (1, 1.5, 2, 3, 5, 10, 20, 50, 100, 200, 500)


def plot(rows_file: Path, summary_file: Path, picture: Path) -> None:
    """Ratios to torch's fused step without clipping: a line of dots for every contender, a panel for size and optimizer."""
    rows = [row for row in read_rows(rows_file) if not row.note]
    machine = json.loads(summary_file.read_text(encoding="utf-8"))["machine"]
    chosen = shown(rows)
    names = [name for name in dict.fromkeys(row.contender for row in rows) if name != FLOOR][::-1]
    figure = Figure(figsize=(12, 2.2 + 0.26 * len(names)), layout="constrained")
    where = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    figure.suptitle(f"Time of an optimizer step, as a multiple of torch's fused step without clipping ({where})")
    panels = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    for axes, place in zip(panels, chosen, strict=True):
        _draw(axes, [row for row in rows if row[:3] == place], names)
        axes.set_title(f"{NAMES[place[0]]}, {OPTIMIZER_NAMES[place[2]]}, {place[1]}", size="medium")
    panels[0].set_yticks(range(len(names)), names)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(picture, dpi=150)


def _draw(axes: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    """One panel: how long each contender takes, and the least that memory traffic allows."""
    optimizer = rows[0].optimizer
    for clipped, linestyle in ((False, ":"), (True, "--")):
        words = f"least memory traffic, step {'clipped' if clipped else 'not clipped'}"
        bound = traffic(optimizer, True, clipped) / TRAFFIC[optimizer]
        axes.axvline(bound, color="#D55E00", linestyle=linestyle, linewidth=1.4, label=words, zorder=1)
    for place, name in enumerate(names):
        mine = [row.ratio_to_floor for row in rows if row.contender == name]
        if len(mine) > 1:
            axes.plot([min(mine), max(mine)], [place, place], color="#56B4E9", linewidth=1.5, zorder=2)
    for clipped, (marker, face, edge, label) in LOOKS.items():
        for own in (True, False):
            dots = [
                row for row in rows if row.clipped == clipped and row.contender in names and own == (row.contender not in TORCH)
            ]
            if not dots:
                continue
            torchs = "" if own else ", torch"
            axes.scatter(
                [row.ratio_to_floor for row in dots],
                [names.index(row.contender) for row in dots],
                marker=marker if own or clipped == "-" else "s",
                facecolor=face if own else "#000000",
                edgecolor=edge if own else "#000000",
                s=34,
                zorder=3,
                label=label + torchs,
            )
    axes.axvline(1, color="black", linewidth=0.8)
    longest = max(row.ratio_to_floor for row in rows)
    axes.set(xscale="log", xlim=(0.9, 1.2 * max(longest, 2)), xlabel="times torch's fused step")
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in TICKS if tick <= 1.2 * longest]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(alpha=0.3)
    own_rows = [place for place, name in enumerate(names) if name in TORCH]
    if own_rows:
        axes.axhspan(min(own_rows) - 0.5, max(own_rows) + 0.5, color="#EEEEEE", zorder=0)
