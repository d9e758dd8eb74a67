"""What several tasks of ``compare`` need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """What ``make`` makes with torch's global random numbers at ``seed``; afterwards they are as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def shuffled(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of the numbers below ``count``: all of them, in a new order each time; an incomplete batch is left out."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count // batch * batch].split(batch)


def evenly(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of the numbers below ``count``, the same in every run."""
    return torch.linspace(0, count - 1, min(count, wanted), dtype=torch.float64).long().tolist()


def device_of(model: nn.Module) -> torch.device:
    """Where its parameters are."""
    return next(model.parameters()).device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients; in the mode it was in afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def needed(module: str, package: str, what: str) -> Any:
    """An installed module; ValueError that says how to get it where it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"{what} needs {package}: pip install 'torch-clipped[tasks]' ({error})") from None
