"""Properties of each policy for gradients that are not finite."""

import math
import warnings
from itertools import cycle

import pytest
import torch
from support.assertions import equal
from support.cases import pairwise, state_of
from support.properties import KERNELS, LEVEL_TYPES, OPTIMIZERS, scalars, stats_of, step_scalars

from torch_clipped import ClippedSGD


def poisoned_gradients(problem, step, value=math.nan, tensor=1):
    grads = problem.gradients(step)
    grads[tensor].view(-1)[0] = value
    return grads


@pairwise(clipping_type=LEVEL_TYPES, value=[math.nan, math.inf, -math.inf], name=OPTIMIZERS, flags=["chosen", "foreach"])
def test_skip_leaves_everything_as_it_was_warns_once_and_counts(problem, clipping_type, value, name, flags):
    clipped_class, _, options = OPTIMIZERS[name]
    params = problem.parameters()
    arguments = {"clipping_type": clipping_type, "clipping_window": 6, **options, **KERNELS.get(flags, {})}
    optimizer = clipped_class(params, **arguments)
    for step in range(4):
        problem.step(optimizer, problem.gradients(step))
    before = problem.copies(params), state_of(optimizer), optimizer.grad_norms(), optimizer.clipping_stats()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(4, 7):
            problem.step(optimizer, poisoned_gradients(problem, step, value))
    assert len(caught) == 1
    assert equal(params, before[0])
    assert equal(state_of(optimizer), before[1])
    assert torch.equal(optimizer.grad_norms(), before[2])
    stats = optimizer.clipping_stats()
    counts = ("steps", "clipped_steps", "clip_rate")
    assert [stats[key] for key in counts] == [before[3][key] for key in counts]
    assert (before[3]["skipped_steps"], stats["skipped_steps"]) == (0, 3)


@pytest.mark.parametrize("clipping_type", LEVEL_TYPES)
def test_run_with_skipped_steps_is_the_run_without_them(problem, clipping_type):
    def run(*, interrupted):
        params = problem.parameters()
        options = {"clipping_type": clipping_type, "clipping_beta": 0.5, "clipping_window": 6}
        optimizer = ClippedSGD(params, lr=0.1, momentum=0.9, **options)
        for step in range(20):
            if interrupted and step % 4 == 0:
                problem.step(optimizer, poisoned_gradients(problem, step))
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
        problem.step(optimizer, poisoned_gradients(problem, 0))
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


@pytest.mark.parametrize(("clipping_type", "name"), [*zip(LEVEL_TYPES, cycle(OPTIMIZERS), strict=False)])
def test_error_names_the_group_before_anything_changed(problem, clipping_type, name):
    clipped_class, _, options = OPTIMIZERS[name]
    params = problem.parameters()
    groups = [{"params": params[:1]}, {"params": params[1:2], "weight_decay": 0.1}, {"params": params[2:]}]
    optimizer = clipped_class(groups, clipping_type=clipping_type, nonfinite="error", **options)
    problem.step(optimizer, problem.gradients(0))
    before = problem.copies(params), state_of(optimizer), optimizer.grad_norms(), stats_of(optimizer)
    grads = poisoned_gradients(problem, 1)
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


@pairwise(clipping_type=LEVEL_TYPES, value=[math.nan, math.inf, -math.inf], name=OPTIMIZERS)
def test_zero_clips_what_is_finite(problem, clipping_type, value, name):
    clipped_class, _, options = OPTIMIZERS[name]

    def run(bad):
        params = problem.parameters()
        optimizer = clipped_class(params, clipping_type=clipping_type, nonfinite="zero", **options)
        for step in range(6):
            grads = problem.step(optimizer, poisoned_gradients(problem, step, bad if step % 2 else 0.0))
        return [*params, *grads, optimizer.grad_norms()], optimizer.clipping_stats()

    (tensors, stats), (wanted, wanted_stats) = run(value), run(0.0)
    assert equal(tensors, wanted)
    assert stats == pytest.approx(wanted_stats, rel=0, abs=0, nan_ok=True)
    assert (stats["steps"], stats["skipped_steps"]) == (6, 0)


@pytest.mark.parametrize("clipping_type", LEVEL_TYPES)
def test_zero_with_nothing_finite_is_a_step_of_length_zero(problem, clipping_type):
    params = problem.parameters()
    optimizer = ClippedSGD(params, lr=0.1, clipping_type=clipping_type, nonfinite="zero")
    before = problem.copies(params)
    grads = problem.step(optimizer, [torch.full_like(g, math.nan) for g in problem.gradients(0)])
    assert equal(params, before)
    assert all((g == 0).all() for g in grads)
    assert optimizer.clipping_stats()["steps"] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("clipping_type", LEVEL_TYPES)
def test_propagate_lets_the_gradient_through_and_forgets_its_length(problem, clipping_type, value):
    params = problem.parameters()
    optimizer = ClippedSGD(params, lr=0.1, clipping_type=clipping_type, nonfinite="propagate")
    problem.step(optimizer, problem.gradients(0))
    norms = optimizer.grad_norms()
    problem.step(optimizer, poisoned_gradients(problem, 1, value))
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
