"""SGD and clipped SGD on ||x||^2 / 2 under noise of unit variance, from light to heavy tails.

The setting of Eduard Gorbunov, Marina Danilova, Alexander Gasnikov, Stochastic Optimization with Heavy-Tailed Noise via
Accelerated Gradient Clipping, 2020, https://arxiv.org/abs/2005.10785. All repeats under all noises are rows of one matrix, and
the clipping type clips every row on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import SGD, Optimizer
from tqdm import tqdm

from torch_clipped import ClippedSGD, Clipping, Constant, register_clipping
from torch_clipped.clipping import CLIPPING_TYPES

from .noise import NOISES
from .table import Expectation

CHUNK = 500  # steps whose noise is drawn at a time, and the window of the curves
ROW_WISE = "row_wise_norm"
METHODS = ("SGD", "clipped SGD")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The setting of the paper."""

    dimension: int = 100
    start: float = 0.01  # x_i = start * i
    lr: float = 0.001
    steps: int = 100_000
    measured_steps: int = 80_000  # the last ones
    clipping_level: float = 100.0  # of the norm of the whole gradient
    repeats: int = 10
    seed: int = 0


EXPECTED = [  # of f over the measured steps, in the median over the repeats; "about v" stands as v - 10 % to v + 10 %
    Expectation("normal", "SGD", "p99", 0.029, 0.035),
    Expectation("normal", "SGD", "max", 0.031, 0.037),
    Expectation("exponential", "SGD", "p99", 0.030, 0.036),
    Expectation("exponential", "SGD", "max", 0.034, 0.042),
    Expectation("Weibull", "SGD", "p99", 0.09, 0.10),
    Expectation("Weibull", "SGD", "max", 0.19, 0.26),
    Expectation("Weibull", "clipped SGD", "p99", 0.029, 0.033),
    Expectation("Weibull", "clipped SGD", "max", 0.037, 0.046),
    Expectation("Burr XII", "SGD", "p99", 0.04, 0.07),
    Expectation("Burr XII", "SGD", "max", 0.06, 0.16),
    Expectation("Burr XII", "clipped SGD", "p99", 0.026, 0.030),
    Expectation("Burr XII", "clipped SGD", "max", 0.031, 0.037),
]


class Descent:
    """One method's runs, as rows of a matrix."""

    def __init__(self, config: Config, rows: int, clipped: bool) -> None:
        places = config.start * torch.arange(1, config.dimension + 1, dtype=torch.float64)
        self.weights = places.repeat(rows, 1)
        self.weights.grad = torch.zeros_like(self.weights)
        self.level = config.clipping_level
        self.optimizer: Optimizer = SGD([self.weights], lr=config.lr)
        if clipped:
            arguments: dict[str, Any] = {"clipping_type": row_wise(), "clipping_level": self.level}
            self.optimizer = ClippedSGD([self.weights], lr=config.lr, **arguments)

    def through(self, noise: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Step through noise (steps, rows, n), write f (steps, rows) into ``values``, count gradients over the level."""
        weights, grad = self.weights.numpy(), self.weights.grad
        assert grad is not None
        gradient, over = grad.numpy(), np.zeros(len(weights), dtype=np.int64)
        for some, value in zip(noise, values, strict=True):
            np.add(weights, some, out=gradient)
            over += np.einsum("ij,ij->i", gradient, gradient) > self.level**2
            self.optimizer.step()
            np.einsum("ij,ij->i", weights, weights, out=value)
        values /= 2
        return over


def row_wise() -> str:
    """The clipping type whose block is a row of a matrix; it is registered by the first call."""
    if ROW_WISE not in CLIPPING_TYPES:
        register_clipping(ROW_WISE, Clipping("unit", Constant(100.0)))
    return ROW_WISE


def run(config: Config, progress: tqdm[Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a row for each run, with quantiles of f over the measured steps, and the curves: the largest f in each window."""
    generators = [np.random.default_rng([config.seed, number]) for number in range(len(NOISES))]
    rows = len(NOISES) * config.repeats
    values = {method: np.empty((config.steps, rows)) for method in METHODS}
    descents = {method: Descent(config, rows, clipped=method != "SGD") for method in METHODS}
    over = {method: np.zeros(rows, dtype=np.int64) for method in METHODS}
    for start in range(0, config.steps, CHUNK):
        length = min(CHUNK, config.steps - start)
        shape = (length, config.repeats, config.dimension)
        noise = np.concatenate([n.draw(g, shape) for n, g in zip(NOISES, generators, strict=True)], axis=1)
        for method, descent in descents.items():
            over[method] += descent.through(noise, values[method][start : start + length])
        progress.update(length)
    runs, curves = [], []
    for number, noise_kind in enumerate(NOISES):
        own = slice(number * config.repeats, (number + 1) * config.repeats)
        for method in METHODS:
            f = values[method][:, own]
            runs += _quantiles(noise_kind.name, method, f[-config.measured_steps :], over[method][own])
            curves += _curve(noise_kind.name, method, f)
    return runs, curves


def expected(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the runs gave, against what was expected."""

    def of(noise: str, method: str, quantity: str) -> NDArray[np.float64]:
        return np.array([run[quantity] for run in runs if (run["noise"], run["method"]) == (noise, method)])

    rows = []
    for noise in dict.fromkeys(run["noise"] for run in runs):
        rows += [e.against(of(noise, e.method, e.quantity)) for e in EXPECTED if e.setting == noise]
        if noise in ("normal", "exponential"):
            rows.append(
                Expectation(noise, "clipped SGD", "steps over the level", 0, 0).against(of(noise, "clipped SGD", "over_level"))
            )
        ratio = of(noise, "clipped SGD", "median") / of(noise, "SGD", "median")
        rows.append(Expectation(noise, "clipped : SGD", "ratio of medians", 0.9, 1.1).against(ratio))
    return rows


def _quantiles(noise: str, method: str, f: NDArray[np.float64], over: NDArray[np.int64]) -> list[dict[str, Any]]:
    """One row a run."""
    columns = dict(zip(("median", "p99", "max"), np.quantile(f, [0.5, 0.99, 1], axis=0), strict=True))
    columns["over_level"] = over.tolist()
    return [
        {"noise": noise, "method": method, "repeat": i, **{name: column[i] for name, column in columns.items()}}
        for i in range(f.shape[1])
    ]


def _curve(noise: str, method: str, f: NDArray[np.float64]) -> list[dict[str, Any]]:
    """The largest f in each window of a run: over the runs its lowest, 10 %, median, 90 % and highest."""
    rows = []
    for start in range(0, len(f), CHUNK):
        peaks = f[start : start + CHUNK].max(axis=0)
        band = np.quantile(peaks, [0, 0.1, 0.5, 0.9, 1])
        names = ("lowest", "p10", "median", "p90", "highest")
        rows.append({"noise": noise, "method": method, "step": min(start + CHUNK, len(f)), **dict(zip(names, band, strict=True))})
    return rows
