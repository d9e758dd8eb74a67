"""Policies and poisoned gradients that the tests of gradients that are not finite share."""

import math
import warnings

import pytest
import torch

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD, ClippingWarning

from .assertions import equal

OPTIMIZERS = {
    "sgd": (ClippedSGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "adam": (ClippedAdam, {"lr": 0.05, "amsgrad": True}),
    "adamw": (ClippedAdamW, {"lr": 0.05}),
}
POLICIES = ["skip", "error", "zero", "propagate"]
VALUES = [math.nan, math.inf, -math.inf]


def equal_or_both_nan(left, right):
    return all(
        torch.equal(a.isnan(), b.isnan()) and equal([a.nan_to_num()], [b.nan_to_num()]) for a, b in zip(left, right, strict=True)
    )


def told(optimizer, *, without_skips):
    """All that the optimizer tells about its clipping."""
    stats = [optimizer.clipping_stats(), *optimizer.clipping_stats(per_set=True)]
    return [pytest.approx(s | {"skipped_steps": 0.0} if without_skips else s, rel=0, abs=0, nan_ok=True) for s in stats]


def plain(stats):
    return [s | {"skipped_steps": 0.0} for s in stats]


def poisoned(grads, value, tensor=1, entry=0):
    grads = [g.clone() for g in grads]
    grads[tensor].view(-1)[entry] = value
    return grads


def quietly_step(problem, optimizer, grads):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClippingWarning)
        return problem.step(optimizer, grads)
