"""Make a regression with heavy-tailed features and labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEVY_SCALE, LARGEST_FACTOR = 0.5, 1e4
LABEL_NOISE = 10.0  # label noise of a factor of LARGEST_FACTOR
DISTANCE = 10.0  # norm of the start; the true weights have norm 1


@dataclass(frozen=True)
class Data:
    """Features (samples, features), labels (samples,), the true weights and a start."""

    features: Tensor
    labels: Tensor
    truth: Tensor
    start: Tensor


def make_data(samples: int, features: int, seed: int) -> Data:
    """Return normal features times one heavy-tailed factor a sample, columns of unit variance, and heavy-tailed label noise."""
    generator = np.random.default_rng([seed, 0])
    factors = levy(generator, 2 * samples, LEVY_SCALE, LARGEST_FACTOR)
    factors -= factors.mean()
    rows = generator.standard_normal((samples, features)) * factors[:samples, None]
    rows /= rows.std(axis=0)
    truth, start = generator.standard_normal((2, features))
    truth /= np.linalg.norm(truth)
    start *= DISTANCE / np.linalg.norm(start)
    labels = rows @ truth + factors[samples:] * (LABEL_NOISE / LARGEST_FACTOR)
    return Data(*map(torch.from_numpy, (rows, labels, truth, start)))


def levy(generator: np.random.Generator, count: int, scale: float, largest: float) -> NDArray[np.float64]:
    """Return ``count`` numbers from a Levy distribution; numbers over ``largest`` are drawn again."""
    values = scale / np.square(generator.standard_normal(count))
    while (beyond := values > largest).any():
        values[beyond] = scale / np.square(generator.standard_normal(int(beyond.sum())))
    return values
