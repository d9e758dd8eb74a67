"""Optimizers and closures that the tests of training loops share."""

import torch

from torch_clipped import Clipped, ClippedAdam, ClippedAdamW, ClippedSGD

from .cases import ONE_A_KIND, TYPES

CLASSES = {
    "SGD": (ClippedSGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "Adam": (ClippedAdam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.01}),
    "AdamW": (ClippedAdamW, torch.optim.AdamW, {"lr": 0.01}),
}


class ClippedRMSprop(Clipped, torch.optim.RMSprop):
    """RMSprop that clips."""


def each_type_with(value, *others):
    """Rows of an axis that does not choose how a type clips: each type with one value, one type of each kind with the others."""
    return [(clipping_type, value) for clipping_type in TYPES] + [(kind, other) for other in others for kind in ONE_A_KIND]


def closure_of(optimizer, params, grads, calls):
    """A closure whose gradients are ``grads``."""

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = sum((p * g).sum() for p, g in zip(params, grads, strict=True))
        loss.backward()
        return loss

    return closure
