"""DeepSpeed: inside its ZeRO a clipped optimizer would measure one rank's share, and is refused; without ZeRO it clips.

The modules here stand in for DeepSpeed's and hand parameters over as those do: the optimizer is made with the parameters of the
model, its groups then get one flat tensor each, this rank's share, and `step` is called from the module that keeps the shares.
"""

import sys
from types import ModuleType

import pytest
import torch

from torch_clipped import ClippedAdamW, ClippedSGD, GradientClipper, clip_gradients_, clip_optimizer

FLAT = """
import torch

class Sharding:
    def __init__(self, optimizer, shares):
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            flat = torch.cat([p.detach().flatten() for p in group["params"]])
            share = flat.chunk(shares)[0].clone().requires_grad_()
            share.grad = torch.cat([p.grad.flatten() for p in group["params"]]).chunk(shares)[0].clone()
            group["params"] = [share]

    def _optimizer_step(self, index):
        groups = self.optimizer.param_groups
        self.optimizer.param_groups = [groups[index]]
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups

    def step(self):
        for index in range(len(self.optimizer.param_groups)):
            self._optimizer_step(index)
"""
ENGINE = """
class Engine:
    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        self.optimizer.step()
"""
SHARDING = [
    "deepspeed.runtime.zero.stage_1_and_2",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.bf16_optimizer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zenflow.zenflow_stage_1_and_2",
]
OPTIMIZERS = {
    "class": lambda params, kind: ClippedSGD(params, lr=0.1, clipping_type=kind),
    "fused class": lambda params, kind: ClippedAdamW(params, lr=0.1, clipping_type=kind),
    "clip_optimizer": lambda params, kind: clip_optimizer(torch.optim.SGD(params, lr=0.1), kind),
}


@pytest.fixture
def deepspeed(monkeypatch):
    """Make a module of DeepSpeed's with this name and code."""

    def make(name, code):
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), ModuleType(".".join(parts[:i])))
        exec(code, vars(sys.modules[name]))
        return sys.modules[name]

    return make


def parameters():
    params = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))]
    for p in params:
        p.grad = torch.tensor([30.0, 40.0])
    return params


@pytest.mark.parametrize(
    ("name", "make", "grouped"),
    [*((name, "class", True) for name in SHARDING), *((SHARDING[0], make, False) for make in OPTIMIZERS)],
)
def test_clipping_inside_zero_is_refused_before_anything_changes(deepspeed, name, make, grouped):
    params = parameters()
    optimizer = OPTIMIZERS[make]([{"params": [p]} for p in params] if grouped else params, "norm")
    sharding = deepspeed(name, FLAT).Sharding(optimizer, shares=2)
    for _ in range(2):
        with pytest.raises(ValueError, match="clipping_type must be 'none' inside DeepSpeed's ZeRO, got 'norm'") as caught:
            sharding.step()
        assert '"gradient_clipping" in the DeepSpeed config' in str(caught.value)
    for group in optimizer.param_groups:
        assert torch.equal(group["params"][0], torch.zeros_like(group["params"][0]))
    assert optimizer.clipping_stats()["steps"] == 0


@pytest.mark.parametrize("name", SHARDING)
def test_clipping_type_none_trains_inside_zero(deepspeed, name):
    optimizer = ClippedSGD(parameters(), lr=0.1, clipping_type="none")
    deepspeed(name, FLAT).Sharding(optimizer, shares=2).step()
    assert torch.equal(optimizer.param_groups[0]["params"][0], torch.tensor([-3.0, -4.0]))


@pytest.mark.parametrize("make", ["class", "clip_optimizer"])
def test_without_zero_deepspeed_clips_as_any_loop(deepspeed, make):
    params = parameters()
    deepspeed("deepspeed.runtime.engine", ENGINE).Engine(OPTIMIZERS[make](params, "norm")).step()
    for p in params:
        assert torch.allclose(p.grad, torch.tensor([0.6, 0.8]) / 2**0.5)


def with_group_added(params):
    optimizer = ClippedSGD([torch.nn.Parameter(torch.zeros(1))])
    optimizer.add_param_group({"params": params})
    return optimizer


@pytest.mark.parametrize(
    "clip",
    [
        lambda params: ClippedSGD(params),
        lambda params: clip_optimizer(torch.optim.SGD(params)),
        lambda params: GradientClipper(params),
        lambda params: clip_gradients_(params),
        lambda params: with_group_added(params).step(),
    ],
)
def test_parameters_of_stage_3_are_refused(clip):
    whole, share = parameters()
    share.ds_id, share.ds_tensor = 0, torch.zeros(1)  # what zero.Init and stage 3 set
    with pytest.raises(ValueError, match="parameters must be whole tensors or DTensors") as caught:
        clip([whole, share])
    assert '"gradient_clipping" in the DeepSpeed config' in str(caught.value)
    ClippedSGD([whole, share], clipping_type="none").step()
