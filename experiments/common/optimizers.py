"""Name torch's optimizers, their clipped classes, and the arguments of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD

OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], Callable[..., Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, ClippedSGD, {"momentum": 0.9}),
    "adam": (Adam, ClippedAdam, {}),
    "adamw": (AdamW, ClippedAdamW, {}),
}
