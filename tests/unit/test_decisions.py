import numpy as np
import pytest
import torch

from torch_clipped.decisions import Always, Randomly, uniform


def draws(seed, stream=0, count=20_000):
    return np.array([uniform(seed, stream, step) for step in range(count)])


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_draws_are_uniform(seed):
    counts = np.histogram(draws(seed), bins=20, range=(0, 1))[0]
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert 5 < chi_square < 45  # 19 degrees of freedom


def test_draws_are_not_autocorrelated():
    values = draws(0) - 0.5
    for lag in (1, 2, 3, 10, 64):
        assert abs((values[lag:] * values[:-lag]).mean() * 12) < 4 / np.sqrt(len(values))


@pytest.mark.parametrize("other", [(1, 0), (2**32, 0), (0, 1)])
def test_seeds_and_streams_are_unrelated(other):
    first, second = draws(0), draws(*other)
    for lag in range(3):
        assert abs(np.corrcoef(first[lag:], second[: len(second) - lag])[0, 1]) < 4 / np.sqrt(len(first))
    assert len(np.intersect1d(first, second)) < 50  # 24 are expected of 24 bits


@pytest.mark.parametrize("step", [0, 1, 1000, 2**31, 2**32 + 5, 2**40])
def test_tensor_steps_draw_what_int_steps_draw(step):
    assert float(uniform(7, 3, torch.tensor(step))) == uniform(7, 3, step)


def test_decisions_leave_short_blocks_alone():
    alpha = np.array([0.5, 1.0, 2.0])
    assert Always()(alpha, 0.5, lambda: 0.0).tolist() == [True, False, False]
    assert Randomly(1)(alpha, 0.5, lambda: 0.0).tolist() == [True, False, False]


def test_random_decision_compares_the_draw_with_the_published_probability():
    alpha = np.array([0.25, 0.25])
    for power, probability in ((1, 0.5**0.25), (2, 0.5**0.0625)):
        assert Randomly(power)(alpha, 0.5, lambda p=probability: p - 1e-9).all()
        assert not Randomly(power)(alpha, 0.5, lambda p=probability: p + 1e-9).any()
