"""A level from recorded norms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_clipped import ClippedSGD, suggest_level

NORMS = np.random.default_rng(0).pareto(1.5, size=400) + 1


def clipped_at(level, norms):
    """How many gradients of these norms an optimizer clips."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = ClippedSGD([weight], clipping_type="norm", clipping_level=level)
    for norm in norms:
        weight.grad = torch.tensor([norm], dtype=torch.float64)
        optimizer.step()
    assert optimizer.clipping_stats()["steps"] == len(norms)
    return optimizer.clipping_stats()["clipped_steps"]


@pytest.mark.parametrize(("clip_rate", "clipped"), [(0, 0), (0.1, 40), (0.29, 116), (0.5, 200), (0.9, 360), (0.9999, 399)])
def test_clipping_these_norms_at_the_level_clips_that_share(clip_rate, clipped):
    assert clipped_at(suggest_level(NORMS, clip_rate), NORMS) == clipped


def test_rate_just_below_one_leaves_the_shortest():
    assert suggest_level([3.0, 1.0, 2.0], math.nextafter(1.0, 0.0)) == 1.0


def test_default_clips_one_step_in_ten():
    assert clipped_at(suggest_level(NORMS), NORMS) == 40


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60), st.floats(0, 0.999))
def test_level_is_the_smallest_norm_that_no_more_than_that_share_exceeds(norms, clip_rate):
    level = suggest_level(norms, clip_rate)
    allowed = clip_rate * len(norms) + 1e-6
    assert level in norms
    assert sum(norm > level for norm in norms) <= allowed
    shorter = [norm for norm in norms if norm < level]
    assert all(sum(norm > candidate for norm in norms) > allowed - 1e-5 for candidate in shorter)


@pytest.mark.parametrize(
    "kind",
    [list, tuple, np.array, torch.tensor, lambda n: torch.tensor(n, requires_grad=True), lambda n: [torch.tensor(x) for x in n]],
)
def test_lists_arrays_and_tensors_give_the_same_plain_number(kind):
    level = suggest_level(kind([3.0, 1.0, 2.0, 5.0]), 0.25)
    assert type(level) is float
    assert level == 3.0


def test_whole_numbers_are_norms_too():
    assert suggest_level(range(1, 11)) == 9.0


def test_norms_of_an_optimizer_and_back_into_it():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = ClippedSGD([weight], clipping_type="norm", clipping_level=math.inf)
    for norm in range(1, 101):
        weight.grad = torch.tensor([float(norm)])
        optimizer.step()
    assert optimizer.clipping_stats()["clipped_steps"] == 0
    optimizer.param_groups[0]["clipping_level"] = suggest_level(optimizer.grad_norms())
    weight.grad = torch.tensor([100.0])
    optimizer.step()
    assert weight.grad.item() == pytest.approx(90.0)


@pytest.mark.parametrize(
    ("norms", "words"),
    [
        ([], r"norms .*shape \(0,\)"),
        (3.0, r"norms .*shape \(\)"),
        ([[1.0, 2.0]], r"norms .*shape \(1, 2\)"),
        ([1.0, math.nan], "norms .*finite.* got nan at 1"),
        ([math.inf, 1.0], "norms .*finite.* got inf at 0"),
        ([1.0, 2.0, -3.0], "norms .*positive.* got -3.0 at 2"),
        ([1.0, 0.0], "norms .*positive.* got 0.0 at 1"),
        ([10**400], "norms must be a list.* of numbers"),
        ("1.0", "norms must be a list.* got '1.0'"),
        (None, "norms must be a list.* got None"),
        ([1.0, "2"], "norms must be a list.*"),
        (np.ma.masked_greater([1.0, 2.0, 9.0], 5.0), "norms must not be masked, got 1 masked of 3 samples: pass norms.compress"),
    ],
)
def test_bad_norms_are_named(norms, words):
    with pytest.raises(ValueError, match=words):
        suggest_level(norms)


def test_masks_that_hide_nothing_and_methods_named_mask_are_no_masks():
    class Series(np.ndarray):
        def mask(self):
            raise NotImplementedError

    assert suggest_level(np.ma.masked_greater([1.0, 2.0, 9.0], 10.0), 0.4) == 2.0
    assert suggest_level(np.array([1.0, 2.0, 9.0]).view(Series), 0.4) == 2.0


def test_default_device_plays_no_part():
    with torch.device("meta"):
        assert suggest_level([1.0, 2.0, 9.0, 3.0, 4.0], clip_rate=0.2) == 4.0


@pytest.mark.parametrize("clip_rate", [1, 1.0, -0.1, 90, math.nan, math.inf, "0.1", None, True])
def test_bad_rates_are_named(clip_rate):
    with pytest.raises(ValueError, match=r"clip_rate must be (a number )?in"):
        suggest_level([1.0, 2.0], clip_rate)
