"""Copies and the representation of optimizers."""

import copy
import io
import pickle
import re

import pytest
import torch
from support.assertions import equal
from support.cases import pairwise
from support.properties import LEVEL_TYPES, OPTIMIZERS, stats_of

from torch_clipped import ClippedAdamW, ClippedSGD


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


@pairwise(clipping_type=["none", *LEVEL_TYPES], name=OPTIMIZERS, copied=[deepcopied, pickled, saved])
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


@pytest.mark.parametrize("clipping_type", LEVEL_TYPES)
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


@pytest.mark.parametrize("clipping_type", ["none", *LEVEL_TYPES])
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
