"""Bad state of ClippedSSTM: refused by name before anything changes."""

import copy
import math

import pytest
import torch
from support.assertions import bits
from torch import nn

from torch_clipped import ClippedSSTM


def made(lr=0.1):
    params = [nn.Parameter(torch.arange(3.0)), nn.Parameter(torch.ones(2, dtype=torch.complex64)), nn.Parameter(torch.ones(2))]
    return ClippedSSTM([{"params": params[:2]}, {"params": params[2:], "lr": lr / 2}], lr, 2.0, 0.7, 0.9, 2)


def go_on(optimizer, steps):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(steps):
        for p in params[:2]:  # the third one has no state yet
            p.grad = 30 * p.detach() + 1
        optimizer.step()
    return params


def trained(steps=4):
    optimizer = made()
    go_on(optimizer, steps)
    return optimizer


def in_state(**entries):
    return lambda state: state["state"][0].update(entries)


def in_group(**entries):
    return lambda state: state["param_groups"][1].update(entries)


ONE = torch.zeros(3)
BAD = {
    "param_groups": (
        lambda state: state.pop("param_groups"),
        "state_dict must be .* ClippedSSTM, but has no 'param_groups'",
    ),
    "state": (lambda state: state.pop("state"), "state_dict must be one of a ClippedSSTM, but has no 'state'"),
    "state list": (lambda state: state.update(state=[]), "must be a list and a dict, got a list and a list"),
    "group": (lambda state: state.update(param_groups=[3]), r"param_groups\[0\] must be one of a ClippedSSTM, got a int"),
    "fewer groups": (lambda state: state["param_groups"].pop(), "different number of parameter groups"),
    "fewer parameters": (lambda state: state["param_groups"][0]["params"].pop(), "doesn't match the size"),
    "of SGD": (
        lambda state: state["param_groups"][0].pop("L"),
        r"param_groups\[0\] must be .* ClippedSSTM, but has no 'L'",
    ),
    "lr NaN": (in_group(lr=math.nan), r"param_groups\[1\]: lr must be a finite number, got nan"),
    "lr text": (in_group(lr="0.1"), r"param_groups\[1\]: lr must be a finite number, got '0.1'"),
    "L 0": (in_group(L=0), r"param_groups\[1\]: L must be a number positive and finite, got 0"),
    "nu -1": (in_group(nu=-1), r"param_groups\[1\]: nu must be a number from 0 to 1, got -1"),
    "ratio": (in_group(a_k_ratio_upper_bound=2), r"a_k_ratio_upper_bound must be a number over 0 and at most 1, got 2"),
    "first True": (in_group(first_clipped_iteration=True), "first_clipped_iteration must be an integer >= 1, got True"),
    "first 0": (in_group(first_clipped_iteration=0), "first_clipped_iteration must be an integer >= 1, got 0"),
    "train_mode": (in_group(train_mode="yes"), "train_mode must be True or False, got 'yes'"),
    "empty": (lambda state: state["state"].update({0: None}), r"state\[0\] must be one of a ClippedSSTM, got a NoneType"),
    "of Adam": (lambda state: state["state"][0].pop("A"), r"state\[0\] must be one of a ClippedSSTM, but has no 'A'"),
    "step -1": (in_state(step=-1), r"state\[0\]\['step'\] must be an integer >= 0, got -1"),
    "step 2**63": (in_state(step=2**63), r"state\[0\]\['step'\] must be an integer >= 0, got 9223372036854775808"),
    "step 1.5": (in_state(step=1.5), r"state\[0\]\['step'\] must be an integer >= 0, got 1.5"),
    "step True": (in_state(step=True), r"state\[0\]\['step'\] must be an integer >= 0, got True"),
    "A -1": (in_state(A=-1.0), r"state\[0\]\['A'\] must be a number at least 0 and finite, got -1.0"),
    "A inf": (in_state(A=math.inf), r"state\[0\]\['A'\] must be a number at least 0 and finite, got inf"),
    "A list": (in_state(A=[1.0]), r"state\[0\]\['A'\] must be a number at least 0 and finite, got \[1.0\]"),
    "share 2": (in_state(share=2.0), r"state\[0\]\['share'\] must be a number from 0 to 1, got 2.0"),
    "y None": (in_state(y=None), r"state\[0\]\['y'\] must be a tensor of shape \(3,\), got None"),
    "z shape": (in_state(z=torch.zeros(1)), r"state\[0\]\['z'\] must fit its parameter, .*\(3,\).*, got .*\(1,\)"),
    "z complex": (in_state(z=ONE.cfloat()), r"state\[0\]\['z'\] must fit .*torch.float32.*, got .*torch.complex64"),
    "y integer": (in_state(y=ONE.long()), r"state\[0\]\['y'\] must fit .*torch.float32.*, got .*torch.int64"),
    "y sparse": (lambda state: state["state"][0].update(y=ONE.to_sparse()), r"state\[0\]\['y'\] must fit .*got a sparse_coo"),
    "y meta": (in_state(y=ONE.to("meta")), r"state\[0\]\['y'\] must fit .* on cpu, got .* on meta"),
    "y real": (lambda state: state["state"][1].update(y=torch.zeros(2)), r"state\[1\]\['y'\] must fit .*torch.complex64.*, got"),
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("case", BAD)
def test_bad_state_is_refused_and_the_optimizer_stays_as_it_was(case, mode):
    spoil, message = BAD[case]
    optimizer, twin = trained(), trained()
    for one in (optimizer, twin):
        getattr(one, mode)()
    before = bits([optimizer.state_dict(), *go_on(optimizer, 0)])
    state = copy.deepcopy(optimizer.state_dict())
    spoil(state)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert bits([optimizer.state_dict(), *go_on(optimizer, 0)]) == before
    for one in (optimizer, twin):
        one.train()
    assert bits(go_on(optimizer, 3)) == bits(go_on(twin, 3))


@pytest.mark.parametrize("wrong", [None, [1, 2], 3])
def test_a_state_that_is_no_dict_is_refused(wrong):
    with pytest.raises(ValueError, match="state_dict must be one of a ClippedSSTM, got a "):
        trained().load_state_dict(wrong)


def test_a_loaded_tensor_is_a_plain_copy():
    optimizer, twin, source = trained(), trained(), trained()
    state = source.state_dict()
    state["state"][0]["z"].requires_grad_()
    optimizer.load_state_dict(state)
    with torch.no_grad():
        for name in "yz":
            state["state"][0][name].fill_(9)
    assert bits(go_on(optimizer, 3)) == bits(go_on(twin, 3))
    assert bits(state["state"][0]["y"]) == bits(torch.full((3,), 9.0))


def test_what_the_hooks_of_others_return_is_checked():
    optimizer = trained()
    optimizer.register_load_state_dict_pre_hook(lambda _, state: state["state"][0].update(A=-1.0))
    before = bits(optimizer.state_dict())
    for _ in range(2):
        with pytest.raises(ValueError, match=r"state\[0\]\['A'\] must be a number at least 0 and finite, got -1.0"):
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert bits(optimizer.state_dict()) == before


def test_every_state_of_a_run_loads_though_a_scheduler_ends_below_zero_or_weights_are_not_finite():
    optimizer = made()
    weight, *_ = go_on(optimizer, 0)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.3, 0.0, 3)
    for step in range(7):
        if step == 5:
            optimizer.state[weight]["y"][0] = math.inf
        state = copy.deepcopy(optimizer.state_dict())
        other = made()
        other.load_state_dict(state)
        assert bits(other.state_dict()) == bits(state)
        weight.grad = torch.ones(3)
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] < 0
    assert optimizer.state_dict()["state"][0]["share"] == 0
    assert not weight[0].isfinite()
