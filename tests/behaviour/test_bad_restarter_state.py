"""Bad state of Restarter and LevelScheduler: refused by name, and everything stays as it was."""

import math

import pytest
import torch
from support.assertions import bits
from support.cases import saved_and_loaded
from torch import nn, optim

from torch_clipped import ClippedSGD, LevelScheduler, Restarter, linear_warmup


def weights():
    return [nn.Parameter(torch.arange(3.0)), nn.Parameter(torch.ones(2, dtype=torch.complex64))]


def trained_restarter(average="mean", steps=7):
    """Windows of 5 and 6 steps: after 7 steps one restart, and two steps in the window."""
    optimizer = optim.SGD(weights(), lr=0.1)
    restarter = Restarter(optimizer, 5, average=average)
    go_on(restarter, steps)
    return restarter


def go_on(restarter, steps):
    params = restarter.optimizer.param_groups[0]["params"]
    for _ in range(steps):
        for p in params:
            p.grad = p.detach() + 1
        restarter.optimizer.step()
        restarter.step()
    return params


ONE, TWO = torch.zeros(3), torch.zeros(2, dtype=torch.complex64)


def bad_restarts():
    """Return wrong values of a state and the error, by name."""
    return {
        "no dict": (None, "state_dict must be one of a Restarter, got a NoneType"),
        "a list": ([1, 2], "state_dict must be one of a Restarter, got a list"),
        "another key": ({"lr": 0.1}, "state_dict must be one of a Restarter, which has no 'lr'"),
        "another average": ({"average": "last"}, "average='mean', got 'last'"),
        "average": ({"average": torch.zeros(2)}, "average='mean', got tensor"),
        "window abc": ({"window": "abc"}, "window must be an integer >= 1, got 'abc'"),
        "window 0": ({"window": 0}, "window must be an integer >= 1, got 0"),
        "window True": ({"window": True}, "window must be an integer >= 1, got True"),
        "window 2.5": ({"window": 2.5}, "window must be an integer >= 1, got 2.5"),
        "window NaN": ({"window": math.nan}, "window must be an integer >= 1, got nan"),
        "window None": ({"window": None}, "window must be an integer >= 1, got None"),
        "window tensor": ({"window": torch.tensor(5)}, r"window must be an integer >= 1, got tensor\(5\)"),
        "steps": ({"steps": -1}, "steps must be an integer >= 0, got -1"),
        "steps 2**63": ({"steps": 2**63}, f"steps must be an integer >= 0, got {2**63}"),
        "restarts": ({"restarts": -1}, "restarts must be an integer >= 0, got -1"),
        "window_steps": ({"window_steps": -1}, "window_steps must be an integer >= 0, got -1"),
        "fewer steps than the window has": ({"steps": 2}, r"steps must be at least window_steps \+ restarts = 3, got 2"),
        "more restarts than steps": ({"restarts": 9}, r"steps must be at least window_steps \+ restarts = 11, got 7"),
        "counts -1": ({"counts": [-1, -1]}, r"counts\[0\] must be an integer >= 0, got -1"),
        "counts 2**63": ({"counts": [2, 2**63]}, r"counts\[1\] must be an integer >= 0"),
        "counts True": ({"counts": [True, True]}, r"counts\[0\] must be an integer >= 0, got True"),
        "counts 1.0": ({"counts": [1.0, 1.0]}, r"counts\[0\] must be an integer >= 0, got 1.0"),
        "counts beyond the window": ({"counts": [2, 3]}, r"counts\[1\] must be at most 2, the steps that are averaged, got 3"),
        "fewer counts": ({"counts": [2]}, "counts must be of 2 parameters, as the optimizer has, got 1"),
        "more means": ({"means": [ONE, TWO, ONE]}, "means must be of 2 parameters, as the optimizer has, got 3"),
        "counts 3": ({"counts": 3}, "counts must be a list of one value a parameter, got a int"),
        "means tensor": ({"means": torch.zeros(2, 3)}, "means must be a list of one value a parameter, got a Tensor"),
        "mean without count": ({"counts": [0, 2]}, r"means\[0\] must be None where counts\[0\] is 0, got a Tensor"),
        "count without mean": ({"means": [None, TWO]}, r"means\[0\] must be a tensor of shape \(3,\), got None"),
        "mean list": ({"means": [[0.0] * 3, TWO]}, r"means\[0\] must be a tensor of shape \(3,\), got \[0.0, 0.0, 0.0\]"),
        "mean shape": ({"means": [torch.zeros(4), TWO]}, r"means\[0\] must fit its parameter, .*\(3,\).*, got .*\(4,\)"),
        "mean to broadcast": ({"means": [torch.zeros(()), TWO]}, r"means\[0\] must fit"),
        "mean integer": ({"means": [ONE.long(), TWO]}, r"means\[0\] must fit .*torch.float32.*, got .*torch.int64"),
        "mean bool": ({"means": [ONE, TWO.abs() > 0]}, r"means\[1\] must fit .*torch.complex64.*, got .*torch.bool"),
        "mean complex": ({"means": [ONE.cfloat(), TWO]}, r"means\[0\] must fit .*torch.float32.*, got .*torch.complex64"),
        "mean real": ({"means": [ONE, TWO.real]}, r"means\[1\] must fit .*torch.complex64.*, got .*torch.float32"),
        "mean sparse": ({"means": [ONE.to_sparse(), TWO]}, r"means\[0\] must fit its parameter, a strided .*, got a sparse_coo"),
        "mean meta": ({"means": [ONE.to("meta"), TWO]}, r"means\[0\] must fit .*on cpu, got .*on meta"),
    }


@pytest.mark.parametrize("case", list(bad_restarts()))
def test_a_restarter_refuses_bad_state_and_stays_as_it_was(case):
    wrong, message = bad_restarts()[case]
    restarter, twin = trained_restarter(), trained_restarter()
    before = bits(restarter.state_dict())
    with pytest.raises(ValueError, match=message):
        restarter.load_state_dict(restarter.state_dict() | wrong if isinstance(wrong, dict) else wrong)
    assert bits(restarter.state_dict()) == before
    assert bits(go_on(restarter, 6)) == bits(go_on(twin, 6))
    assert restarter.restarts == 2


@pytest.mark.parametrize("key", ["average", "steps", "restarts", "window", "window_steps", "counts", "means"])
def test_a_restarter_needs_every_key(key):
    restarter = trained_restarter()
    state = restarter.state_dict()
    before = bits(state)
    del state[key]
    with pytest.raises(ValueError, match=f"state_dict must be one of a Restarter, but has no '{key}'"):
        restarter.load_state_dict(state)
    assert bits(restarter.state_dict()) == before


def test_a_restarter_without_an_average_refuses_means():
    restarter = trained_restarter(average="last")
    state = restarter.state_dict()
    with pytest.raises(ValueError, match=r"counts\[0\] must be at most 0, the steps that are averaged, got 2"):
        restarter.load_state_dict(state | {"counts": [2, 2], "means": [ONE, TWO]})
    assert bits(restarter.state_dict()) == bits(state)


def test_a_loaded_mean_is_a_plain_copy():
    restarter, twin = trained_restarter(), trained_restarter()
    state = restarter.state_dict()
    for mean in state["means"]:
        mean.requires_grad_()
    restarter.load_state_dict(state)
    with torch.no_grad():
        for mean in state["means"]:
            mean.fill_(9)
    assert not any(mean.requires_grad for mean in restarter.state_dict()["means"])
    assert bits(go_on(restarter, 6)) == bits(go_on(twin, 6))


def test_state_is_that_of_its_step_while_training_goes_on():
    restarter = trained_restarter()
    state = restarter.state_dict()
    before = bits(state)
    go_on(restarter, 1)
    assert bits(state) == before


@pytest.mark.parametrize("coeff", [1.25, 1e308])
def test_every_state_of_a_run_loads(coeff):
    def made():
        return Restarter(optim.SGD(weights(), lr=0.1), 2, coeff, 3)

    restarter = made()
    for step in range(12):
        with torch.no_grad():
            if step == 1:
                restarter.optimizer.param_groups[0]["params"][0][0] = math.inf  # a mean that is not finite is an honest one
        state = saved_and_loaded(restarter.state_dict())
        other = made()
        other.load_state_dict(state)
        assert bits(other.state_dict()) == bits(state)
        go_on(restarter, 1)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_entry_whose_mean_is_not_finite_keeps_its_last_iterate(bad):
    restarter, twin = trained_restarter(), trained_restarter()
    state = restarter.state_dict()
    state["means"][0][1] = bad
    restarter.load_state_dict(state)
    go_on(restarter, 3)
    params, right = go_on(restarter, 0), go_on(twin, 4)
    for p in params:
        p.grad = p.detach() + 1
    restarter.optimizer.step()
    last = params[0].detach().clone()
    restarter.step()
    assert restarter.restarts == twin.restarts == 2
    assert params[0].tolist() == [right[0][0].item(), last[1].item(), right[0][2].item()]
    assert math.isfinite(last[1])
    assert bits(params[1]) == bits(right[1])


# levels


def scheduled(levels=None):
    """A scheduler after four steps, whose schedule raises at 100 and has no level at 200."""

    def schedule(step):
        if step == 100:
            raise LookupError("no level known")
        return -1.0 if step == 200 else 0.5 + step

    optimizer = ClippedSGD([{"params": [nn.Parameter(torch.ones(2))]}, {"params": [nn.Parameter(torch.ones(3))]}], lr=0.1)
    scheduler = LevelScheduler(optimizer, levels or [linear_warmup(1.0, 2.0, steps=8), schedule])
    for _ in range(4):
        scheduler.step()
    return scheduler


BAD_LEVELS = {
    "no dict": (3, "state_dict must be one of a LevelScheduler, got a int"),
    "empty": ({}, "state_dict must be one of a LevelScheduler, but has no 'last_epoch'"),
    "of a learning rate scheduler": ({"last_epoch": 3, "base_lrs": [0.1]}, "of a LevelScheduler, which has no 'base_lrs'"),
    "2.5": ({"last_epoch": 2.5}, "last_epoch must be an integer >= 0, got 2.5"),
    "text": ({"last_epoch": "3"}, "last_epoch must be an integer >= 0, got '3'"),
    "True": ({"last_epoch": True}, "last_epoch must be an integer >= 0, got True"),
    "None": ({"last_epoch": None}, "last_epoch must be an integer >= 0, got None"),
    "-1": ({"last_epoch": -1}, "last_epoch must be an integer >= 0, got -1"),
    "2**63": ({"last_epoch": 2**63}, "last_epoch must be an integer >= 0, got 9223372036854775808"),
    "a step whose level is none": ({"last_epoch": 200}, r"clipping_level must be .*-1.0"),
}


@pytest.mark.parametrize("case", BAD_LEVELS)
def test_a_level_scheduler_refuses_bad_state_and_stays_as_it_was(case):
    wrong, message = BAD_LEVELS[case]
    scheduler = scheduled()
    with pytest.raises(ValueError, match=message):
        scheduler.load_state_dict(wrong)
    assert scheduler.state_dict() == {"last_epoch": 4}
    assert scheduler.get_last_level() == [1.5, 4.5]


def test_a_schedule_that_raises_changes_nothing():
    scheduler = scheduled()
    with pytest.raises(LookupError, match="no level known"):
        scheduler.load_state_dict({"last_epoch": 100})
    assert scheduler.state_dict() == {"last_epoch": 4}
    assert scheduler.get_last_level() == [1.5, 4.5]


@pytest.mark.parametrize("last_epoch", [2.5, "3", True, -2, None])
def test_a_level_scheduler_starts_at_an_integer(last_epoch):
    optimizer = ClippedSGD([torch.zeros(3)], lr=0.1, clipping_level=7.0)
    with pytest.raises(ValueError, match="last_epoch must be an integer >= -1, got "):
        LevelScheduler(optimizer, linear_warmup(0.1, 1.0, steps=9), last_epoch)
    assert optimizer.param_groups[0]["clipping_level"] == 7.0
