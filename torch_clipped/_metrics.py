"""Functions of a model and a batch, evaluated during training without an effect on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import Module

from ._engine.compat import current_accelerator

__all__ = ["Batch", "Metrics", "checked_metrics", "seed_generators", "values_of"]

Batch = TypeVar("Batch")
Metrics = Mapping[str, Callable[[Module, Batch], Tensor | float]]
_TAKEN = ("loss", "grad_norm", "restart")  # names of other curves


def checked_metrics(metrics: Metrics[Batch] | None) -> Metrics[Batch]:
    """Return the metrics.

    Raises:
        TypeError: ``metrics`` is not a mapping from names to functions.
        ValueError: a name is that of another curve.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics must be a mapping from names to functions, got {type(metrics).__name__}")
    for name, function in metrics.items():
        if not isinstance(name, str) or not callable(function):
            raise TypeError(f"metrics must be a mapping from names to functions, got {name!r}: {function!r}")
        if name in _TAKEN:
            raise ValueError(f"metrics must have names other than {', '.join(_TAKEN)}, got {name!r}")
    return metrics


@torch.no_grad()
def values_of(model: Module, batch: Batch, functions: Metrics[Batch], seed: int) -> dict[str, float]:
    """Return the values of functions of a model in evaluation mode, each with the same random numbers."""
    if not functions:
        return {}
    found, modes = {}, [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for name, function in functions.items():
            seed_generators(seed)
            value = function(model, batch)
            if isinstance(value, Tensor) and value.numel() != 1:
                raise ValueError(f"the value of {name!r} must have one element, got shape {tuple(value.shape)}")
            found[name] = float(value)
    finally:
        for module, mode in modes:
            module.training = mode
    return found


def seed_generators(seed: int) -> None:
    """Do the same as torch.manual_seed, which without an accelerator spends most of its time on a stack trace."""
    if current_accelerator() is None:
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
