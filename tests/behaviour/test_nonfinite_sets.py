"""Gradients that are not finite: several clip sets, edited policies, gradient scalers."""

import math

import pytest
import torch
from support.assertions import equal
from support.cases import FLAGS, ONE_A_KIND, pairwise, state_of
from support.nonfinite import OPTIMIZERS, POLICIES, equal_or_both_nan, plain, poisoned, quietly_step, told

from torch_clipped import ClippedSGD

COUNTS = ("steps", "clipped_steps", "clip_rate")

# Several clip sets of different policies.


def four_sets(problem):
    params = problem.parameters()
    groups = [
        {"params": [params[0]], "nonfinite": "skip"},
        {"params": [params[1]], "nonfinite": "zero", "clipping_type": "auto"},
        {"params": [params[2]], "nonfinite": "propagate", "clipping_type": "layer_wise_auto"},
        {"params": [params[3]], "clipping_type": "none"},
    ]
    return params, ClippedSGD(groups, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("bad", [(0,), (0, 1), (0, 2), (0, 3), (0, 1, 2, 3)])
def test_bad_set_that_skips_stops_all_sets(problem, bad):
    params, optimizer = four_sets(problem)
    problem.step(optimizer, problem.gradients(0))
    grads = problem.gradients(1, 50.0)
    for tensor in bad:
        grads = poisoned(grads, math.nan, tensor)
    before = problem.copies(params), state_of(optimizer), told(optimizer, without_skips=True)
    quietly_step(problem, optimizer, grads)
    assert equal(params, before[0])
    assert equal(state_of(optimizer), before[1])
    assert plain([optimizer.clipping_stats(), *optimizer.clipping_stats(per_set=True)]) == before[2]
    assert optimizer.clipping_stats()["skipped_steps"] == 1


@pytest.mark.parametrize("bad", [(1,), (2,), (3,), (1, 2), (1, 2, 3)])
def test_bad_sets_that_do_not_skip_leave_the_others_to_their_step(problem, bad):
    params, optimizer = four_sets(problem)
    good_params, good = four_sets(problem)
    for each in (optimizer, good):
        problem.step(each, problem.gradients(0))
    grads = problem.gradients(1, 50.0)
    problem.step(good, grads)
    for tensor in bad:
        grads = poisoned(grads, math.inf, tensor)
    problem.step(optimizer, grads)
    assert optimizer.clipping_stats()["skipped_steps"] == 0
    for tensor, (p, wanted) in enumerate(zip(params, good_params, strict=True)):
        if tensor not in bad:
            assert torch.equal(p, wanted)
        elif tensor == 1:
            assert p.isfinite().all()
            assert p.grad.view(-1)[0] == 0
        else:
            assert (~p.isfinite()).sum() == 1


def test_type_none_hands_on_what_is_not_finite_whatever_the_policy(problem):
    for policy in POLICIES:
        params, plain_params = problem.parameters(), problem.parameters()
        optimizer = ClippedSGD(params, lr=0.1, momentum=0.9, clipping_type="none", nonfinite=policy)
        torch_sgd = torch.optim.SGD(plain_params, lr=0.1, momentum=0.9)
        grads = poisoned(problem.gradients(0), math.nan)
        problem.step(optimizer, grads)
        problem.step(torch_sgd, grads)
        assert equal_or_both_nan([p.detach() for p in params], [p.detach() for p in plain_params])
        assert not params[1].isfinite().all()


def test_policy_may_be_edited_between_steps(problem):
    params = problem.parameters()
    optimizer = ClippedSGD(params, lr=0.1)
    bad = poisoned(problem.gradients(0), math.inf)
    quietly_step(problem, optimizer, bad)
    optimizer.param_groups[0]["nonfinite"] = "error"
    with pytest.raises(RuntimeError, match=r"group 0\b"):
        problem.step(optimizer, bad)
    optimizer.param_groups[0]["nonfinite"] = "zero"
    before = problem.copies(params)
    problem.step(optimizer, bad)
    assert not equal(params, before)
    assert all(p.isfinite().all() for p in params)
    optimizer.param_groups[0]["nonfinite"] = "propagate"
    problem.step(optimizer, bad)
    assert not params[1].isfinite().all()
    assert optimizer.clipping_stats()["skipped_steps"] == 1


def test_bad_gradient_of_a_frozen_or_missing_neighbour_is_not_there(problem):
    params = problem.parameters()
    optimizer = ClippedSGD(params, lr=0.1, nonfinite="error")
    grads = problem.gradients(0)
    grads[0] = grads[2] = None
    problem.step(optimizer, grads)
    with pytest.raises(RuntimeError, match=r"group 0\b"):
        problem.step(optimizer, [None, poisoned(grads[1:2], math.nan, 0)[0], None, grads[3]])
    assert optimizer.clipping_stats()["steps"] == 1


# Under a gradient scaler.


@pairwise(name=OPTIMIZERS, policy=POLICIES, flags=FLAGS, unscale=[False, True])
def test_scaler_leaves_out_its_overflows_whatever_the_policy(problem, name, policy, flags, unscale):
    clipped_class, options = OPTIMIZERS[name]

    def run(overflows):
        params = problem.parameters()
        optimizer = clipped_class(params, nonfinite=policy, clipping_type="auto", clipping_window=4, **options, **FLAGS[flags])
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1000)
        for step in range(8):
            if step in overflows:
                before = problem.copies(params), state_of(optimizer), optimizer.grad_norms()
                problem.scaled_step(scaler, optimizer, poisoned(problem.gradients(step), math.inf), unscale=unscale)
                assert equal(params, before[0])
                assert equal(state_of(optimizer), before[1])
                assert torch.equal(optimizer.grad_norms(), before[2])
            problem.scaled_step(scaler, optimizer, problem.gradients(step), unscale=unscale)
        assert scaler.get_scale() == 2.0 ** (12 - len(overflows))
        return [*params, *state_of(optimizer), optimizer.grad_norms()], optimizer.clipping_stats()

    (wanted, wanted_stats), (got, stats) = run(()), run((0, 3, 7))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert [stats[key] for key in COUNTS] == [wanted_stats[key] for key in COUNTS]


@pytest.mark.parametrize("clipping_type", ONE_A_KIND)
@pytest.mark.parametrize("flags", FLAGS)
def test_scaled_gradient_near_overflow_is_measured_without_its_scale(problem, clipping_type, flags):
    params = problem.parameters()
    options = {"clipping_type": clipping_type, "clipping_beta": 0.5} | FLAGS[flags]
    optimizer = ClippedSGD(params, lr=0.1, nonfinite="error", **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100, growth_interval=1000)
    before = problem.copies(params)
    problem.scaled_step(scaler, optimizer, problem.gradients(0, 1e5), unscale=False)
    stats = optimizer.clipping_stats()
    assert stats["steps"] == 1
    assert all(p.isfinite().all() for p in params)
    if clipping_type == "coord_wise":
        furthest = max(float((p - start).abs().max()) for p, start in zip(problem.copies(params), before, strict=True))
        assert furthest == pytest.approx(0.1 * 0.1, rel=1e-4)  # learning rate x level
    else:
        assert stats["grad_norm"] == pytest.approx(1e5, rel=1e-5)


# Norms of the whole gradient.


def test_infinite_norm_of_a_later_set_does_not_enter_the_norms_of_the_whole_gradient():
    first, second = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = ClippedSGD([{"params": [first]}, {"params": [second], "nonfinite": "propagate"}], lr=0.1)
    first.grad, second.grad = torch.tensor([3.0, 4.0]), torch.tensor([math.inf, 1.0])
    optimizer.step()
    assert len(optimizer.grad_norms()) == 0
    optimizer.load_state_dict(optimizer.state_dict())
