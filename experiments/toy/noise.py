"""Noise of the toy problems: distributions from light to heavy tails, with exact means and standard deviations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
WEIBULL_SHAPE = 0.2
BURR_SHAPE = 2.3  # the d of a Burr XII distribution with c = 1: P(X > x) = (1 + x)^-d
HALF_TAIL = 1.5  # P(|X| > x) = (1 + x)^-1.5 for the density 3/4 (1 + |x|)^-2.5


@dataclass(frozen=True)
class Noise:
    """Distribution with mean and standard deviation of ``raw``; ``raw`` and ``draw`` take a generator and a shape."""

    name: str
    raw: Callable[[np.random.Generator, tuple[int, ...]], Array]
    mean: float
    std: float

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Return independent numbers with mean 0 and standard deviation 1."""
        values = self.raw(generator, shape)
        values -= self.mean
        values /= self.std
        return values


def _weibull(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    values = generator.standard_exponential(shape)
    return values * np.square(np.square(values))  # E^(1 / c) with c = 1/5; E^5 is faster this way


def _burr(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return np.asarray(np.expm1(generator.standard_exponential(shape) / BURR_SHAPE))


def _moments(first: float, second: float) -> tuple[float, float]:
    return first, math.sqrt(second - first**2)


NOISES = [
    Noise("normal", lambda generator, shape: generator.standard_normal(shape), 0.0, 1.0),
    Noise("exponential", lambda generator, shape: generator.standard_exponential(shape), 1.0, 1.0),
    Noise("Weibull", _weibull, *_moments(math.gamma(1 + 1 / WEIBULL_SHAPE), math.gamma(1 + 2 / WEIBULL_SHAPE))),
    Noise("Burr XII", _burr, *_moments(1 / (BURR_SHAPE - 1), 2 / ((BURR_SHAPE - 1) * (BURR_SHAPE - 2)))),
]


def infinite_variance(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return independent numbers of density 3/4 (1 + |x|)^-2.5: their mean is 0 and they have no variance."""
    moduli = np.expm1(generator.standard_exponential(shape) / HALF_TAIL)
    return np.asarray(np.where(generator.random(shape) < 0.5, -moduli, moduli))
