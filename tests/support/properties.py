"""Types, optimizers and gradients of one number that the tests of properties share."""

import pytest
import torch

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD

from .cases import FLAGS, LEVELS, parameters_of

GLOBAL = ["norm", "auto", "linear_rand_norm", "quadratic_rand_norm", "linear_rand_auto", "quadratic_rand_auto"]
LEVEL_TYPES = list(LEVELS)
OPTIMIZERS = {
    "sgd": (ClippedSGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "adam": (ClippedAdam, torch.optim.Adam, {"lr": 0.05, "weight_decay": 0.01}),
    "adamw": (ClippedAdamW, torch.optim.AdamW, {"lr": 0.05, "amsgrad": True}),
}
KERNELS = {name: flags for name, flags in FLAGS.items() if name != "chosen"}


def stats_of(optimizer):
    return pytest.approx(optimizer.clipping_stats(), rel=0, abs=0, nan_ok=True)


def step_scalars(optimizer, *gradients):
    """Step with one-element gradients; the clipped gradients."""
    params = parameters_of(optimizer)
    for p, g in zip(params, gradients, strict=True):
        p.grad = torch.tensor([float(g)], dtype=p.dtype)
    optimizer.step()
    return [p.grad.item() for p in params]


def scalars(count=1, dtype=torch.float32):
    return [torch.nn.Parameter(torch.zeros(1, dtype=dtype)) for _ in range(count)]
