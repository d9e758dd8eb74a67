"""Programs that type checkers accept: the values are checked when it runs, in test_typing.py."""

from typing import Any

import torch
from torch import Tensor

from torch_clipped import (
    Clipped,
    ClippedAdam,
    ClippedAdamW,
    ClippedSGD,
    ClippingType,
    GradientClipper,
    clip_gradients_,
    clip_optimizer,
)


class ClippedRMSprop(Clipped, torch.optim.RMSprop):
    "RMSprop with gradient clipping."


class Derived(ClippedSGD):
    "A constructor of its own."

    def __init__(self, params: list[torch.nn.Parameter], level: float) -> None:
        super().__init__(params, 0.1, momentum=0.9, clipping_level=level)


def right() -> list[torch.optim.Optimizer]:
    model = torch.nn.Linear(2, 1)
    sgd: ClippedSGD = ClippedSGD(model.parameters(), 0.1, 0.9, 0, 1e-2, True, fused=True, clipping_type="auto", clipping_level=1)
    groups: list[dict[str, Any]] = [{"params": model.weight, "clipping_level": 2}, {"params": [model.bias]}]
    adam = ClippedAdam(groups, torch.tensor(0.1), (0.9, 0.99))
    adamw = ClippedAdamW(model.named_parameters(), lr=1e-3, amsgrad=True, norm_type=1, nonfinite="error", clipping_seed=3)
    mixed = ClippedRMSprop(model.parameters(), lr=0.1, alpha=0.9, clipping_window=10)
    clip_optimizer(torch.optim.Adagrad(model.parameters()), "zclip", 3, clipping_window=100)
    model(torch.ones(1, 2)).sum().backward()
    norm: Tensor = clip_gradients_(model.parameters(), "norm", 1.0, nonfinite="zero")
    clipper = GradientClipper(model.weight, clipping_type="auto", clipping_level=0.9, clipping_beta=0.5)
    norm = clipper.step() + norm
    known: ClippingType = "layer_wise"
    registered: str = "value"  # or a name that register_clipping was given
    for name in (known, registered):
        GradientClipper(model.weight, name)
    sgd.step()
    return [sgd, adam, adamw, mixed, Derived(list(model.parameters()), 2.0)]
