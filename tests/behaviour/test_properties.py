"""Properties of clipping that hold for every gradient."""

import math
from itertools import cycle

import numpy as np
import pytest
import torch
from support.assertions import equal
from support.cases import pairwise, state_of
from support.properties import GLOBAL, KERNELS, LEVEL_TYPES, OPTIMIZERS, scalars, step_scalars

from torch_clipped import ClippedSGD

CONSTANT = ["norm", "layer_wise", "coord_wise", "linear_rand_norm", "quadratic_rand_norm"]
RANDOM_POWERS = {"linear_rand_norm": 1, "quadratic_rand_norm": 2}

# What does not clip changes nothing.


HUGE_LEVELS = dict.fromkeys(CONSTANT, 1e30) | {"auto": 1, "linear_rand_auto": 1.0}


@pairwise(clipping_type=HUGE_LEVELS, name=OPTIMIZERS, flags=["chosen", *KERNELS])
def test_huge_threshold_changes_nothing_bit_for_bit(problem, clipping_type, name, flags):
    clipped_class, _, options = OPTIMIZERS[name]

    def run(flags, **arguments):
        params = problem.parameters()
        optimizer = clipped_class(params, **options, **flags, **arguments)
        for step in range(6):
            grads = problem.gradients(step)
            assert equal(problem.step(optimizer, grads), grads)
        return [*params, *state_of(optimizer)]

    wanted = run(KERNELS["fused" if flags == "chosen" else flags], clipping_type="none")
    assert equal(run(KERNELS.get(flags, {}), clipping_type=clipping_type, clipping_level=HUGE_LEVELS[clipping_type]), wanted)


@pairwise(ids=str, name=OPTIMIZERS, flags=["default", *KERNELS], dtype=[torch.float32, torch.float64, torch.bfloat16])
def test_type_none_is_torchs_optimizer_bit_for_bit(problem, name, flags, dtype):
    clipped_class, plain_class, options = OPTIMIZERS[name]

    def run(optimizer_class, **arguments):
        params = problem.parameters(dtype)
        optimizer = optimizer_class(params, **options, **KERNELS.get(flags, {}), **arguments)
        for step in range(6):
            grads = problem.gradients(step, dtype=dtype)
            if step == 3:
                grads[1] = None
            problem.step(optimizer, grads)
        problem.step(optimizer, [torch.full_like(g, math.inf) for g in problem.gradients(9, dtype=dtype)][:1] + [None] * 3)
        return [torch.nan_to_num(t, nan=0.125) for t in [*params, *state_of(optimizer)]]

    assert equal(run(clipped_class, clipping_type="none"), run(plain_class))


# What clips.


@pairwise(ids=str, clipping_type=LEVEL_TYPES, flags=KERNELS, dtype=[torch.float32, torch.float64])
def test_clipped_length_never_exceeds_its_threshold(problem, clipping_type, flags, dtype):
    optimizer = ClippedSGD(
        problem.parameters(dtype), momentum=0.9, clipping_type=clipping_type, clipping_window=9, **KERNELS[flags]
    )
    clipped_steps = 0
    for step in range(40):
        raw = problem.gradients(step, dtype=dtype)
        grads = problem.step(optimizer, raw)
        if equal(grads, raw) and "rand" in clipping_type:
            continue
        clipped_steps += not equal(grads, raw)
        threshold = optimizer.clipping_stats()["threshold"]
        if clipping_type == "layer_wise":
            assert threshold == pytest.approx(0.3)
            assert max(problem.length([g]) for g in grads) <= threshold * (1 + 1e-6)
        elif clipping_type == "coord_wise":
            assert max(g.abs().max().item() for g in grads) <= 0.1 * (1 + 1e-6)
        else:
            assert problem.length(grads) <= threshold * (1 + 1e-6)
    assert clipped_steps > 2
    assert optimizer.clipping_stats()["clipped_steps"] == clipped_steps


@pytest.mark.parametrize(("clipping_type", "flags"), [*zip(GLOBAL, cycle(KERNELS), strict=False)])
def test_scalar_measures_keep_the_direction_of_the_whole_gradient(problem, clipping_type, flags):
    optimizer = ClippedSGD(problem.parameters(), momentum=0.9, clipping_type=clipping_type, **KERNELS[flags])
    for step in range(25):
        raw = problem.gradients(step)
        ratios = torch.cat([(g / r).flatten() for g, r in zip(problem.step(optimizer, raw), raw, strict=True)])
        coefficient = optimizer.clipping_stats()["coefficient"]
        torch.testing.assert_close(ratios, torch.full_like(ratios, coefficient), rtol=1e-5, atol=0)
        assert 0 < coefficient <= 1
    assert optimizer.clipping_stats()["clipped_steps"] > 0


def test_layer_wise_keeps_the_direction_of_each_tensor(problem):
    optimizer = ClippedSGD(problem.parameters(), clipping_type="layer_wise")
    for step in range(10):
        raw = problem.gradients(step)
        for g, r in zip(problem.step(optimizer, raw), raw, strict=True):
            wanted = r * min(1.0, 0.3 / problem.length([r]))
            torch.testing.assert_close(g, wanted, rtol=1e-5, atol=0)


def test_coord_wise_clamps_each_entry(problem):
    optimizer = ClippedSGD(problem.parameters(), clipping_type="coord_wise", clipping_level=0.5)
    for step in range(10):
        raw = problem.gradients(step)
        assert equal(problem.step(optimizer, raw), [r.clamp(-0.5, 0.5) for r in raw])


@pytest.mark.parametrize("clipping_type", CONSTANT)
def test_clipping_twice_is_clipping_once(problem, clipping_type):
    optimizer = ClippedSGD(problem.parameters(), clipping_type=clipping_type, clipping_level=0.2)
    once = problem.gradients(3, 1e5)
    once = problem.step(optimizer, once)
    assert optimizer.clipping_stats()["clipped_steps"] == 1
    for g, wanted in zip(problem.step(optimizer, problem.copies(once)), once, strict=True):
        torch.testing.assert_close(g, wanted, rtol=1e-6, atol=0)


# Random decisions.


def decisions(clipping_type, alpha, beta, steps, seed=0):
    """Whether each of ``steps`` gradients of length 1 / alpha was clipped to the level 1."""
    optimizer = ClippedSGD(scalars(), lr=0.0, clipping_type=clipping_type, clipping_beta=beta, clipping_seed=seed)
    return np.array([step_scalars(optimizer, 1 / alpha)[0] < 1 + 1e-5 for _ in range(steps)])


@pairwise(clipping_type=RANDOM_POWERS, alpha=[0.1, 0.5, 0.9], beta=[0.3, 0.85])
def test_clip_rate_of_random_types_is_the_published_probability(clipping_type, alpha, beta):
    steps, power = 1200, RANDOM_POWERS[clipping_type]
    probability = beta**alpha**power
    rate = decisions(clipping_type, alpha, beta, steps).mean()
    assert abs(rate - probability) < 4 * math.sqrt(probability * (1 - probability) / steps)


@pytest.mark.parametrize("norm", [1e-3, 0.5, 1.0])
@pytest.mark.parametrize("clipping_type", RANDOM_POWERS)
def test_random_types_leave_short_gradients_alone(clipping_type, norm):
    optimizer = ClippedSGD(scalars(), clipping_type=clipping_type)
    assert {step_scalars(optimizer, norm)[0] for _ in range(50)} == {np.float32(norm).item()}
    assert optimizer.clipping_stats()["clip_rate"] == 0.0


@pytest.mark.parametrize("clipping_type", ["linear_rand_auto", "quadratic_rand_auto"])
def test_random_quantile_types_clip_to_the_quantile_or_not_at_all(clipping_type):
    optimizer = ClippedSGD(scalars(), clipping_type=clipping_type, clipping_window=7, clipping_level=0.5, clipping_beta=0.5)
    norms = np.random.default_rng(1).pareto(1.5, 200).astype(np.float32) + 1
    counts = {True: 0, False: 0}
    for i, norm in enumerate(norms):
        threshold = np.percentile(norms[max(0, i - 6) : i + 1].astype(float), 50)
        (clipped,) = step_scalars(optimizer, norm)
        if norm > threshold * (1 + 1e-5):
            counts[clipped < norm] += 1
            assert clipped == norm or clipped == pytest.approx(threshold, rel=1e-6)
        else:
            assert clipped == pytest.approx(norm, rel=1e-6)
    assert min(counts.values()) > 10


def test_draws_are_uniform():
    """The clip rate at probability q is the share of draws below q, of one stream."""
    steps = 500
    below = {q: decisions("linear_rand_norm", 0.5, q**2, steps) for q in (0.1, 0.3, 0.5, 0.7, 0.9)}
    for q, clipped in below.items():
        assert abs(clipped.mean() - q) < 4 * math.sqrt(q * (1 - q) / steps)
    for (low, fewer), (high, more) in zip(list(below.items())[:-1], list(below.items())[1:], strict=True):
        assert not (fewer & ~more).any(), f"a draw below {low} but not below {high}"


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_draws_are_not_autocorrelated(seed):
    signs = np.where(decisions("linear_rand_norm", 0.5, 0.25, 1500, seed), 1.0, -1.0)
    for lag in range(1, 9):
        correlation = (signs[lag:] * signs[:-lag]).mean()
        assert abs(correlation) < 4 / math.sqrt(len(signs) - lag), f"lag {lag}"


def test_different_seeds_give_different_draws():
    signs = {seed: np.where(decisions("linear_rand_norm", 0.5, 0.25, 800, seed), 1.0, -1.0) for seed in (0, 1, 2, 3, 2**32)}
    for one in signs:
        for other in signs:
            for shift in range(4) if one != other else ():
                correlation = (signs[one][shift:] * signs[other][: 800 - shift]).mean()
                assert abs(correlation) < 4 / math.sqrt(800 - shift), f"seeds {one} and {other}, shifted by {shift}"


def test_equal_seeds_give_equal_draws():
    first, second = (decisions("quadratic_rand_norm", 0.5, 0.3, 100, seed=9) for _ in range(2))
    assert (first == second).all()
    assert 0 < first.sum() < 100


# The quantile.


STREAMS = {
    "rising": np.geomspace(0.01, 100, 60),
    "falling": np.geomspace(100, 0.01, 60),
    "heavy-tailed": np.random.default_rng(0).pareto(1.1, 60) + 0.01,
    "constant": np.full(30, 3.0),
    "alternating": np.where(np.arange(40) % 2, 5.0, 1.0),
}


@pairwise(stream=STREAMS, p=[0.1, 0.75, 1.0], window=[2, 7, 1000])
def test_auto_is_numpys_percentile_of_the_last_norms(stream, p, window):
    norms = STREAMS[stream]
    options = {"clipping_type": "auto", "clipping_level": p, "clipping_window": window}
    optimizer = ClippedSGD(scalars(dtype=torch.float64), lr=0.0, **options)
    for i, norm in enumerate(norms):
        wanted = np.percentile(norms[max(0, i + 1 - window) : i + 1], 100 * p)
        (clipped,) = step_scalars(optimizer, norm)
        assert optimizer.clipping_stats()["threshold"] == pytest.approx(wanted, rel=1e-6)
        assert clipped == pytest.approx(min(norm, wanted), rel=1e-6)
    assert optimizer.grad_norms().tolist() == pytest.approx(norms[-window:].tolist(), rel=1e-6)
