"""Types, optimizers and gradients of one number that the tests of properties share."""

import pytest
import torch

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD

GLOBAL = ["norm", "auto", "linear_rand_norm", "quadratic_rand_norm", "linear_rand_auto", "quadratic_rand_auto"]
TYPES = [*GLOBAL, "layer_wise", "coord_wise"]
OPTIMIZERS = {
    "sgd": (ClippedSGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "adam": (ClippedAdam, torch.optim.Adam, {"lr": 0.05, "weight_decay": 0.01}),
    "adamw": (ClippedAdamW, torch.optim.AdamW, {"lr": 0.05, "amsgrad": True}),
}
FLAGS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False, "fused": False}}


def state_of(optimizer):
    """Everything in ``optimizer.state``, as a flat list of tensors."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [torch.as_tensor(v).clone() for p in params for _, v in sorted(optimizer.state[p].items()) if v is not None]


def stats_of(optimizer):
    return pytest.approx(optimizer.clipping_stats(), rel=0, abs=0, nan_ok=True)


def step_scalars(optimizer, *gradients):
    """Step with one-element gradients; the clipped gradients."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p, g in zip(params, gradients, strict=True):
        p.grad = torch.tensor([float(g)], dtype=p.dtype)
    optimizer.step()
    return [p.grad.item() for p in params]


def scalars(count=1, dtype=torch.float32):
    return [torch.nn.Parameter(torch.zeros(1, dtype=dtype)) for _ in range(count)]
