"""Optimizers that travel to other processes by cloudpickle, as Ray sends them, and loops whose data come from workers."""

import pickle
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from torch_clipped import Clipped, ClippedAdamW, ClippedSGD, clip_optimizer

TYPES = ["norm", "auto", "zclip", "adagc", "linear_rand_auto"]


def gradients(params, step):
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator) * (1 + step % 4)


def steps(optimizer, first, last):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(first, last):
        gradients(params, step)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in params]), optimizer.clipping_stats()


def new_params():
    return [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.zeros(4))]


def local(clipping_type):
    class ClippedRMSprop(Clipped, torch.optim.RMSprop):
        "RMSprop with gradient clipping."

    return ClippedRMSprop(new_params(), lr=0.1, clipping_type=clipping_type, clipping_window=6)


MADE = {
    "class of the package": lambda name: ClippedSGD(new_params(), lr=0.1, momentum=0.9, clipping_type=name, clipping_window=6),
    "class of a function": local,
    "clip_optimizer": lambda name: clip_optimizer(torch.optim.NAdam(new_params(), lr=0.1), name, clipping_window=6),
}


def assert_same(one, other):
    assert torch.equal(one[0], other[0])
    assert one[1] == pytest.approx(other[1], rel=0, nan_ok=True)


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("clipping_type", TYPES)
def test_optimizer_goes_on_after_cloudpickle_bit_for_bit(clipping_type, made):
    cloudpickle = pytest.importorskip("cloudpickle", reason="needs cloudpickle")
    optimizer = MADE[made](clipping_type)
    steps(optimizer, 0, 10)
    sent = pickle.loads(cloudpickle.dumps(optimizer))
    assert_same(steps(sent, 10, 20), steps(optimizer, 10, 20))
    assert type(sent).__name__ == type(optimizer).__name__


LOADING = """
import pickle, sys, torch
optimizer = pickle.load(sys.stdin.buffer)
for step in range(10, 20):
    generator = torch.Generator().manual_seed(step)
    for p in [p for group in optimizer.param_groups for p in group["params"]]:
        p.grad = torch.randn(p.shape, generator=generator) * (1 + step % 4)
    optimizer.step()
weights = torch.cat([p.detach().flatten() for group in optimizer.param_groups for p in group["params"]])
sys.stdout.buffer.write(pickle.dumps((weights.tolist(), optimizer.clipping_stats())))
"""


@pytest.mark.parametrize("made", MADE)
def test_another_process_takes_the_same_steps(made):
    cloudpickle = pytest.importorskip("cloudpickle", reason="needs cloudpickle")
    optimizer = MADE[made]("auto")
    steps(optimizer, 0, 10)
    done = subprocess.run([sys.executable, "-c", LOADING], input=cloudpickle.dumps(optimizer), capture_output=True, check=True)
    weights, stats = pickle.loads(done.stdout)
    assert_same((torch.tensor(weights), stats), steps(optimizer, 10, 20))


def trained(**loading):
    """Train on a loader that exists after the optimizer, whose state its workers inherit."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = ClippedAdamW(model.parameters(), lr=0.1, clipping_type="auto", clipping_level=0.5)
    data = TensorDataset(torch.randn(64, 4), torch.randn(64, 1))
    for _ in range(2):
        loader = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3), **loading)
        for inputs, targets in loader:
            optimizer.zero_grad()
            (model(inputs) - targets).square().mean().backward()
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), optimizer.clipping_stats()


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_loader_change_nothing(context):
    assert_same(trained(num_workers=2, multiprocessing_context=context), trained())
