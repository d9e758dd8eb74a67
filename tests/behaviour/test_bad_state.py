"""States that cannot be loaded are refused by name, and leave the optimizer or clipper as it was."""

import copy
import math

import pytest
import torch
from torch import nn

from torch_clipped import ClippedAdamW, ClippedSGD, Clipping, GradientClipper, clip_optimizer, register_clipping
from torch_clipped.thresholds import Threshold

KEY = "clipping_memory_"


def trained_optimizer(clipping_type, make=ClippedSGD, steps=5):
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]
    optimizer = make(params, clipping_type=clipping_type, clipping_window=4)
    for step in range(steps):
        for p in params:
            p.grad = torch.full_like(p, 1.0 + step)
        optimizer.step()
    return optimizer


def trained_clipper(clipping_type, steps=5):
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]
    clipper = GradientClipper(params, clipping_type, clipping_window=4)
    for step in range(steps):
        for p in params:
            p.grad = torch.full_like(p, 1.0 + step)
        clipper.step()
    return clipper


def spoiled(value):
    """Ways in which a tensor of the state can be wrong, with a part of the error."""
    yield torch.full_like(value, -1), "from 0 to" if not value.is_floating_point() else "at least 0"
    if value.is_floating_point():
        yield torch.full_like(value, math.nan), "finite"
        yield torch.full_like(value, math.inf), "finite"
        yield value.clone().requires_grad_(), "without a gradient"
        yield value.to(torch.complex128), "real numbers"
    else:
        yield torch.full_like(value, 2**63 - 1), r"2\*\*62"
        yield value.double(), "integers"
        yield value.bool(), "real numbers"
    yield value.to_sparse(), "dense"
    yield value.to("meta"), "with numbers"
    yield value.tolist(), "tensor"
    yield None, "tensor"
    yield value[None, None], "shape|dimensions"


def names_of(clipping_type):
    group = trained_optimizer(clipping_type).param_groups[0]
    names = [key.removeprefix(KEY) for key, value in group.items() if key.startswith(KEY) and value.numel()]
    return [name for name in names if name not in ("last", "set_last")]


CASES = [
    (clipping_type, name)
    for clipping_type in ("norm", "auto", "zclip", "layer_wise_auto", "adagc")
    for name in names_of(clipping_type)
    if clipping_type == "norm" or name not in ("steps", "set_steps", "norms", "norms_count")
]


@pytest.mark.parametrize(("clipping_type", "name"), CASES)
def test_optimizer_refuses_bad_state_and_stays_as_it_was(clipping_type, name):
    optimizer = trained_optimizer(clipping_type)
    before = copy.deepcopy(optimizer.state_dict()), optimizer.clipping_stats(), optimizer.grad_norms()
    good = optimizer.state_dict()["param_groups"][0][KEY + name]
    for value, message in spoiled(good):
        state_dict = copy.deepcopy(optimizer.state_dict())
        state_dict["param_groups"][0][KEY + name] = value
        with pytest.raises(ValueError, match=f"{KEY}{name} .*({message})"):
            optimizer.load_state_dict(state_dict)
        after = optimizer.state_dict(), optimizer.clipping_stats(), optimizer.grad_norms()
        for one, other in zip(flat(after), flat(before), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("clipping_type", "name"), CASES)
def test_clipper_refuses_bad_state_and_stays_as_it_was(clipping_type, name):
    clipper = trained_clipper(clipping_type)
    before = clipper.state_dict(), clipper.clipping_stats(), clipper.grad_norms()
    for value, message in spoiled(clipper.state_dict()[KEY + name]):
        with pytest.raises(ValueError, match=f"{KEY}{name} .*({message})"):
            clipper.load_state_dict({**clipper.state_dict(), KEY + name: value})
        after = clipper.state_dict(), clipper.clipping_stats(), clipper.grad_norms()
        for one, other in zip(flat(after), flat(before), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def flat(value):
    """The numbers and tensors in nested dicts and lists."""
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, (list, tuple)):
        return [leaf for one in value for leaf in flat(one)]
    return [value] if isinstance(value, (int, float, torch.Tensor)) and not isinstance(value, bool) else []


@pytest.mark.parametrize(
    ("state_dict", "message"),
    [
        ({}, "has no 'clipping_type'"),
        (None, "got a NoneType"),
        ([1], "got a list"),
        ({"extra": 1}, "but has 'extra'"),
        ({"clipping_level": -1.0}, "clipping_level is a quantile"),
        ({"clipping_type": "nrom"}, "did you mean 'norm'"),
        ({"clipping_window": 10**12}, "clipping_window must leave room"),
    ],
)
def test_clipper_names_what_is_wrong_with_a_state(state_dict, message):
    clipper = trained_clipper("auto")
    if state_dict:
        state_dict = {**clipper.state_dict(), **state_dict} if isinstance(state_dict, dict) else state_dict
    before = clipper.state_dict()
    with pytest.raises(ValueError, match=message):
        clipper.load_state_dict(state_dict)
    torch.testing.assert_close(flat(clipper.state_dict()), flat(before), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("make", [ClippedSGD, ClippedAdamW])
def test_wrong_argument_in_a_checkpoint_leaves_optimizer_and_history_as_they_were(make):
    optimizer = trained_optimizer("auto", make)
    before = copy.deepcopy(optimizer.state_dict())
    for name, value in (("clipping_level", 7.0), ("clipping_type", "nrom"), ("nonfinite", "ignore"), ("clipping_window", 1)):
        state_dict = copy.deepcopy(optimizer.state_dict())
        state_dict["param_groups"][0][name] = value
        with pytest.raises(ValueError, match=f"parameter group 0: {name}"):
            optimizer.load_state_dict(state_dict)
        torch.testing.assert_close(flat(optimizer.state_dict()), flat(before), rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("table")
def test_state_of_a_threshold_of_ones_own_may_be_negative():
    class LogAverage(Threshold):
        """exp of the running mean of log norms."""

        def memory(self, blocks, window):
            return {"average": ((blocks,), torch.float64)}

        def __call__(self, blocks, level, memory):
            return level + 0 * memory.average

        def remember(self, blocks, clipped_lengths, memory):
            memory.average[...] = -1.0

    register_clipping("log_average", Clipping("layer", LogAverage(1.0)))
    optimizer = trained_optimizer("log_average")
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.param_groups[0]["clipping_memory_average"].tolist() == [-1.0, -1.0]


def test_group_whose_window_has_no_room_is_not_added():
    optimizer = trained_optimizer("auto")
    before = copy.deepcopy(optimizer.state_dict())
    group = {"params": [nn.Parameter(torch.ones(2))], "clipping_window": 10**12}
    with pytest.raises(ValueError, match=r"clipping_window must leave room .* got 1000000000000"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    optimizer.step()
    optimizer.add_param_group({"params": group["params"], "clipping_window": 5})
    optimizer.step()
    assert optimizer.clipping_stats()["steps"] == before["param_groups"][0][KEY + "steps"][0] + 2


@pytest.mark.parametrize(
    "make",
    [
        lambda p: ClippedSGD(p, clipping_window=10**12),
        lambda p: GradientClipper(p, "auto", clipping_window=10**12),
        lambda p: clip_optimizer(torch.optim.SGD(p), "auto", clipping_window=10**12),
    ],
)
def test_window_without_room_is_named(make):
    with pytest.raises(ValueError, match="clipping_window must leave room"):
        make([nn.Parameter(torch.ones(2))])


def test_window_without_room_that_was_written_between_steps_leaves_the_history():
    optimizer = trained_optimizer("auto")
    norms = optimizer.grad_norms()
    optimizer.param_groups[0]["clipping_window"] = 10**12
    with pytest.raises(ValueError, match="clipping_window must leave room"):
        optimizer.step()
    optimizer.param_groups[0]["clipping_window"] = 4
    assert torch.equal(optimizer.grad_norms(), norms)
    assert optimizer.param_groups[0][KEY + "count"].tolist() == [5]


def test_optimizer_that_cannot_be_clipped_for_want_of_room_stays_what_it_is():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))])
    keys = set(optimizer.param_groups[0])
    with pytest.raises(ValueError, match="clipping_window must leave room"):
        clip_optimizer(optimizer, "auto", clipping_window=10**12)
    assert type(optimizer) is torch.optim.SGD
    assert set(optimizer.param_groups[0]) == keys
