"""The pictures of ``toy``, drawn from what it has written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..common.files import read_csv

# Colours that colour-blind readers tell apart (M. Okabe and K. Ito); for a print without colours the line styles do.
STYLES: dict[str, dict[str, Any]] = {
    "SGD": {"color": "#D55E00", "linestyle": "--"},
    "clipped SGD": {"color": "#0072B2", "linestyle": "-"},
    "R-clipped SGD": {"color": "#56B4E9", "linestyle": (0, (5, 1))},
    "Adam": {"color": "#000000", "linestyle": ":"},
    "clipped SSTM": {"color": "#009E73", "linestyle": "-."},
    "AdaGrad": {"color": "#D55E00", "linestyle": "--"},
    "clipped AdaGrad": {"color": "#0072B2", "linestyle": "-"},
}
Rows = Sequence[dict[str, str]]


def plot_quadratic(curves: Path, config: Path, picture: Path) -> None:
    """One panel a noise: the largest f in each window of steps, median and band over the runs."""
    rows, settings = read_csv(curves), _config(config)
    noises = list(dict.fromkeys(row["noise"] for row in rows))
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    window = int(rows[0]["step"])
    figure.suptitle(
        f"f = ||x||² / 2, n = {settings['dimension']}, lr {settings['lr']:g}: the largest f in every {window} steps\n"
        f"line: median of {settings['repeats']} runs; dark band: 10 % to 90 %; light band: lowest to highest"
    )
    panels = figure.subplots(2, 2, sharex=True, sharey=True, squeeze=False).flat
    for panel, noise in zip(panels, noises, strict=False):
        mine = [row for row in rows if row["noise"] == noise]
        _bands(panel, mine, [("lowest", "highest", 0.15), ("p10", "p90", 0.3)], "median", _clipped_label(settings))
        same = len({tuple(row["median"] for row in mine if row["method"] == method) for method in ("SGD", "clipped SGD")}) == 1
        panel.set_title(f"{noise} noise" + (": nothing is clipped, both curves are the same" if same else ""))
        panel.set(yscale="log", xlabel="step", ylabel="f")
        panel.grid(alpha=0.3)
        panel.legend(loc="upper right")
        panel.label_outer()
    figure.savefig(picture, dpi=150)


def plot_adagrad(curves: Path, config: Path, picture: Path) -> None:
    """The median and the 90 % quantile of f over the repeats."""
    rows, settings = read_csv(curves), _config(config)
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    _bands(axes, rows, [("median", "p90", 0.25)], "median", _clipped_label(settings))
    axes.set(xscale="log", yscale="log", xlabel="step", ylabel="f = x² / 2")
    axes.set_title(
        "AdaGrad under noise of density 3/4 (1 + |x|)^-2.5\n"
        f"line: median of {settings['repeats']} runs; band: up to their 90 % quantile"
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(picture, dpi=150)


def plot_regression(curves: Path, config: Path, picture: Path) -> None:
    """The loss of all samples after each epoch, median and band over the seeds."""
    raw, settings = read_csv(curves), _config(config)
    rows = []
    for method in dict.fromkeys(row["method"] for row in raw):
        for epoch in range(settings["epochs"] + 1):
            losses = [float(row["loss"]) for row in raw if (row["method"], row["epoch"]) == (method, str(epoch))]
            low, median, high = np.quantile(losses, [0, 0.5, 1])
            rows.append({"method": method, "step": str(epoch), "low": str(low), "median": str(median), "high": str(high)})
    rates = {row["method"]: row["lr"] for row in raw}
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    _bands(axes, rows, [("low", "high", 0.15)], "median", lambda method: f"{method}, lr {float(rates[method]):g}")
    axes.set(yscale="log", xlabel=f"epoch ({settings['samples'] // settings['batch']} steps)", ylabel="mean |Ax - y|^1.75")
    axes.set_title(
        f"Heavy-tailed regression: {settings['samples']} samples, {settings['features']} features, batch {settings['batch']}\n"
        f"line: median of {settings['seeds']} seeds; band: lowest to highest"
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    figure.savefig(picture, dpi=150)


def _bands(axes: Axes, rows: Rows, bands: Sequence[tuple[str, str, float]], line: str, label: Callable[[str], str]) -> None:
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        steps = [float(row["step"]) for row in mine]
        style = STYLES[method]
        for low, high, alpha in bands:
            axes.fill_between(
                steps,
                [float(row[low]) for row in mine],
                [float(row[high]) for row in mine],
                color=style["color"],
                alpha=alpha,
                linewidth=0,
            )
        axes.plot(steps, [float(row[line]) for row in mine], label=label(method), linewidth=1.8, **style)


def _clipped_label(settings: dict[str, Any]) -> Callable[[str], str]:
    return lambda method: method + (f" at {settings['clipping_level']:g}" if method.startswith("clipped") else "")


def _config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["config"]
    return config
