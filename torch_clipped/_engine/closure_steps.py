"""Steps of optimizers that evaluate their closure themselves, perhaps more than once (LBFGS, sharpness-aware methods)."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from functools import lru_cache
from operator import is_
from types import MappingProxyType

import torch
from torch import Tensor
from torch.optim import Optimizer

from .sharding import local
from .types import Entries, Group, StateDict, StepFunction

__all__ = ["evaluates_closure_first", "requires_closure", "step_with_clipping_closure", "with_arguments"]


@lru_cache
def requires_closure(step: StepFunction) -> bool:
    """Return whether a step function requires a closure."""
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


@lru_cache
def takes_closure_by_keyword(step: StepFunction) -> bool:
    """Return whether a step function takes a closure by keyword only."""
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.kind is closure.KEYWORD_ONLY


def with_arguments(step: StepFunction, closure: object, args: tuple[object, ...], kwargs: StateDict) -> StepFunction:
    """Return the step as a function of the optimizer alone."""
    if closure is None and not args and not kwargs:
        return step
    if closure is not None and takes_closure_by_keyword(step):
        return lambda optimizer: step(optimizer, *args, closure=closure, **kwargs)
    given = (closure, *args) if closure is not None or args else ()
    return lambda optimizer: step(optimizer, *given, **kwargs)


@lru_cache
def evaluates_closure_first(step: StepFunction) -> bool:
    """Return whether a step function is torch's own and evaluates an optional closure once, before anything else."""
    return step.__module__.startswith("torch.") and not requires_closure(step)


class _LeaveOut(BaseException):
    pass


def step_with_clipping_closure(
    optimizer: Optimizer,
    step: StepFunction,
    closure: Callable[..., object],
    clip: Callable[[], bool],
    args: tuple[object, ...] = (),
    kwargs: Entries = MappingProxyType({}),
) -> object:
    """Step with a closure; call ``clip`` after its first evaluation and after each later one that computes gradients.

    If ``clip`` returns that the step is to be skipped, weights and state are restored, and the result of the closure is returned.

    Raises:
        RuntimeError: the step has used gradients that were not clipped; weights and state are restored.
    """
    attributes = vars(optimizer)
    # copies cost memory; an optimizer whose first step evaluated its closure once, before any change, needs none
    known = attributes.get("_closure_comes_first")
    before = None if known else _Before(optimizer)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    unchanged, evaluations, loss, clipped = False, 0, None, _gradients(params)

    def evaluate(*args: object, **kwargs: object) -> object:
        nonlocal unchanged, evaluations, loss, clipped
        evaluations += 1
        if evaluations > 1:
            attributes["_closure_comes_first"] = False
        elif known is None and before is not None and not requires_closure(step):
            unchanged = before.is_unchanged()
        given = _gradients(params)
        loss = closure(*args, **kwargs)
        is_new = _gradients(params) != given
        if evaluations == 1 and before is not None and known is None and not requires_closure(step):
            _refuse_if(not is_new and not unchanged and any(given), optimizer, before)
        if is_new or evaluations == 1:  # a line search evaluates the loss alone
            if clip():
                raise _LeaveOut
            clipped = _gradients(params)
        return loss

    try:
        returned = with_arguments(step, evaluate, args, dict(kwargs))(optimizer)
    except _LeaveOut:
        if before is not None:
            before.restore()
        elif evaluations > 1:
            raise RuntimeError(
                f"the gradient of evaluation {evaluations} in a step of {type(optimizer).__name__} is to be skipped, and the "
                "weights have been moved: earlier steps evaluated their closure once, so that the weights before it were not kept"
            ) from None
        return loss
    appeared = any(p.grad is not None and one is None for p, one in zip(params, clipped, strict=True))
    _refuse_if(appeared or (evaluations == 0 and any(clipped)), optimizer, before)
    if known is None and evaluations == 1:
        attributes["_closure_comes_first"] = unchanged
    return returned


def _gradients(params: Sequence[Tensor]) -> list[tuple[int, _Kept, int] | None]:
    """Return marks that differ if a gradient is replaced or changed; they keep the tensors, so that no address is reused."""
    return [None if p.grad is None else (id(p.grad), _Kept(p.grad), p.grad._version) for p in params]


class _Kept:
    """Reference to a tensor that keeps it alive and compares equal to everything."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def _refuse_if(is_wrong: bool, optimizer: Optimizer, before: _Before | None) -> None:
    if is_wrong:
        if before is not None:
            before.restore()
        raise RuntimeError(
            f"{type(optimizer).__name__} uses gradients in its step that the closure did not make, and that are not clipped; "
            "call GradientClipper(params, ...).step() before an optimizer.step() that does not clip"
        )


class _Before:
    """Copy of an optimizer's weights, its state and the numbers in its parameter groups, made before a step."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.weights = [p.detach().clone() for p in self.params]
        self.state = {key: _copied(kept) for key, kept in optimizer.state.items()}
        self.numbers = [_numbers(group) for group in optimizer.param_groups]

    @torch.no_grad()
    def is_unchanged(self) -> bool:
        """Return whether weights, state and numbers equal the copy; False if tensors have no values to compare."""
        try:
            return (
                all(_same(p, weight) for p, weight in zip(self.params, self.weights, strict=True))
                and _same(dict(self.optimizer.state), self.state)
                and [_numbers(group) for group in self.optimizer.param_groups] == self.numbers
            )
        except RuntimeError:
            return False

    @torch.no_grad()
    def restore(self) -> None:
        """Take back the step."""
        for p, weight in zip(self.params, self.weights, strict=True):
            p.copy_(weight)
        self.optimizer.state.clear()
        self.optimizer.state.update(self.state)
        for group, numbers in zip(self.optimizer.param_groups, self.numbers, strict=True):
            for key in _numbers(group).keys() - numbers.keys():
                del group[key]
            group.update(numbers)


def _numbers(group: Group) -> Group:
    return {key: value for key, value in group.items() if isinstance(value, (int, float))}


def _copied(value: object) -> object:
    """Copy values that a step may change in place: tensors, dicts and lists, but not the tensors in lists."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    return copy(value) if isinstance(value, (list, deque)) else value


def _same(value: object, kept: object) -> bool:
    if isinstance(value, Tensor):
        return isinstance(kept, Tensor) and torch.equal(local(value), local(kept))
    if isinstance(value, dict):
        return (
            isinstance(kept, dict)
            and value.keys() == kept.keys()
            and all(_same(entry, kept[key]) for key, entry in value.items())
        )
    if isinstance(value, (list, deque)):
        return isinstance(kept, (list, deque)) and len(value) == len(kept) and all(map(is_, value, kept))
    return value is kept or (isinstance(value, (int, float)) and value == kept)
