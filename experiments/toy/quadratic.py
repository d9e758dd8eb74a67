"""Run SGD and clipped SGD on ||x||^2 / 2 under noise of unit variance, from light to heavy tails.

The setting of Eduard Gorbunov, Marina Danilova, Alexander Gasnikov, Stochastic Optimization with Heavy-Tailed Noise via
Accelerated Gradient Clipping, 2020, https://arxiv.org/abs/2005.10785. All repeats under all noises are rows of one matrix, and
the clipping type clips every row separately.
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

from .noise import NOISES, Noise
from .table import THEORY, Expectation

NEAR = 0.1  # of a mean by theory, to both sides
DRAWS = 100_000  # of the noise, for its mean and variance after clipping
CHUNK = 500  # steps whose noise is drawn at once, and the window of the curves
ROW_WISE = "row_wise_norm"
METHODS = ("SGD", "clipped SGD")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the paper."""

    dimension: int = 100
    start: float = 0.01  # x_i = start * i
    lr: float = 0.001
    steps: int = 100_000
    measured_steps: int = 80_000  # the last ones
    clipping_level: float = 100.0  # of the norm of the whole gradient
    repeats: int = 10  # of a part, which has one seed
    parts: int = 6
    seed: int = 0


EXPECTED = [  # of f over the measured steps of a run; "about v" becomes v - 10 % to v + 10 %
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
    """Take the steps of one method, whose runs are rows of a matrix."""

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
        """Step through noise (steps, rows, n), and write f (steps, rows) into ``values``.

        Return for each row the number of its gradients above the level.
        """
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
    """Return the name of the clipping type whose block is a row of a matrix; the first call registers it."""
    if ROW_WISE not in CLIPPING_TYPES:
        register_clipping(ROW_WISE, Clipping("unit", Constant(100.0)))
    return ROW_WISE


def run(config: Config, part: int, progress: tqdm[Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the runs of a part, one row each, and the largest f of each run in every window."""
    generators = [np.random.default_rng([config.seed + part, number]) for number in range(len(NOISES))]
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
    runs, peaks = [], []
    for number, noise_kind in enumerate(NOISES):
        own = slice(number * config.repeats, (number + 1) * config.repeats)
        for method in METHODS:
            f, where = values[method][:, own], {"noise": noise_kind.name, "method": method}
            for row in _summaries(f[-config.measured_steps :], over[method][own]):
                runs.append(where | {"run": part * config.repeats + len(runs) % config.repeats} | row)
            for start in range(0, len(f), CHUNK):
                step = min(start + CHUNK, len(f))
                peaks.append(where | {"step": step, "peaks": f[start : start + CHUNK].max(axis=0).tolist()})
    return runs, peaks


def expected(config: Config, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the measured numbers of the runs beside the expected ones."""

    def of(noise: str, method: str, quantity: str) -> NDArray[np.float64]:
        return np.array([run[quantity] for run in runs if (run["noise"], run["method"]) == (noise, method)])

    rows = []
    for noise in NOISES:
        rows += [e.against(of(noise.name, e.method, e.quantity)) for e in EXPECTED if e.setting == noise.name]
        for method in METHODS:
            mean = mean_by_theory(config, noise, clipped=method != "SGD")
            expectation = Expectation(noise.name, method, "mean", (1 - NEAR) * mean, (1 + NEAR) * mean, THEORY)
            rows.append(expectation.against(of(noise.name, method, "mean")))
    return rows


def mean_by_theory(config: Config, noise: Noise, clipped: bool) -> float:
    """Return the mean of f in the long run.

    Near the minimum the gradient is x plus noise of variance V = n, and a step multiplies x by 1 - lr. So in the long run

        E f = lr V / (2 - lr) / 2

    Clipping multiplies the noise by c = min(1, level / ||noise||). The clipped noise has variance V_c and mean b, which shifts x.
    A small x is multiplied by m = E (c - [c < 1] c / n) on average, because clipping removes its part along the noise:

        E f = (lr V_c / (2 - lr) / m + ||b||^2 / m^2) / 2

    m, b and V_c are estimated from 100,000 draws.
    """
    share = config.lr / (2 - config.lr)
    if not clipped:
        return share * config.dimension / 2
    drawn = noise.draw(np.random.default_rng([config.seed, len(NOISES)]), (DRAWS, config.dimension))
    factors = np.minimum(1, config.clipping_level / np.linalg.norm(drawn, axis=1))
    drawn *= factors[:, None]
    mean, kept = drawn.mean(axis=0), float((factors * (1 - (factors < 1) / config.dimension)).mean())
    variance = float(np.square(drawn - mean).sum(axis=1).mean())
    # The squared mean of the draws includes their own variance.
    bias = max(0.0, float(mean @ mean) - variance / DRAWS)
    return (share * variance / kept + bias / kept**2) / 2


def curves(peaks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each noise, method and window, the lowest, 10 %, median, 90 % and highest of the largest f of all runs."""
    by_place: dict[tuple[str, str, int], list[float]] = {}
    for row in peaks:
        by_place.setdefault((row["noise"], row["method"], row["step"]), []).extend(row["peaks"])
    names = ("lowest", "p10", "median", "p90", "highest")
    return [
        {"noise": noise, "method": method, "step": step}
        | dict(zip(names, map(float, np.quantile(values, [0, 0.1, 0.5, 0.9, 1])), strict=True))
        for (noise, method, step), values in by_place.items()
    ]


def _summaries(f: NDArray[np.float64], over: NDArray[np.int64]) -> list[dict[str, float]]:
    """Return a row for each run."""
    columns = dict(zip(("median", "p99", "max"), np.quantile(f, [0.5, 0.99, 1], axis=0), strict=True))
    columns |= {"mean": f.mean(axis=0), "over_level": over}
    return [{name: column[i].item() for name, column in columns.items()} for i in range(f.shape[1])]
