"""Mixins of any optimizer, and clipping by hand: what the tests of the ways to clip share."""

import pytest
import torch

from torch_clipped import Clipped

from .cases import gradients_of, parameters_of

MATRICES = ((4, 3), (2, 5), (3, 3))
BASES = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "Adam": {"lr": 0.01, "weight_decay": 0.01},
    "AdamW": {"lr": 0.01},
    "RMSprop": {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01},
    "Adagrad": {"lr": 0.05, "lr_decay": 0.01},
    "NAdam": {"lr": 0.01, "weight_decay": 0.01},
    "Muon": {"lr": 0.02, "momentum": 0.9},
    "Lion": {"lr": 0.01, "weight_decay": 0.1},
}


def base(name):
    """The plain optimizer class of that name."""
    if name == "Lion":
        return pytest.importorskip("lion_pytorch", reason="lion-pytorch stands for the optimizers of third parties").Lion
    if not hasattr(torch.optim, name):
        pytest.skip(f"torch {torch.__version__} has no {name}")
    return getattr(torch.optim, name)


def mixed(name):
    return type(f"Clipped{name}", (Clipped, base(name)), {"__doc__": f"{name} that clips."})


def shapes_of(name, problem):
    return MATRICES if name == "Muon" else problem.shapes  # Muon takes matrices only


def step_by_hand(optimizer, clipper, grads):
    """Set gradients, clip them with a GradientClipper and step; the norm before and the clipped gradients."""
    params = parameters_of(optimizer)
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    norm = clipper.step()
    optimizer.step()
    return norm, gradients_of(params)


def with_gradients(problem, norm=5.0, dtype=torch.float64):
    params = problem.parameters(dtype)
    for p, g in zip(params, problem.gradients(0, norm=norm, dtype=dtype), strict=True):
        p.grad = g
    return params
