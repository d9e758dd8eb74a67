"""Draw the pictures of ``toy`` from its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..common.files import read_csv
from ..common.style import BLACK, BLUE, GREEN, SKY, VERMILION

# The line styles differ too, for prints without colours
STYLES: dict[str, dict[str, Any]] = {
    "SGD": {"color": VERMILION, "linestyle": "--"},
    "clipped SGD": {"color": BLUE, "linestyle": "-"},
    "R-clipped SGD": {"color": SKY, "linestyle": (0, (5, 1))},
    "Adam": {"color": BLACK, "linestyle": ":"},
    "clipped SSTM": {"color": GREEN, "linestyle": "-."},
    "AdaGrad": {"color": VERMILION, "linestyle": "--"},
    "clipped AdaGrad": {"color": BLUE, "linestyle": "-"},
}
Rows = Sequence[dict[str, str]]
RESTART_COEFFICIENT = 1.25  # of torch_clipped.Restarter


def plot_quadratic(curves: Path, config: Path, picture: Path) -> None:
    """Draw a panel for each noise: the largest f in each window of steps, median and band over the runs."""
    rows, settings = read_csv(curves), _config(config)
    noises = list(dict.fromkeys(row["noise"] for row in rows))
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    window = int(rows[0]["step"])
    runs = settings["parts"] * settings["repeats"]
    figure.suptitle(
        f"f = ||x||² / 2, n = {settings['dimension']}, lr {settings['lr']:g}: the largest f in every {window} steps\n"
        f"line: median of {runs} runs; dark band: 10 % to 90 %; light band: lowest to highest"
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
    """Draw the median and the 90 % quantile of f over the repeats."""
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
    """Draw the loss of all samples after each epoch, median and band over the seeds; restarts are marked."""
    raw, settings = read_csv(curves), _config(config)
    rates = {row["method"]: float(row["lr"]) for row in raw}
    steps = settings["samples"] // settings["batch"]
    first = settings["first_restart"]
    words = {"R-clipped SGD": f" (restarts from the mean of the iterates,\nfirst after {first} steps, at the ticks below)"}
    figure, axes = _figure_of_epochs(raw, settings, lambda method: f"{method}, lr {rates[method]:g}{words.get(method, '')}")
    window, step = first, first
    while step <= steps * settings["epochs"]:
        axes.axvline(step / steps, ymax=0.03, color=STYLES["R-clipped SGD"]["color"])
        window = int(window * RESTART_COEFFICIENT)
        step += window
    axes.set(xlabel=f"epoch ({steps} steps)", ylabel="mean |Ax - y|^1.75")
    axes.set_title(
        f"Heavy-tailed regression: {settings['samples']} samples, {settings['features']} features, batch {settings['batch']}\n"
        f"line: median of {settings['seeds']} seeds; band: lowest to highest"
    )
    axes.legend(loc="best", fontsize="small")
    figure.savefig(picture, dpi=150)


def plot_published(curves: Path, config: Path, picture: Path) -> None:
    """Draw the test loss after each epoch, median and band over the seeds."""
    settings = _config(config)
    words = {one["method"]: one["settings"] for one in json.loads(config.read_text(encoding="utf-8"))["methods"]}
    figure, axes = _figure_of_epochs(read_csv(curves), settings, lambda method: f"{method}: {words[method]}")
    axes.set(xlabel="epoch", ylabel="mean |Ax - y|^1.75 on test data without noise")
    axes.set_title(
        f"Heavy-tailed regression as published: {settings['samples'] // 2} samples, {settings['features']} features\n"
        f"line: median of {settings['seeds']} draws of the data; band: lowest to highest"
    )
    axes.legend(loc="best", fontsize="small")
    figure.savefig(picture, dpi=150)


def _figure_of_epochs(raw: Rows, settings: dict[str, Any], label: Callable[[str], str]) -> tuple[Figure, Axes]:
    losses: dict[tuple[str, str], list[float]] = {}
    for row in raw:
        losses.setdefault((row["method"], row["epoch"]), []).append(float(row["loss"]))
    rows = []
    for (method, epoch), values in losses.items():
        low, median, high = map(str, np.quantile(values, [0, 0.5, 1], method="nearest"))
        rows.append({"method": method, "step": epoch, "low": low, "median": median, "high": high})
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    _bands(axes, rows, [("low", "high", 0.15)], "median", label)
    axes.set(yscale="log")
    axes.grid(alpha=0.3)
    return figure, axes


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
