"""Train one model for ``compare``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from torch_clipped import Clipped, suggest_level

from .methods import Method
from .task import Task
from .task_parts import Grouped

BLOCKS = 50  # points of a training's curve
CLIP_RATE = 0.1  # of the suggested level
Block = tuple[int, float, float, float]  # last step, mean loss, median norm before clipping, share of clipped steps


@dataclass(kw_only=True)
class Training:
    """Record of a training."""

    method: str
    lr: float
    level: float | None
    seed: int
    curve: list[Block] = field(default_factory=list)
    points: list[tuple[int, float]] = field(default_factory=list)  # step, metric on validation data
    diverged: bool = False  # a loss was not finite, which ended the training, or a weight at its end
    validation: float = math.nan  # the metric at the end
    train: float = math.nan
    test: float = math.nan
    training_loss: float = math.nan  # the mean over the last tenth of the steps
    clip_rate: float = 0.0
    suggested_level: float = math.nan  # for type norm and these gradients

    def score(self) -> tuple[float, float]:
        """Return the score for tuning: the metric on validation data, then the negative training loss."""
        if self.diverged or math.isnan(self.validation):
            return -math.inf, -math.inf
        return self.validation, -self.training_loss


def train(
    task: Task,
    method: Method,
    lr: float,
    level: float | None,
    seed: int,
    steps: int,
    device: str,
    progress: tqdm[Any],
    points: int,
    tested: bool,
) -> Training:
    """Train once; the seed determines the start, the batches, and the random numbers of dropout and the like.

    Args:
        task, method, lr, level, seed, steps, device: settings of the training.
        progress: updated by one for each step.
        points: number of measurements of the metric on validation data before the end; 0 for the end only.
        tested: measure the metric on training and test data at the end too.
    """
    training = Training(method=method.label, lr=lr, level=level, seed=seed)
    measured = {round(steps * point / points) for point in range(points)} if points else set()
    model = task.make_model(seed).to(device)
    model.train()
    optimizer = method.make(model.groups() if isinstance(model, Grouped) else model.parameters(), lr, level)
    schedule = LambdaLR(optimizer, lambda step: 1 - step / steps if task.decays else 1.0)
    batches, losses, norms, clipped = task.batches(seed), list[float](), list[float](), [0.0]
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        for step in range(steps):
            if step in measured:
                training.points.append((step, task.evaluate(model, "validation")))
            loss = task.loss(model, next(batches))
            optimizer.zero_grad()
            loss.backward()
            # Measured here, because coord_wise does not measure the norm of the whole gradient.
            norms.append(get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item())
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            clipped.append(optimizer.clipping_stats()["clipped_steps"] if isinstance(optimizer, Clipped) else 0.0)
            progress.update()
            if not math.isfinite(losses[-1]):
                break
        training.diverged = not math.isfinite(losses[-1]) or not _is_finite(model)
        if not training.diverged:
            training.validation = task.evaluate(model, "validation")
            training.points.append((steps, training.validation))
            training.training_loss = float(np.mean(losses[-max(1, steps // 10) :]))
            if tested:
                training.train, training.test = (task.evaluate(model, part) for part in ("train", "test"))
    training.clip_rate = clipped[-1] / len(losses)
    positive = [norm for norm in norms if 0 < norm < math.inf]
    training.suggested_level = float(f"{suggest_level(positive, CLIP_RATE):.3g}") if positive else math.nan
    training.curve = _curve(losses, norms, clipped, steps) if points else []
    return training


def _curve(losses: list[float], norms: list[float], clipped: list[float], steps: int) -> list[Block]:
    ends = sorted({steps * (block + 1) // BLOCKS for block in range(BLOCKS)} - {0})
    found = []
    for start, end in zip([0, *ends], ends, strict=False):
        if end <= len(losses):
            share = (clipped[end] - clipped[start]) / (end - start)
            found.append((end, float(np.mean(losses[start:end])), float(np.median(norms[start:end])), share))
    return found


def _is_finite(model: nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())
