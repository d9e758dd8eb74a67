"""Gradients with spikes, and the slow oracle's clipping of gradients of any kind."""

import torch

from torch_clipped import ClippedAdamW, ClippedSGD
from torch_clipped.decisions import uniform

from .problems import Problem
from .reference import ReferenceClipper

CLASSES = {
    "SGD": (ClippedSGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "AdamW": (ClippedAdamW, torch.optim.AdamW, {"lr": 0.01}),
}
LEVELS = {
    "adaptive": 0.05,
    "auto": 0.5,
    "linear_rand_auto": 0.5,
    "quadratic_rand_auto": 0.5,
    "zscore": 1.0,
    "layer_wise_zscore": 1.0,
}
DIGITS = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


class Spiky(Problem):
    """With spikes once every warm-up is over."""

    def gradients(self, step, norm=None, dtype=torch.float32, shapes=Problem.shapes):
        grads = super().gradients(step, norm, dtype, shapes)
        return [g * 50 for g in grads] if norm is None and is_spike(step) else grads


def is_spike(step):
    return 31 <= step < 90 and step % 3 == 1


def arguments_of(clipping_type):
    return {
        "clipping_type": clipping_type,
        "clipping_level": LEVELS.get(clipping_type),
        "clipping_window": 6,
        "clipping_seed": 3,
    }


class Oracle:
    """The slow oracle fed with tensors."""

    def __init__(self, clipping_type):
        self.clipper = ReferenceClipper(clipping_type, LEVELS.get(clipping_type), window=6)

    def clip(self, grads, params):
        """The clipped gradients, flat and in double precision."""
        numbers = [None if g is None else wide(g).flatten().tolist() for g in grads]
        weights, shapes = [wide(p.detach()).flatten().tolist() for p in params], [p.shape for p in params]
        draw = uniform(3, 0, self.clipper.steps)
        clipped = self.clipper.clip(numbers, weights=weights, uniform=draw, shapes=shapes)
        return [
            None if c is None else torch.tensor(c, dtype=wide(p.detach()).dtype) for c, p in zip(clipped, params, strict=True)
        ]


def wide(tensor):
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def assert_oracles(clipped, wanted, what, digits=0.0):
    for g, w in zip(clipped, wanted, strict=True):
        assert (g is None) == (w is None), what
        if g is not None and g.numel() > 0:
            bound = max(digits, DIGITS.get(g.dtype, 2e-5)) * w.abs().max().item()
            assert (wide(g).flatten() - w).abs().max().item() <= bound, what
