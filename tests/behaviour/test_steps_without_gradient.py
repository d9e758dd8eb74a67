"""Steps in which no gradient is there, or nothing but zeros."""

import pytest
import torch
from support.assertions import equal
from support.cases import pairwise
from support.nonfinite import POLICIES
from support.properties import LEVEL_TYPES, OPTIMIZERS, stats_of

from torch_clipped import ClippedAdam, ClippedSGD


@pairwise(clipping_type=LEVEL_TYPES, name=OPTIMIZERS, nothing=["zeros", "none", "some zeros, some none"])
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


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise", "coord_wise"])
def test_step_of_zeros_is_not_counted_whatever_the_policy(clipping_type, policy):
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = ClippedSGD([weight], clipping_type=clipping_type, nonfinite=policy)
    for gradient, steps in ((0.0, 0), (1.0, 1), (0.0, 1)):
        weight.grad = torch.full((3,), gradient)
        optimizer.step()
        assert optimizer.clipping_stats()["steps"] == steps
