"""Functions with workarounds for older releases of torch; comments name the differences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim import Adagrad, Optimizer

__all__ = ["clear_state", "current_accelerator", "fork_random_state"]


def current_accelerator() -> torch.device | None:
    """Return the accelerator of this machine; None if there is none."""
    try:
        return torch.accelerator.current_accelerator()
    except (AttributeError, RuntimeError):  # torch 2.5 and older have no torch.accelerator, 2.6 and 2.7 raise without a device
        return torch.device("cuda") if torch.cuda.is_available() else None


@contextmanager
def fork_random_state() -> Iterator[None]:
    """Put torch's random states back on exit, also those of accelerators."""
    accelerator = current_accelerator()
    kind = "cuda" if accelerator is None else accelerator.type
    count = 0 if accelerator is None else getattr(torch, kind).device_count()
    with torch.random.fork_rng(range(count), device_type=kind):
        yield


def clear_state(optimizer: Optimizer) -> None:
    """Clear the state of an optimizer in place, as it was before the first step."""
    optimizer.state.clear()
    if isinstance(optimizer, Adagrad):  # older releases make its state in the constructor only
        groups = [dict(group) for group in optimizer.param_groups]
        initial = optimizer.defaults["initial_accumulator_value"]
        optimizer.state.update(Adagrad(groups, initial_accumulator_value=initial).state)
