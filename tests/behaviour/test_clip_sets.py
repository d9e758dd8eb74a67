"""Clip sets: which parameter groups are clipped together."""

import numpy as np
import pytest
import torch
from support.assertions import equal
from support.properties import OPTIMIZERS, scalars, step_scalars

from torch_clipped import ClippedSGD


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
