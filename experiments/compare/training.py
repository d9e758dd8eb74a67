"""One training of ``compare``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from tqdm import tqdm

from torch_clipped import Clipped

from .methods import Method
from .task import Task

POINTS = 10  # at which the metric is measured after the start, the end included


@dataclass(kw_only=True)
class Training:
    """What was recorded; ``losses``, ``norms`` (before clipping) and ``clipped`` have an entry for every step."""

    method: str
    lr: float
    seed: int
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    clipped: list[int] = field(default_factory=list)
    points: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # step, and what Task.evaluate returned
    diverged: bool = False  # a loss or at last a weight was not finite: the training ended there

    def metric(self, name: str) -> float:
        """What ``Task.evaluate`` returned under that name at the end."""
        return math.nan if self.diverged else self.points[-1][1][name]

    @property
    def validation(self) -> float:
        """The metric at the end."""
        return self.metric("validation")

    @property
    def train(self) -> float:
        """The same on training data."""
        return self.metric("train")

    @property
    def training_loss(self) -> float:
        """The mean over the last tenth of the steps."""
        return math.nan if self.diverged else float(np.mean(self.losses[-max(1, len(self.losses) // 10) :]))


def train(
    task: Task, method: Method, lr: float, seed: int, steps: int, device: str, progress: tqdm[Any], points: int = POINTS
) -> Training:
    """Start and batches are those of the seed, and so are the random numbers of dropout and the like.

    The metric is measured at the start and at ``points`` steps.
    """
    training = Training(method=method.label, lr=lr, seed=seed)
    measured = {round(steps * point / points) for point in range(points + 1)}
    model = task.make_model(seed).to(device)
    model.train()
    optimizer = method.make(model.parameters(), lr)
    batches = task.batches(seed)
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        training.points.append((0, task.evaluate(model)))
        for step in range(1, steps + 1):
            _step(training, task, model, optimizer, next(batches))
            progress.update()
            training.diverged = not math.isfinite(training.losses[-1]) or (step == steps and not _is_finite(model))
            if training.diverged:
                break
            if step in measured:
                training.points.append((step, task.evaluate(model)))
    return training


def _step(training: Training, task: Task, model: nn.Module, optimizer: Optimizer, batch: Any) -> None:
    loss = task.loss(model, batch)
    optimizer.zero_grad()
    loss.backward()
    # Measured here, so that all methods are measured alike: coord_wise, for one, does not know the norm of the whole gradient.
    norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    optimizer.step()
    clipped_steps = optimizer.clipping_stats()["clipped_steps"] if isinstance(optimizer, Clipped) else 0.0
    training.losses.append(loss.item())
    training.norms.append(norm.item())
    training.clipped.append(int(clipped_steps > sum(training.clipped)))


def _is_finite(model: nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())
