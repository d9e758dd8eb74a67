"""Steps of optimizers that evaluate their closure themselves, and more than once (LBFGS)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["calls_closure_itself", "step_with_clipping_closure"]


@lru_cache
def calls_closure_itself(step: Callable[..., Any]) -> bool:
    """Whether a step function cannot do without a closure."""
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


class _LeaveOut(Exception):  # noqa: N818 (not an error: it ends a step from within)
    pass


def step_with_clipping_closure(
    optimizer: Optimizer, step: Callable[..., Any], closure: Callable[[], Any], clip: Callable[[], bool]
) -> Any:
    """Step with a closure after each evaluation of which ``clip`` is called.

    If ``clip`` says that the step is to be left out, the weights and the state become what they were before it, and what the
    closure returned is handed on.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    weights = [p.detach().clone() for p in params]
    state = {p: {key: _snapshot(value) for key, value in values.items()} for p, values in optimizer.state.items()}
    loss: Any = None

    def evaluate() -> Any:
        nonlocal loss
        loss = closure()
        if clip():
            raise _LeaveOut
        return loss

    try:
        return step(optimizer, evaluate)
    except _LeaveOut:
        with torch.no_grad():
            for p, weight in zip(params, weights, strict=True):
                p.copy_(weight)
        optimizer.state.clear()
        optimizer.state.update(state)
        return loss


def _snapshot(value: Any) -> Any:
    """A copy of what a step may change in place: tensors and lists, but not the tensors in lists."""
    if isinstance(value, Tensor):
        return value.clone()
    return list(value) if isinstance(value, list) else value
