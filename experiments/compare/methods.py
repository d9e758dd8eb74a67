"""The methods that ``compare`` compares, and the learning rates among which each chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, Optimizer

from torch_clipped import ClippedAdam, ClippedSGD
from torch_clipped.clipping import CLIPPING_TYPES

from .task import Task

Grids = dict[str, tuple[float, ...]]
MOMENTUM: dict[str, Any] = {"momentum": 0.9}
LEARNING_RATES: Grids = {"SGD": (0.01, 0.04, 0.16, 0.64), "Adam": (0.0005, 0.002, 0.008, 0.032)}


@dataclass(frozen=True)
class Method:
    """An optimizer without its learning rate; ``baseline`` is the label of the unclipped one, and the key of the grid."""

    label: str
    baseline: str
    optimizer: Callable[..., Optimizer]
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def clips(self) -> bool:
        """Whether it has a baseline other than itself."""
        return self.label != self.baseline

    def make(self, parameters: Iterable[nn.Parameter], lr: float) -> Optimizer:
        """The optimizer."""
        return self.optimizer(parameters, lr=lr, **self.arguments)


def methods() -> list[Method]:
    """SGD and Adam without clipping, ClippedSGD with every clipping type at its default level, ClippedAdam with type norm."""
    types = {
        name: {"clipping_type": name, "clipping_level": rule.threshold.default_level}
        for name, rule in CLIPPING_TYPES.items()
        if rule
    }
    return [
        Method("SGD", "SGD", SGD, MOMENTUM),
        Method("Adam", "Adam", Adam),
        *(Method(f"ClippedSGD {name}", "SGD", ClippedSGD, MOMENTUM | clipping) for name, clipping in types.items()),
        Method("ClippedAdam norm", "Adam", ClippedAdam, types["norm"]),
    ]


def learning_rates(task: Task) -> Grids:
    """The task's own grids if it has any, else ``LEARNING_RATES``; ascending, and of one length."""
    grids: Grids = getattr(task, "learning_rates", LEARNING_RATES)
    return grids
