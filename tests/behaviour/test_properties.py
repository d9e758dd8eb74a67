"""Properties of clipping that hold for every gradient, and what an optimizer tells about it."""

import copy
import io
import math
import pickle
import re
import warnings
from itertools import cycle

import numpy as np
import pytest
import torch
from support.assertions import equal
from support.cases import pairwise

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD

GLOBAL = ["norm", "auto", "linear_rand_norm", "quadratic_rand_norm", "linear_rand_auto", "quadratic_rand_auto"]
TYPES = [*GLOBAL, "layer_wise", "coord_wise"]
CONSTANT = ["norm", "layer_wise", "coord_wise", "linear_rand_norm", "quadratic_rand_norm"]
RANDOM_POWERS = {"linear_rand_norm": 1, "quadratic_rand_norm": 2}
OPTIMIZERS = {
    "sgd": (ClippedSGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "adam": (ClippedAdam, torch.optim.Adam, {"lr": 0.05, "weight_decay": 0.01}),
    "adamw": (ClippedAdamW, torch.optim.AdamW, {"lr": 0.05, "amsgrad": True}),
}
FLAGS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False, "fused": False}}
STATS = {
    "grad_norm",
    "clipped_norm",
    "threshold",
    "coefficient",
    "clip_rate",
    "steps",
    "clipped_steps",
    "skipped_steps",
}


def state_of(optimizer):
    """Everything in ``optimizer.state``, as a flat list of tensors."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [torch.as_tensor(v).clone() for p in params for _, v in sorted(optimizer.state[p].items()) if v is not None]


def stats_of(optimizer):
    return pytest.approx(optimizer.clipping_stats(), rel=0, abs=0, nan_ok=True)


def step_scalars(optimizer, *gradients):
    """Step with one-element gradients; the clipped gradients."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p, g in zip(params, gradients, strict=True):
        p.grad = torch.tensor([float(g)], dtype=p.dtype)
    optimizer.step()
    return [p.grad.item() for p in params]


def scalars(count=1, dtype=torch.float32):
    return [torch.nn.Parameter(torch.zeros(1, dtype=dtype)) for _ in range(count)]


# What does not clip changes nothing.

HUGE_LEVELS = dict.fromkeys(CONSTANT, 1e30) | {"auto": 1, "linear_rand_auto": 1.0}


@pairwise(clipping_type=HUGE_LEVELS, name=OPTIMIZERS, flags=["chosen", *FLAGS])
def test_huge_threshold_changes_nothing_bit_for_bit(problem, clipping_type, name, flags):
    clipped_class, _, options = OPTIMIZERS[name]

    def run(flags, **arguments):
        params = problem.parameters()
        optimizer = clipped_class(params, **options, **flags, **arguments)
        for step in range(6):
            grads = problem.gradients(step)
            assert equal(problem.step(optimizer, grads), grads)
        return [*params, *state_of(optimizer)]

    wanted = run(FLAGS["fused" if flags == "chosen" else flags], clipping_type="none")
    assert equal(run(FLAGS.get(flags, {}), clipping_type=clipping_type, clipping_level=HUGE_LEVELS[clipping_type]), wanted)


@pairwise(ids=str, name=OPTIMIZERS, flags=["default", *FLAGS], dtype=[torch.float32, torch.float64, torch.bfloat16])
def test_type_none_is_torchs_optimizer_bit_for_bit(problem, name, flags, dtype):
    clipped_class, plain_class, options = OPTIMIZERS[name]

    def run(optimizer_class, **arguments):
        params = problem.parameters(dtype)
        optimizer = optimizer_class(params, **options, **FLAGS.get(flags, {}), **arguments)
        for step in range(6):
            grads = problem.gradients(step, dtype=dtype)
            if step == 3:
                grads[1] = None
            problem.step(optimizer, grads)
        problem.step(optimizer, [torch.full_like(g, math.inf) for g in problem.gradients(9, dtype=dtype)][:1] + [None] * 3)
        return [torch.nan_to_num(t, nan=0.125) for t in [*params, *state_of(optimizer)]]

    assert equal(run(clipped_class, clipping_type="none"), run(plain_class))


# What clips.


@pairwise(ids=str, clipping_type=TYPES, flags=FLAGS, dtype=[torch.float32, torch.float64])
def test_clipped_length_never_exceeds_its_threshold(problem, clipping_type, flags, dtype):
    optimizer = ClippedSGD(
        problem.parameters(dtype), momentum=0.9, clipping_type=clipping_type, clipping_window=9, **FLAGS[flags]
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


@pytest.mark.parametrize(("clipping_type", "flags"), [*zip(GLOBAL, cycle(FLAGS), strict=False)])
def test_scalar_measures_keep_the_direction_of_the_whole_gradient(problem, clipping_type, flags):
    optimizer = ClippedSGD(problem.parameters(), momentum=0.9, clipping_type=clipping_type, **FLAGS[flags])
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


# A step without a gradient.


@pairwise(clipping_type=TYPES, name=OPTIMIZERS, nothing=["zeros", "none", "some zeros, some none"])
def test_step_of_length_zero_records_counts_and_draws_nothing(problem, clipping_type, name, nothing):
    clipped_class, _, options = OPTIMIZERS[name]
    arguments = {"clipping_type": clipping_type, "clipping_beta": 0.5, "clipping_window": 8, **options}

    def lengths(steps_without_gradient):
        optimizer = clipped_class(problem.parameters(), **arguments)
        zeros = [torch.zeros_like(g) for g in problem.gradients(0)]
        absent = {"zeros": zeros, "none": [None] * len(zeros), "some zeros, some none": [*zeros[:2], None, None]}[nothing]
        clipped = []
        for step in range(12):
            if step in steps_without_gradient:
                before = stats_of(optimizer), optimizer.grad_norms()
                problem.step(optimizer, absent)
                assert optimizer.clipping_stats() == before[0]
                assert torch.equal(optimizer.grad_norms(), before[1])
            clipped.append(problem.length(problem.step(optimizer, problem.gradients(step, 2.0 + step / 8))))
        return clipped, optimizer.clipping_stats()

    wanted, stats = lengths(())
    assert stats["steps"] == 12
    clipped, stats = lengths((0, 1, 5, 6, 11))
    assert clipped == wanted
    assert stats["steps"] == 12


def test_zero_gradients_create_the_state_of_the_optimizer(problem):
    optimizer = ClippedAdam(problem.parameters(), lr=0.0)
    problem.step(optimizer, [torch.zeros_like(g) for g in problem.gradients(0)])
    assert all({"exp_avg", "exp_avg_sq", "step"} <= set(optimizer.state[p]) for p in optimizer.param_groups[0]["params"])
    assert optimizer.clipping_stats()["steps"] == 0


def test_step_of_length_zero_is_torchs(problem):
    def run(optimizer_class, **arguments):
        params = problem.parameters()
        optimizer = optimizer_class(params, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True, **arguments)
        for i in range(3):
            problem.step(optimizer, [g * (i == 0) for g in problem.gradients(i)])
        return params

    assert equal(run(ClippedSGD, clipping_level=1e9), run(torch.optim.SGD))


def test_one_tensor_without_gradient_is_not_in_the_length_and_not_touched(problem):
    params = problem.parameters()
    optimizer = ClippedSGD(params, lr=0.1, momentum=0.9, weight_decay=0.1)
    before = problem.copies(params)
    grads = problem.gradients(0, 10.0)
    grads[1] = None
    problem.step(optimizer, grads)
    wanted = problem.length([g for g in grads if g is not None])
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(wanted, rel=1e-6)
    assert torch.equal(params[1], before[1])
    assert not torch.equal(params[0], before[0])


# A gradient that is not finite.


def poisoned(problem, step, value=math.nan, tensor=1):
    grads = problem.gradients(step)
    grads[tensor].view(-1)[0] = value
    return grads


@pairwise(clipping_type=TYPES, value=[math.nan, math.inf, -math.inf], name=OPTIMIZERS, flags=["chosen", "foreach"])
def test_skip_leaves_everything_as_it_was_warns_once_and_counts(problem, clipping_type, value, name, flags):
    clipped_class, _, options = OPTIMIZERS[name]
    params = problem.parameters()
    arguments = {"clipping_type": clipping_type, "clipping_window": 6, **options, **FLAGS.get(flags, {})}
    optimizer = clipped_class(params, **arguments)
    for step in range(4):
        problem.step(optimizer, problem.gradients(step))
    before = problem.copies(params), state_of(optimizer), optimizer.grad_norms(), optimizer.clipping_stats()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(4, 7):
            problem.step(optimizer, poisoned(problem, step, value))
    assert len(caught) == 1
    assert equal(params, before[0])
    assert equal(state_of(optimizer), before[1])
    assert torch.equal(optimizer.grad_norms(), before[2])
    stats = optimizer.clipping_stats()
    counts = ("steps", "clipped_steps", "clip_rate")
    assert [stats[key] for key in counts] == [before[3][key] for key in counts]
    assert (before[3]["skipped_steps"], stats["skipped_steps"]) == (0, 3)


@pytest.mark.parametrize("clipping_type", TYPES)
def test_run_with_skipped_steps_is_the_run_without_them(problem, clipping_type):
    def run(*, interrupted):
        params = problem.parameters()
        options = {"clipping_type": clipping_type, "clipping_beta": 0.5, "clipping_window": 6}
        optimizer = ClippedSGD(params, lr=0.1, momentum=0.9, **options)
        for step in range(20):
            if interrupted and step % 4 == 0:
                problem.step(optimizer, poisoned(problem, step))
            problem.step(optimizer, problem.gradients(step))
        return params, optimizer.grad_norms()

    wanted = run(interrupted=False)
    with pytest.warns(RuntimeWarning, match="not finite"):
        params, norms = run(interrupted=True)
    assert equal(params, wanted[0])
    assert torch.equal(norms, wanted[1])


def test_skip_in_the_first_step_leaves_weights_and_momentum_usable(problem):
    params = problem.parameters()
    before = problem.copies(params)
    optimizer = ClippedSGD(params, lr=0.1, momentum=0.9)
    with pytest.warns(RuntimeWarning, match="not finite"):
        problem.step(optimizer, poisoned(problem, 0))
    assert equal(params, before)
    problem.step(optimizer, problem.gradients(1, 5.0))
    assert problem.length([p.detach() - b for p, b in zip(params, before, strict=True)]) == pytest.approx(0.1, rel=1e-4)


def test_skip_skips_every_clip_set_of_the_step():
    first, second = scalars(2)
    optimizer = ClippedSGD([{"params": [first]}, {"params": [second], "clipping_type": "auto"}], lr=0.1)
    step_scalars(optimizer, 1.0, 2.0)
    weights = [first.item(), second.item()]
    with pytest.warns(RuntimeWarning, match="not finite"):
        step_scalars(optimizer, math.nan, 3.0)
    assert [first.item(), second.item()] == weights
    assert [stats["steps"] for stats in optimizer.clipping_stats(per_set=True)] == [1, 1]


@pytest.mark.parametrize(("clipping_type", "name"), [*zip(TYPES, cycle(OPTIMIZERS), strict=False)])
def test_error_names_the_group_before_anything_changed(problem, clipping_type, name):
    clipped_class, _, options = OPTIMIZERS[name]
    params = problem.parameters()
    groups = [{"params": params[:1]}, {"params": params[1:2], "weight_decay": 0.1}, {"params": params[2:]}]
    optimizer = clipped_class(groups, clipping_type=clipping_type, nonfinite="error", **options)
    problem.step(optimizer, problem.gradients(0))
    before = problem.copies(params), state_of(optimizer), optimizer.grad_norms(), stats_of(optimizer)
    grads = poisoned(problem, 1)
    with pytest.raises(RuntimeError, match=r"group 1\b"):
        problem.step(optimizer, grads)
    assert equal(params, before[0])
    assert equal(state_of(optimizer), before[1])
    assert torch.equal(optimizer.grad_norms(), before[2])
    assert optimizer.clipping_stats() == before[3]
    assert equal([torch.nan_to_num(p.grad) for p in params], [torch.nan_to_num(g) for g in grads])


def test_error_in_one_clip_set_leaves_the_others_alone():
    first, second = scalars(2)
    groups = [{"params": [first]}, {"params": [second], "clipping_level": 2.0}]
    optimizer = ClippedSGD(groups, lr=0.1, nonfinite="error")
    with pytest.raises(RuntimeError, match=r"group 1\b"):
        step_scalars(optimizer, 50.0, math.inf)
    assert (first.item(), second.item(), first.grad.item()) == (0.0, 0.0, 50.0)
    assert [stats["steps"] for stats in optimizer.clipping_stats(per_set=True)] == [0, 0]


@pairwise(clipping_type=TYPES, value=[math.nan, math.inf, -math.inf], name=OPTIMIZERS)
def test_zero_clips_what_is_finite(problem, clipping_type, value, name):
    clipped_class, _, options = OPTIMIZERS[name]

    def run(bad):
        params = problem.parameters()
        optimizer = clipped_class(params, clipping_type=clipping_type, nonfinite="zero", **options)
        for step in range(6):
            grads = problem.step(optimizer, poisoned(problem, step, bad if step % 2 else 0.0))
        return [*params, *grads, optimizer.grad_norms()], optimizer.clipping_stats()

    (tensors, stats), (wanted, wanted_stats) = run(value), run(0.0)
    assert equal(tensors, wanted)
    assert stats == pytest.approx(wanted_stats, rel=0, abs=0, nan_ok=True)
    assert (stats["steps"], stats["skipped_steps"]) == (6, 0)


@pytest.mark.parametrize("clipping_type", TYPES)
def test_zero_with_nothing_finite_is_a_step_of_length_zero(problem, clipping_type):
    params = problem.parameters()
    optimizer = ClippedSGD(params, lr=0.1, clipping_type=clipping_type, nonfinite="zero")
    before = problem.copies(params)
    grads = problem.step(optimizer, [torch.full_like(g, math.nan) for g in problem.gradients(0)])
    assert equal(params, before)
    assert all((g == 0).all() for g in grads)
    assert optimizer.clipping_stats()["steps"] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("clipping_type", TYPES)
def test_propagate_lets_the_gradient_through_and_forgets_its_length(problem, clipping_type, value):
    params = problem.parameters()
    optimizer = ClippedSGD(params, lr=0.1, clipping_type=clipping_type, nonfinite="propagate")
    problem.step(optimizer, problem.gradients(0))
    norms = optimizer.grad_norms()
    problem.step(optimizer, poisoned(problem, 1, value))
    assert params[1].isfinite().all() == (clipping_type == "coord_wise" and math.isinf(value))  # entries are clamped
    assert torch.equal(optimizer.grad_norms(), norms)
    assert optimizer.clipping_stats()["skipped_steps"] == 0


def test_policy_may_differ_between_groups():
    first, second = scalars(2)
    groups = [{"params": [first], "nonfinite": "zero"}, {"params": [second], "nonfinite": "error"}]
    optimizer = ClippedSGD(groups, lr=1.0)
    step_scalars(optimizer, math.nan, 0.5)
    assert (first.item(), second.item()) == (0.0, -0.5)
    with pytest.raises(RuntimeError, match=r"group 1\b"):
        step_scalars(optimizer, 0.5, math.nan)


# What can be asked.


@pytest.mark.parametrize("clipping_type", ["none", *TYPES])
def test_stats_are_a_dict_of_plain_floats(problem, clipping_type):
    optimizer = ClippedSGD(problem.parameters(), clipping_type=clipping_type)
    for step in range(3):
        stats = optimizer.clipping_stats()
        assert set(stats) == STATS
        assert all(type(value) is float for value in stats.values())
        problem.step(optimizer, problem.gradients(step))
    for stats in optimizer.clipping_stats(per_set=True):
        assert set(stats) == STATS
        assert all(type(value) is float for value in stats.values())


def test_stats_before_the_first_step_count_nothing(problem):
    stats = ClippedSGD(problem.parameters()).clipping_stats()
    assert (stats["steps"], stats["clipped_steps"], stats["skipped_steps"]) == (0, 0, 0)
    assert math.isnan(stats["grad_norm"])
    assert len(ClippedSGD(problem.parameters()).grad_norms()) == 0


def test_stats_mean_what_they_say():
    optimizer = ClippedSGD(scalars(2), clipping_level=2.0)
    step_scalars(optimizer, 6.0, -8.0)
    wanted = {"grad_norm": 10, "clipped_norm": 2, "threshold": 2, "coefficient": 0.2, "clip_rate": 1, "steps": 1}
    assert optimizer.clipping_stats() == pytest.approx(wanted | {"clipped_steps": 1, "skipped_steps": 0})
    step_scalars(optimizer, 0.3, 0.4)
    wanted = {"grad_norm": 0.5, "clipped_norm": 0.5, "threshold": 2, "coefficient": 1, "clip_rate": 0.5, "steps": 2}
    assert optimizer.clipping_stats() == pytest.approx(wanted | {"clipped_steps": 1, "skipped_steps": 0})


def test_stats_of_layer_wise_are_medians_over_tensors_and_norms_of_the_whole():
    optimizer = ClippedSGD(scalars(3), clipping_type="layer_wise", clipping_level=2.0)
    step_scalars(optimizer, 1.0, 4.0, 8.0)
    stats = optimizer.clipping_stats()
    assert stats["threshold"] == 2.0
    assert stats["coefficient"] == pytest.approx(0.5)
    assert stats["grad_norm"] == pytest.approx(9.0)
    assert stats["clipped_norm"] == pytest.approx(3.0)
    assert (stats["clip_rate"], stats["clipped_steps"]) == (1.0, 1.0)


def test_stats_of_coord_wise_are_nan_where_they_would_cost_a_pass():
    optimizer = ClippedSGD(scalars(2), clipping_type="coord_wise")
    step_scalars(optimizer, 0.01, 4.0)
    step_scalars(optimizer, 0.01, 0.02)
    stats = optimizer.clipping_stats()
    assert math.isnan(stats["grad_norm"])
    assert math.isnan(stats["clipped_norm"])
    assert (stats["threshold"], stats["clip_rate"], stats["steps"], stats["clipped_steps"]) == (0.1, 0.5, 2, 1)


def test_stats_per_set_are_one_dict_a_set():
    params = scalars(4)
    groups = [
        {"params": params[:1]},
        {"params": params[1:2], "weight_decay": 0.1},
        {"params": params[2:3]},
        {"params": params[3:]},
    ]
    groups[2]["clipping_level"] = 5.0
    groups[3]["clipping_level"] = 0.5
    optimizer = ClippedSGD(groups)
    step_scalars(optimizer, 3.0, 4.0, 2.0, 0.25)
    first, second, third = optimizer.clipping_stats(per_set=True)
    assert [s["grad_norm"] for s in (first, second, third)] == pytest.approx([5.0, 2.0, 0.25])
    assert [s["clipped_norm"] for s in (first, second, third)] == pytest.approx([1.0, 2.0, 0.25])
    assert [s["threshold"] for s in (first, second, third)] == [1.0, 5.0, 0.5]
    assert [s["clipped_steps"] for s in (first, second, third)] == [1, 0, 0]
    assert [s["steps"] for s in (first, second, third)] == [1, 1, 1]
    whole = optimizer.clipping_stats()
    assert whole["grad_norm"] == pytest.approx(math.sqrt(25 + 4 + 0.0625))
    assert whole["clipped_norm"] == pytest.approx(math.sqrt(1 + 4 + 0.0625))
    assert (whole["steps"], whole["clipped_steps"], whole["clip_rate"]) == (1, 1, 1)


def test_stats_of_several_sets_count_a_step_once():
    optimizer = ClippedSGD([{"params": scalars()}, {"params": scalars(), "clipping_level": 2.0}])
    for gradients in [(10.0, 1.0), (0.5, 10.0), (10.0, 10.0), (0.5, 0.5)]:
        step_scalars(optimizer, *gradients)
    stats = optimizer.clipping_stats()
    assert (stats["steps"], stats["clipped_steps"], stats["clip_rate"]) == (4, 3, 0.75)
    assert [s["clipped_steps"] for s in optimizer.clipping_stats(per_set=True)] == [2, 2]


@pytest.mark.parametrize("nothing", [0.0, None])
def test_stats_of_whole_gradient_leave_out_a_set_without_gradient_in_the_last_step(nothing):
    optimizer = ClippedSGD([{"params": scalars()}, {"params": scalars(), "clipping_level": 2.0}])
    step_scalars(optimizer, 3.0, 4.0)
    first, second = (group["params"][0] for group in optimizer.param_groups)
    first.grad = None if nothing is None else torch.tensor([nothing])
    second.grad = torch.tensor([8.0])
    optimizer.step()
    assert optimizer.grad_norms().tolist() == pytest.approx([5.0, 8.0])
    stats = optimizer.clipping_stats()
    assert (stats["grad_norm"], stats["clipped_norm"]) == pytest.approx((8.0, 2.0))
    assert [s["steps"] for s in optimizer.clipping_stats(per_set=True)] == [1, 2]


def test_grad_norms_are_the_unclipped_ones_oldest_first_and_bounded():
    optimizer = ClippedSGD(scalars(), clipping_window=4)
    for i, norm in enumerate([3.0, 1.0, 4.0, 1.5, 9.0, 2.0], start=1):
        step_scalars(optimizer, norm)
        norms = optimizer.grad_norms()
        assert norms.ndim == 1
        assert norms.tolist() == [3.0, 1.0, 4.0, 1.5, 9.0, 2.0][max(0, i - 4) : i]


def test_grad_norms_of_several_sets_are_of_the_whole_gradient():
    optimizer = ClippedSGD([{"params": scalars()}, {"params": scalars(), "clipping_level": 2.0}])
    step_scalars(optimizer, 3.0, 4.0)
    step_scalars(optimizer, 6.0, 8.0)
    assert optimizer.grad_norms().tolist() == pytest.approx([5.0, 10.0])


def test_changing_the_returned_norms_does_not_change_the_history():
    optimizer = ClippedSGD(scalars(), clipping_type="auto")
    step_scalars(optimizer, 3.0)
    optimizer.grad_norms().zero_()
    assert optimizer.grad_norms().tolist() == [3.0]


# Copies.


def deepcopied(params, optimizer):
    return copy.deepcopy((params, optimizer))


def pickled(params, optimizer):
    return pickle.loads(pickle.dumps((params, optimizer)))


def saved(params, optimizer):
    file = io.BytesIO()
    torch.save({"params": params, "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    plain = {k: v for k, v in optimizer.param_groups[0].items() if k in ("clipping_type", "clipping_window", "clipping_beta")}
    fresh = type(optimizer)(loaded["params"], **plain)
    fresh.load_state_dict(loaded["optimizer"])
    return loaded["params"], fresh


@pairwise(clipping_type=["none", *TYPES], name=OPTIMIZERS, copied=[deepcopied, pickled, saved])
def test_copy_keeps_the_history_and_goes_on_by_itself(problem, clipping_type, name, copied):
    clipped_class, _, options = OPTIMIZERS[name]
    params = problem.parameters()
    optimizer = clipped_class(params, clipping_type=clipping_type, clipping_window=5, clipping_beta=0.5, **options)
    for step in range(7):
        problem.step(optimizer, problem.gradients(step))
    other_params, other = copied(params, optimizer)
    assert type(other) is clipped_class
    assert torch.equal(other.grad_norms(), optimizer.grad_norms())
    assert other.clipping_stats() == stats_of(optimizer)
    wanted = []
    for step in range(7, 15):
        problem.step(optimizer, problem.gradients(step))
        wanted.append(problem.copies(params))
    for step in range(7, 15):
        problem.step(other, problem.gradients(step))
        assert equal(other_params, wanted[step - 7])
    assert torch.equal(other.grad_norms(), optimizer.grad_norms())
    assert other.clipping_stats() == stats_of(optimizer)


@pytest.mark.parametrize("copied", [deepcopied, pickled])
def test_copy_takes_new_groups(problem, copied):
    params, optimizer = copied(problem.parameters(), ClippedSGD(problem.parameters()))
    optimizer.add_param_group({"params": params, "clipping_level": 0.5})
    grads = problem.gradients(0, 9.0)
    clipped = problem.step(optimizer, [*grads, *grads])
    assert problem.length(clipped[: len(grads)]) == pytest.approx(1.0, rel=1e-5)
    assert problem.length(clipped[len(grads) :]) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("clipping_type", TYPES)
def test_state_of_clipping_is_plain_tensors_and_numbers_in_groups(problem, clipping_type):
    optimizer = ClippedSGD(problem.parameters(), momentum=0.9, clipping_type=clipping_type)
    problem.step(optimizer, problem.gradients(0))
    assert all(isinstance(key, torch.Tensor) for key in optimizer.state)
    assert all(set(state) == {"momentum_buffer"} for state in optimizer.state.values())
    state_dict = optimizer.state_dict()
    assert set(state_dict) == {"state", "param_groups"}
    kinds = {type(value) for group in state_dict["param_groups"] for value in group.values()}
    assert kinds <= {torch.Tensor, int, float, bool, str, type(None), list}
    assert not any(isinstance(value, torch.Tensor) for value in optimizer.defaults.values())


def test_fused_chosen_at_step_time_is_not_written_into_the_checkpoint(problem):
    optimizer = ClippedAdamW(problem.parameters())
    problem.step(optimizer, problem.gradients(0))
    group = optimizer.state_dict()["param_groups"][0]
    assert (group["fused"], group["foreach"]) == (None, None)
    assert not {"grad_scale", "found_inf"} & set(vars(optimizer))


def test_step_that_torch_refuses_leaves_nothing_switched_on():
    params = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(3))]
    optimizer = ClippedAdamW(params)
    params[0].grad = torch.full((3, 2), 9.0).to_sparse()
    params[1].grad = torch.full((3,), 9.0)
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    group = optimizer.param_groups[0]
    assert (group["fused"], group["foreach"]) == (None, None)
    assert not {"grad_scale", "found_inf"} & set(vars(optimizer))


@pytest.mark.parametrize("clipping_type", ["none", *TYPES])
def test_repr_is_short_and_shows_the_clipping_arguments(problem, clipping_type):
    optimizer = ClippedSGD([{"params": problem.parameters()}], clipping_type=clipping_type)
    before = repr(optimizer)
    for step in range(5):
        problem.step(optimizer, problem.gradients(step))
    assert repr(optimizer) == before
    assert len(before) < 1000
    assert before.startswith("ClippedSGD")
    assert re.search(rf"clipping_type: {clipping_type}\b", before)
    assert "clipping_level" in before
    assert "tensor" not in before


def test_repr_leaves_nothing_on_a_wrapper_that_takes_the_class_and_hands_attributes_on(problem):
    class Wrapper(ClippedSGD):  # as Lightning's
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def __getattr__(self, name):
            return getattr(self.optimizer, name)

    optimizer = ClippedSGD(problem.parameters(), clipping_type="auto")
    wrapper = Wrapper(optimizer)
    assert repr(wrapper) == repr(optimizer).replace("ClippedSGD", "Wrapper")
    assert list(vars(wrapper)) == ["optimizer"]
    assert "param_groups" in vars(optimizer)


# Lengths.

VALUES = {
    "ordinary": (torch.float32, 1.0),
    "float64": (torch.float64, 1.0),
    "float16 whose norm is above 65,504": (torch.float16, 3e4),
    "float16 whose squares vanish": (torch.float16, 1e-4),
    "bfloat16": (torch.bfloat16, 1.0),
    "bfloat16, huge": (torch.bfloat16, 1e25),
    "huge": (torch.float32, 1e25),
    "tiny": (torch.float32, 1e-30),
    "float64, huge": (torch.float64, 1e200),
    "float64, tiny": (torch.float64, 1e-200),
}


@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise", "auto"])
@pytest.mark.parametrize("values", VALUES)
def test_length_is_right_whatever_the_type_and_size_of_the_gradient(problem, values, clipping_type):
    dtype, size = VALUES[values]
    shapes = ((300, 300), (1000,), (3,), ())
    generator = torch.Generator().manual_seed(0)
    grads = [((torch.rand(s, generator=generator, dtype=torch.float64) + 0.5) * size).to(dtype) for s in shapes]
    optimizer = ClippedSGD(problem.parameters(dtype, shapes), lr=0.0, clipping_type=clipping_type)
    problem.step(optimizer, grads)
    wanted = size * problem.length([g.double() / size for g in grads])
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(wanted, rel=1e-5)
    assert optimizer.grad_norms().tolist() == pytest.approx([wanted], rel=1e-5)


@pytest.mark.parametrize("norm_type", [1, 2, 3, math.inf])
@pytest.mark.parametrize("size", [1e25, 1e-30])
def test_length_of_any_norm_type_is_right_for_huge_and_tiny_gradients(problem, size, norm_type):
    grads = [g * size for g in problem.gradients(0, 1.0)]
    optimizer = ClippedSGD(problem.parameters(), lr=0.0, norm_type=norm_type)
    problem.step(optimizer, grads)
    wanted = size * torch.cat([g.double().flatten() / size for g in grads]).norm(norm_type).item()
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(wanted, rel=1e-5)


def test_length_of_huge_and_tiny_entries_together():
    optimizer = ClippedSGD([torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))], lr=0.0)
    first, second = optimizer.param_groups[0]["params"]
    first.grad, second.grad = torch.tensor([3e25, 1e-30, 1.0]), torch.tensor([4e25, 0.0])
    optimizer.step()
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(5e25, rel=1e-5)


@pytest.mark.parametrize("flags", ["chosen", *FLAGS])
@pytest.mark.parametrize("size", [1e25, 1e-30])
def test_huge_and_tiny_gradients_are_clipped_to_the_level(problem, size, flags):
    params = problem.parameters()
    optimizer = ClippedSGD(params, lr=0.0, momentum=0.9, clipping_level=size / 10, **FLAGS.get(flags, {}))
    grads = problem.step(optimizer, [g * size for g in problem.gradients(0, 1.0)])
    assert problem.length([g.double() / size for g in grads]) == pytest.approx(0.1, rel=1e-5)


def test_huge_gradient_is_clipped_to_an_ordinary_level(problem):
    optimizer = ClippedSGD(problem.parameters(), lr=0.1)
    assert problem.length(problem.step(optimizer, problem.gradients(0, 1e30))) == pytest.approx(1.0, rel=1e-5)


TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pairwise(ids=str, clipping_type=["norm", "layer_wise"], flags=["chosen", *FLAGS], dtype=TOLERANCE, norm=[50.0, 1e4, 9.4e5])
def test_gradients_of_low_precision_are_clipped_to_the_level(problem, clipping_type, flags, dtype, norm):
    shapes = ((20, 20),)
    params = problem.parameters(dtype, shapes)
    options = FLAGS.get(flags, {}) | {"clipping_type": clipping_type, "clipping_level": 1}
    optimizer = ClippedSGD(params, lr=0.1, momentum=0.9, **options)
    signs = problem.gradients(0, shapes=shapes)[0].sign()
    grads = problem.step(optimizer, [(signs * norm / 20).to(dtype)])
    assert problem.length(grads) == pytest.approx(1.0, rel=TOLERANCE[dtype])


def test_parameters_of_several_types_form_one_length():
    params = [torch.nn.Parameter(torch.zeros(1, dtype=dtype)) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    optimizer = ClippedSGD(params, lr=0.1)
    assert step_scalars(optimizer, 2.0, 3.0, 6.0) == pytest.approx([2 / 7, 3 / 7, 6 / 7], rel=1e-2)
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(7.0)


def test_layout_of_the_gradient_does_not_change_its_length(problem):
    shapes = ((4, 6), (2, 3, 4, 5), (0, 3), (5, 5))
    grads = [g * 100 for g in problem.gradients(0, shapes=shapes, norm=1.0)]
    grads[0] = grads[0].t().contiguous().t()
    grads[1] = grads[1].to(memory_format=torch.channels_last)
    grads[3] = torch.cat([grads[3], torch.full((5, 1), 1e9)], dim=1)[:, :5]
    params = problem.parameters(shapes=shapes)
    optimizer = ClippedSGD(params, lr=0.1)
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    optimizer.step()
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(100.0, rel=1e-5)
    assert problem.length([p.grad for p in params]) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise"])
def test_complex_gradients_count_by_modulus(clipping_type):
    param = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    optimizer = ClippedSGD([param], lr=1.0, clipping_type=clipping_type, clipping_level=1.0, norm_type=1.0)
    param.grad = torch.tensor([3 + 4j, 5j])
    optimizer.step()
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(10.0)
    torch.testing.assert_close(param.detach(), -torch.tensor([0.3 + 0.4j, 0.5j]))


@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise"])
def test_sparse_gradients_count_by_their_summed_entries(clipping_type):
    param = torch.nn.Parameter(torch.zeros(4, 1))
    optimizer = ClippedSGD([param], lr=1.0, clipping_type=clipping_type, clipping_level=1.0)
    param.grad = torch.sparse_coo_tensor(
        torch.tensor([[1, 3, 1]]), torch.tensor([[1.0], [4.0], [2.0]]), (4, 1), check_invariants=True
    )
    optimizer.step()
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(5.0)
    torch.testing.assert_close(param.detach().flatten(), torch.tensor([0.0, -0.6, 0.0, -0.8]))


# Clip sets.


def test_groups_of_equal_arguments_are_one_set():
    groups = [{"params": scalars(), "lr": 0.5, "clipping_level": 1.0}, {"params": scalars(), "weight_decay": 0.1}]
    optimizer = ClippedSGD(groups, lr=1.0)
    assert step_scalars(optimizer, 3.0, 4.0) == pytest.approx([0.6, 0.8])
    assert len(optimizer.clipping_stats(per_set=True)) == 1


def test_equal_arguments_written_differently_are_one_set():
    groups = [{"params": scalars(), "clipping_level": level} for level in (2, 2.0, np.float32(2), torch.tensor(2.0))]
    groups.append({"params": scalars(), "clipping_level": 2, "norm_type": 2})
    optimizer = ClippedSGD(groups)
    assert step_scalars(optimizer, 4.0, 4.0, 4.0, 4.0, 6.0) == pytest.approx([0.8, 0.8, 0.8, 0.8, 1.2])
    assert len(optimizer.clipping_stats(per_set=True)) == 1


def test_groups_of_older_and_newer_spelling_are_one_set():
    groups = [{"params": scalars(), "clipping_type": name} for name in ("auto", "auto_clip")]
    optimizer = ClippedSGD(groups)
    step_scalars(optimizer, 3.0, 4.0)
    assert [s["grad_norm"] for s in optimizer.clipping_stats(per_set=True)] == pytest.approx([5.0])


def test_groups_that_are_not_neighbours_are_one_set():
    groups = [{"params": scalars()}, {"params": scalars(), "clipping_level": 9.0}, {"params": scalars()}]
    assert step_scalars(ClippedSGD(groups), 3.0, 100.0, 4.0) == pytest.approx([0.6, 9.0, 0.8])


DIFFERENCES = [
    {"clipping_level": 2.0},
    {"clipping_type": "layer_wise", "clipping_level": 1.0},
    {"clipping_beta": 0.5},
    {"clipping_window": 7},
    {"norm_type": 1.0},
    {"nonfinite": "zero"},
    {"clipping_seed": 1},
]


@pytest.mark.parametrize("difference", DIFFERENCES, ids=str)
def test_group_of_different_arguments_is_clipped_on_its_own(difference):
    optimizer = ClippedSGD([{"params": scalars()}, {"params": scalars(), **difference}])
    level = difference.get("clipping_level", 1.0)
    assert step_scalars(optimizer, 3.0, 4.0) == pytest.approx([1.0, level])
    assert len(optimizer.clipping_stats(per_set=True)) == 2


def test_histories_of_sets_are_their_own():
    groups = [{"params": scalars()}, {"params": scalars(), "clipping_level": 0.5}]
    optimizer = ClippedSGD(groups, clipping_type="auto", clipping_level=1.0)
    for i in range(1, 6):
        first, second = step_scalars(optimizer, i, 100.0 * i)
        assert (first, second) == pytest.approx((i, np.percentile(100.0 * np.arange(1, i + 1), 50)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_group_of_type_none_is_left_alone_bit_for_bit(problem, name):
    clipped_class, plain_class, options = OPTIMIZERS[name]

    def groups(params, **arguments):
        return [{"params": params[:2]}, {"params": params[2:], **arguments}]

    params, plain_params = problem.parameters(), problem.parameters()
    optimizer = clipped_class(groups(params, clipping_type="none"), fused=True, **options)
    plain = plain_class(groups(plain_params), fused=True, **options)
    for step in range(5):
        grads = problem.gradients(step, 50.0)
        clipped = problem.step(optimizer, grads)
        problem.step(plain, grads)
        assert equal(clipped[2:], grads[2:])
        assert problem.length(clipped[:2]) == pytest.approx(1.0, rel=1e-5)
        assert optimizer.clipping_stats(per_set=True)[0]["grad_norm"] == pytest.approx(problem.length(grads[:2]), rel=1e-5)
    assert equal(params[2:], plain_params[2:])
    assert not equal(params[:2], plain_params[:2])


def test_group_added_between_steps_joins_the_set_of_its_arguments():
    optimizer = ClippedSGD(scalars())
    assert step_scalars(optimizer, 3.0) == pytest.approx([1.0])
    optimizer.add_param_group({"params": scalars()})
    optimizer.add_param_group({"params": scalars(), "clipping_level": 2.0})
    assert step_scalars(optimizer, 3.0, 4.0, 5.0) == pytest.approx([0.6, 0.8, 2.0])
    assert optimizer.clipping_stats()["steps"] == 2


def test_frozen_parameters_are_ignored(problem):
    params = problem.parameters()
    params[0].requires_grad_(False)
    optimizer = ClippedSGD(params, lr=0.1)
    before = params[0].clone()
    grads = problem.gradients(0, 9.0)
    problem.step(optimizer, [None, *grads[1:]])
    assert torch.equal(params[0], before)
    assert problem.length([p.grad for p in params[1:]]) == pytest.approx(1.0, rel=1e-5)
