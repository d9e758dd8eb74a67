"""Draw the picture of ``benchmark`` from its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from torch_clipped.clipping import CLIPPING_TYPES

from ..common.style import BLACK, BLUE, GREEN, SKY, VERMILION
from .contenders import COMPILED, FLOOR, TORCH
from .rows import TRAFFIC, Row, read_rows, traffic
from .table import NAMES, OPTIMIZER_NAMES, shown

# Colours that colour-blind readers can tell apart (M. Okabe and K. Ito); the shapes differ too.
LOOKS = {
    "torch, no clipping": ("D", "white", BLACK),
    "torch, clipping": ("D", BLACK, BLACK),
    "other packages, step clipped": ("s", GREEN, GREEN),
    "torch_clipped, step not clipped": ("o", "white", BLUE),
    "torch_clipped, step clipped": ("o", BLUE, BLUE),
}
TICKS = (1, 1.5, 2, 3, 5, 10, 20, 50, 100, 200, 500)


def plot(rows_file: Path, summary_file: Path, picture: Path) -> None:
    """Draw ratios to torch's fused step without clipping: a panel per size, dtype and optimizer, a line per contender."""
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
    """Draw one panel: the time ratio of each contender, and the lower bound from memory traffic."""
    optimizer = rows[0].optimizer
    for clipped, linestyle in ((False, ":"), (True, "--")):
        words = f"least memory traffic, step {'clipped' if clipped else 'not clipped'}"
        bound = traffic(optimizer, True, clipped) / TRAFFIC[optimizer]
        axes.axvline(bound, color=VERMILION, linestyle=linestyle, linewidth=1.4, label=words, zorder=1)
    for place, name in enumerate(names):
        mine = [row.ratio_to_floor for row in rows if row.contender == name]
        if len(mine) > 1:
            axes.plot([min(mine), max(mine)], [place, place], color=SKY, linewidth=1.5, zorder=2)
    for label, (marker, face, edge) in LOOKS.items():
        dots = [row for row in rows if row.contender in names and _look(row) == label]
        places, ratios = [names.index(row.contender) for row in dots], [row.ratio_to_floor for row in dots]
        axes.scatter(ratios, places, marker=marker, facecolor=face, edgecolor=edge, s=34, zorder=3, label=label)
    axes.axvline(1, color="black", linewidth=0.8)
    shortest, longest = (extreme(row.ratio_to_floor for row in rows) for extreme in (min, max))
    axes.set(xscale="log", xlim=(0.9 * shortest, 1.2 * max(longest, 2)), xlabel="times torch's fused step")
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in TICKS if tick <= 1.2 * longest and (tick != 1.5 or longest < 5)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(alpha=0.3)
    axes.set_ylim(-0.7, len(names) - 0.3)


def _look(row: Row) -> str:
    """Return the key of ``LOOKS`` for a row."""
    if row.contender in TORCH:
        return "torch, no clipping" if row.clipped == "-" else "torch, clipping"
    if row.contender not in (*CLIPPING_TYPES, COMPILED):
        return "other packages, step clipped"
    return f"torch_clipped, step {'clipped' if row.clipped == 'yes' else 'not clipped'}"
