"""Parts that several tasks of ``compare`` share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Grouped(nn.Module):
    """Model whose parts are clipped separately."""

    def groups(self) -> list[dict[str, Any]]:
        """Return parameter groups for the optimizer."""
        raise NotImplementedError


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return the result of ``make`` with torch's global generator at ``seed``; restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def shuffled(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Yield endless batches of the numbers below ``count``, in a new order each epoch; incomplete batches are dropped."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count // batch * batch].split(batch)


def evenly(count: int, wanted: int) -> list[int]:
    """Return at most ``wanted`` of the numbers below ``count``, the same in every run."""
    return torch.linspace(0, count - 1, min(count, wanted), dtype=torch.float64).long().tolist()


def halves(count: int) -> tuple[list[int], list[int]]:
    """Return the even and the odd numbers below ``count``, for validation and test samples if test labels are not public."""
    return list(range(0, count, 2)), list(range(1, count, 2))


def commonest_share(training: Tensor, test: Tensor) -> float:
    """Return the test accuracy of always answering with the commonest training label."""
    return float((test == training.mode().values).double().mean())


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the parameters."""
    return next(model.parameters()).device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode without gradients, and back into its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def refuse_data(data: Path | None, task: str, source: str) -> None:
    """Raise ValueError if ``data`` is given for a task with data of its own, which ``source`` describes."""
    if data is not None:
        raise ValueError(f"data must not be named for task {task}, {source}, got {str(data)!r}")
