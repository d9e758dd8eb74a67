"""Run five methods on mean |Ax - y|^1.75 with heavy-tailed features and labels.

The setting of Eduard Gorbunov, Marina Danilova, Innokentiy Shibaev, Pavel Dvurechensky, Alexander Gasnikov, Near-Optimal High
Probability Complexity Bounds for Non-Smooth Stochastic Optimization with Heavy-Tailed Noise, 2021, https://arxiv.org/abs/2106.05958.
The learning rate of each method is the one with the lowest final loss in a grid of the same size, with a seed that is used
only for this. Batches, start and data of a seed are the same for all methods.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from torch_clipped import ClippedSGD, ClippedSSTM, ClippingWarning, Restarter

from ..common.command import TUNING_SEED
from ..common.journal import Journal, Result
from ..common.regression import Data, make_data
from .table import ORDER, Expectation

HALF_DECADES = (-2, -1, 0, 1, 2)  # a grid is its middle times 10 ** (half / 2)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes; ``power`` is the p of the loss."""

    samples: int = 10_000
    features: int = 200
    power: float = 1.75
    batch: int = 20
    epochs: int = 8
    momentum: float = 0.9
    clipping_level: float = 1.0  # about the median norm of a batch's gradient at the start
    sstm_clipping_level: float = 0.1  # bounds the change of z in a step to a hundredth of the distance from the start
    first_restart: int = 50
    seeds: int = 60
    seed: int = 0

    def steps(self) -> int:
        """Return the number of steps of a training."""
        return self.epochs * -(-self.samples // self.batch)


@dataclass(frozen=True)
class Method:
    """Contender: a function that makes its optimizer from a learning rate, and the middle of its grid."""

    name: str
    make: Callable[[Config, Tensor, float], Optimizer]
    middle: float
    restarts: bool = False

    def grid(self) -> list[float]:
        """Return the learning rates of the grid."""
        return [float(f"{self.middle * 10 ** (half / 2):.3g}") for half in HALF_DECADES]


def _clipped_sgd(config: Config, x: Tensor, lr: float) -> Optimizer:
    return ClippedSGD([x], lr=lr, momentum=config.momentum, clipping_level=config.clipping_level)


METHODS = [
    Method("SGD", lambda config, x, lr: SGD([x], lr=lr, momentum=config.momentum), 3.16e-5),
    Method("clipped SGD", _clipped_sgd, 1e-2),
    Method("R-clipped SGD", _clipped_sgd, 1e-2, restarts=True),
    Method("Adam", lambda config, x, lr: Adam([x], lr=lr), 1e-2),
    Method(
        "clipped SSTM",
        lambda config, x, lr: ClippedSSTM([x], lr=lr, L=1.0, clipping_level=config.sstm_clipping_level),
        1e-2,
    ),
]
EXPECTED = [  # for the final loss divided by that of SGD with the same seed: the paper shows in pictures that it is lower
    Expectation("regression", f"{name} : SGD", "final loss", 0.0, 1.0, ORDER)
    for name in ("clipped SGD", "R-clipped SGD", "clipped SSTM")
]


def loss(data: Data, x: Tensor, power: float) -> float:
    """Return the mean of |Ax - y|^p over all samples."""
    return float((data.features @ x - data.labels).abs().pow(power).mean())


def gradient(features: Tensor, labels: Tensor, x: Tensor, power: float) -> Tensor:
    """Return the gradient of the mean of |Ax - y|^p over a batch."""
    residuals = features @ x - labels
    return (residuals.sign() * residuals.abs().pow(power - 1)) @ features * (power / len(labels))


def train(config: Config, method: Method, lr: float, data: Data, seed: int) -> list[float]:
    """Train; return the loss of all samples before training and after each epoch, inf once it is not finite."""
    parameter = nn.Parameter(data.start.clone())
    x, optimizer = parameter.detach(), method.make(config, parameter, lr)
    restarter = Restarter(optimizer, first_restart_steps_cnt=config.first_restart) if method.restarts else None
    generator = torch.Generator().manual_seed(seed)
    losses = [loss(data, x, config.power)]
    for _ in range(config.epochs):
        order = torch.randperm(config.samples, generator=generator)
        features, labels = data.features[order], data.labels[order]
        for some, wanted in zip(features.split(config.batch), labels.split(config.batch), strict=True):
            parameter.grad = gradient(some, wanted, x, config.power)
            optimizer.step()
            if restarter is not None:
                restarter.step()
        losses.append(_loss_of_answer(config, optimizer, data, x))
        if not math.isfinite(losses[-1]):
            return losses[:-1] + [math.inf] * (config.epochs + 2 - len(losses))
    return losses


def _loss_of_answer(config: Config, optimizer: Optimizer, data: Data, x: Tensor) -> float:
    if not isinstance(optimizer, ClippedSSTM):
        return loss(data, x, config.power)
    optimizer.eval()
    value = loss(data, x, config.power)
    optimizer.train()
    return value


def run(config: Config, journal: Journal) -> None:
    """Train every method with each learning rate of its grid, then each seed with the best of them."""

    def trained(method: Method, lr: float, seed: int) -> float:
        def new() -> Result:
            losses = train(config, method, lr, _data(config.samples, config.features, seed), seed)
            return {"problem": "regression", "method": method.name, "lr": lr, "seed": seed, "losses": losses}

        return float(journal.done(f"regression, {method.name}, lr {lr:g}, seed {seed}", config.steps(), new)["losses"][-1])

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ClippingWarning
        )  # about the ends of a grid, which may clip every gradient to almost nothing
        final = {method: {lr: trained(method, lr, TUNING_SEED) for lr in method.grid()} for method in METHODS}
        for seed in range(config.seed, config.seed + config.seeds):
            for method, losses in final.items():
                trained(method, min(losses, key=losses.__getitem__), seed)


@lru_cache(1)
def _data(samples: int, features: int, seed: int) -> Data:
    return make_data(samples, features, seed)


def grids_and_curves(trainings: Sequence[Result]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the grids, a row for each method and learning rate, and the curves, a row for each method, seed and epoch."""
    chosen = {training["method"]: training["lr"] for training in trainings if training["seed"] != TUNING_SEED}
    grids, curves = [], []
    for training in trainings:
        method, lr, losses = training["method"], training["lr"], training["losses"]
        if training["seed"] == TUNING_SEED:
            grids.append({"method": method, "lr": lr, "loss": losses[-1], "chosen": lr == chosen[method]})
        else:
            same = {"method": method, "lr": lr, "seed": training["seed"]}
            curves += [{**same, "epoch": epoch, "loss": loss} for epoch, loss in enumerate(losses)]
    return grids, curves


def expected(config: Config, curves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the final losses divided by those of SGD, beside the expected ratios."""
    final = {(row["method"], row["seed"]): row["loss"] for row in curves if row["epoch"] == config.epochs}
    seeds = sorted({seed for _, seed in final})
    return [
        expectation.against([final[expectation.method.removesuffix(" : SGD"), seed] / final["SGD", seed] for seed in seeds])
        for expectation in EXPECTED
    ]


def summarize(config: Config, grids: list[dict[str, Any]], curves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each method: its learning rate, whether this is an end of the grid, and its final losses."""
    rows = []
    for method in dict.fromkeys(row["method"] for row in curves):
        grid = [row["lr"] for row in grids if row["method"] == method]
        losses = [row["loss"] for row in curves if row["method"] == method and row["epoch"] == config.epochs]
        lr = next(row["lr"] for row in curves if row["method"] == method)
        low, median, high = min(losses), float(np.median(losses)), max(losses)
        rows.append(
            {"method": method, "grid": grid, "lr": lr, "at_end_of_grid": lr in (grid[0], grid[-1])}
            | {"final_loss": median, "lowest": low, "highest": high}
        )
    return rows


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a row of :func:`summarize` as text."""
    losses = f"{row['final_loss']:.4g} ({row['lowest']:.4g}, {row['highest']:.4g})"
    return row["method"], f"{row['lr']:g}", losses, "lr is an end of its grid" if row["at_end_of_grid"] else ""
