"""Run the regression of ``regression`` as its authors did: with their split, batches and settings, without a search.

Half of the 10,000 samples are for training, with noise in the labels; the other half is for tests, without noise. Each method has
the batch size and the settings of the authors, from synthetic.ipynb in the code of Gorbunov et al., 2021,
https://arxiv.org/abs/2106.05958, at https://github.com/ClippedStochasticMethods/clipped-SSTM. They used three draws of the data.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from torch_clipped import ClippedSGD, ClippedSSTM, ClippingWarning

from ..common.journal import Journal, Result
from ..common.regression import make_data
from .regression import gradient
from .table import ORDER, Expectation


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes, and the number of draws of the data; ``power`` is the p of the loss."""

    samples: int = 10_000
    features: int = 200
    power: float = 1.75
    epochs: int = 10
    seeds: int = 60
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """Optimizer with its batch size."""

    name: str
    batch: int
    make: Callable[[Tensor], Optimizer]
    words: str


METHODS = [
    Method("SGD", 200, lambda x: SGD([x], lr=1e-4, momentum=0.99), "batch 200, lr 0.0001, momentum 0.99"),
    Method("Adam", 10, lambda x: Adam([x], lr=1e-3, betas=(0.9, 0.9)), "batch 10, lr 0.001, betas 0.9 and 0.9"),
    Method(
        "clipped SGD",
        5,
        lambda x: ClippedSGD([x], lr=1e-2, momentum=0.8, clipping_type="coord_wise", clipping_level=0.01),
        "batch 5, lr 0.01, momentum 0.8, entries at 0.01",
    ),
    Method(
        "clipped SSTM",
        5,
        lambda x: ClippedSSTM([x], lr=1e-3, L=1.0, clipping_level=0.01),
        "batch 5, lr 0.001, L 1, norm at 0.01",
    ),
]
EXPECTED = [  # for the final test loss divided by that of a method without clipping, with the same seed
    Expectation("as published", f"{name} : {plain}", "final test loss", 0.0, 1.0, ORDER)
    for name in ("clipped SGD", "clipped SSTM")
    for plain in ("SGD", "Adam")
]


def train(config: Config, seed: int) -> list[Result]:
    """Train all methods on one draw of the data; return test losses before training and after each epoch."""
    data, half = make_data(config.samples, config.features, seed), config.samples // 2
    features, labels = data.features[:half], data.labels[:half]
    test, right = data.features[half:], data.features[half:] @ data.truth
    results = []
    for method in METHODS:
        parameter = nn.Parameter(data.start.clone())
        x, optimizer = parameter.detach(), method.make(parameter)
        generator = torch.Generator().manual_seed(seed)
        losses = [_loss(test, right, x, config.power)]
        for _ in range(config.epochs):
            for some in torch.randperm(half, generator=generator).split(method.batch):
                parameter.grad = gradient(features[some], labels[some], x, config.power)
                optimizer.step()
            losses.append(_of_answer(optimizer, lambda x=x: _loss(test, right, x, config.power)))  # type: ignore[misc]
        results.append({"problem": "published", "method": method.name, "seed": seed, "losses": losses})
    return results


def _loss(features: Tensor, labels: Tensor, x: Tensor, power: float) -> float:
    return float((features @ x - labels).abs().pow(power).mean())


def _of_answer(optimizer: Optimizer, measure: Callable[[], float]) -> float:
    if not isinstance(optimizer, ClippedSSTM):
        return measure()
    optimizer.eval()
    value = measure()
    optimizer.train()
    return value


def steps(config: Config) -> int:
    """Return the number of steps of all methods on one draw of the data."""
    return sum(config.epochs * -(-(config.samples // 2) // method.batch) for method in METHODS)


def run(config: Config, journal: Journal) -> None:
    """Train on each draw of the data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClippingWarning)  # about almost every gradient being above the published levels
        for seed in range(config.seed, config.seed + config.seeds):

            def new(seed: int = seed) -> Result:
                return {"problem": "published", "seed": seed, "methods": train(config, seed)}

            journal.done(f"published, seed {seed}", steps(config), new)


def curves(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return a row for each method, seed and epoch."""
    return [
        {"method": one["method"], "seed": one["seed"], "epoch": epoch, "loss": loss}
        for result in results
        for one in result["methods"]
        for epoch, loss in enumerate(one["losses"])
    ]


def expected(config: Config, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the measured ratios of the final test losses beside the expected ones."""
    final = {(row["method"], row["seed"]): row["loss"] for row in rows if row["epoch"] == config.epochs}
    seeds = sorted({seed for _, seed in final})
    found = []
    for expectation in EXPECTED:
        clipped, _, plain = expectation.method.partition(" : ")
        ratios = [final[clipped, seed] / final[plain, seed] for seed in seeds]
        found.append(expectation.against([ratio if math.isfinite(ratio) else np.inf for ratio in ratios]))
    return found


def summarize(config: Config, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the settings of each method and its final test losses."""
    found = []
    for method in METHODS:
        final = [row["loss"] for row in rows if (row["method"], row["epoch"]) == (method.name, config.epochs)]
        low, median, high = np.quantile(final, [0, 0.5, 1], method="nearest")
        losses = {"final_loss": float(median), "lowest": float(low), "highest": float(high)}
        found.append({"method": method.name, "settings": method.words, **losses})
    return found
