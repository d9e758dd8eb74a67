"""Run AdaGrad on x^2 / 2 under noise without a variance, with and without clipping.

The setting of Savelii Chezhegov, Yaroslav Klyukin, Andrei Semenov, Aleksandr Beznosikov, Alexander Gasnikov, Samuel Horvath,
Martin Takac, Eduard Gorbunov, Gradient Clipping Improves AdaGrad when the Noise Is Heavy-Tailed, 2024, https://arxiv.org/abs/2406.04443.
Every repeat is an entry of one vector: AdaGrad and clipping by coordinates treat each entry on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import Adagrad, Optimizer

from torch_clipped import Clipped

from .noise import infinite_variance
from .table import ORDER, Expectation

METHODS = ("AdaGrad", "clipped AdaGrad")
WINDOW = 100  # steps between the points of the curves


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the paper."""

    start: float = 2.0
    b0: float = 3.0  # the square root of the accumulator's start
    lr: float = 0.5
    steps: int = 10_000
    repeats: int = 100
    clipping_level: float = 0.5
    seed: int = 0


class ClippedAdagrad(Clipped, Adagrad):
    """:class:`torch.optim.Adagrad` with gradient clipping."""


def run(config: Config) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the final f of each repeat, and the quantiles of f along the way, one row a method."""
    f = {method: descend(config, clipped=method != "AdaGrad") for method in METHODS}
    final = [{"repeat": i} | {method: float(f[method][-1, i]) for method in METHODS} for i in range(config.repeats)]
    curves = [
        {"method": method, "step": step, **_quantiles(f[method][step - 1])}
        for method in METHODS
        for step in range(WINDOW, config.steps + 1, WINDOW)
    ]
    return final, curves


def descend(config: Config, clipped: bool) -> NDArray[np.float64]:
    """Return f after each step, of shape (steps, repeats); the noise is the same with and without clipping."""
    generator = np.random.default_rng(config.seed)
    x = torch.full((config.repeats,), config.start, dtype=torch.float64)
    arguments: dict[str, Any] = {"lr": config.lr, "initial_accumulator_value": config.b0**2}
    optimizer: Optimizer = Adagrad([x], **arguments)
    if clipped:
        optimizer = ClippedAdagrad([x], **arguments, clipping_type="coord_wise", clipping_level=config.clipping_level)
    f = np.empty((config.steps, config.repeats))
    for value, noise in zip(f, torch.from_numpy(infinite_variance(generator, f.shape)), strict=True):
        x.grad = x + noise
        optimizer.step()
        value[:] = (x.square() / 2).numpy()
    return f


def expected(final: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the ratio of f with and without clipping, repeat by repeat; the source shows in pictures that it is below 1."""
    plain, clipped = METHODS
    expectation = Expectation("x^2 / 2", f"{clipped} : {plain}", "final f", 0.0, 1.0, ORDER)
    return [expectation.against([row[clipped] / row[plain] for row in final])]


def _quantiles(f: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(("p10", "median", "p90", "highest"), map(float, np.quantile(f, [0.1, 0.5, 0.9, 1])), strict=True))
