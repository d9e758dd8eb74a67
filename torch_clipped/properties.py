"""Classes and arguments of optimizers, models and restarts, for repeated construction."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from ._engine.types import StateDict
from ._engine.validation import integer, number, refuse_unknown

__all__ = ["ModelProperties", "OptimizerProperties", "RestartSchedule"]

AVERAGES = ("mean", "last")


@dataclass(frozen=True, init=False)
class OptimizerProperties:
    """Optimizer class and its arguments, without the parameters.

    Args:
        optimizer_class: an optimizer class, or a function that takes the parameters first and returns an optimizer.
        **optimizer_kwargs: its other arguments.

    Raises:
        TypeError: ``optimizer_class`` cannot be called, or does not accept one of the arguments.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedSGD, OptimizerProperties
        >>> properties = OptimizerProperties(ClippedSGD, lr=5e-2, momentum=0.9, clipping_type="layer_wise", clipping_level=1)
        >>> properties.label()
        'ClippedSGD, layer_wise 1, lr 0.05, momentum 0.9'
        >>> optimizer = properties.make(torch.nn.Linear(3, 1).parameters())
    """

    optimizer_class: Callable[..., Optimizer]
    optimizer_kwargs: StateDict

    def __init__(self, optimizer_class: Callable[..., Optimizer], **optimizer_kwargs: object) -> None:
        _bind("optimizer_class", optimizer_class, ([],), optimizer_kwargs)
        object.__setattr__(self, "optimizer_class", optimizer_class)
        object.__setattr__(self, "optimizer_kwargs", optimizer_kwargs)

    def make(self, parameters: ParamsT) -> Optimizer:
        """Make an optimizer of these parameters, with copies of tensor arguments: schedulers write into learning rates."""
        kwargs = {key: value.clone() if isinstance(value, Tensor) else value for key, value in self.optimizer_kwargs.items()}
        return self.optimizer_class(parameters, **kwargs)

    def label(self) -> str:
        """Return the class and its arguments as text for legends, clipping first."""
        kwargs = dict(self.optimizer_kwargs)
        clipping = []
        if "clipping_level" in kwargs and "clipping_type" not in kwargs:
            default = inspect.signature(self.optimizer_class).parameters.get("clipping_type")
            if default is not None:
                kwargs["clipping_type"] = default.default
        if "clipping_type" in kwargs:
            clipping = [_in_words(kwargs.pop(key)) for key in ("clipping_type", "clipping_level") if kwargs.get(key) is not None]
        parts = [" ".join(clipping)] if clipping else []
        parts += [f"{key} {_in_words(value)}" for key, value in kwargs.items()]
        return ", ".join([getattr(self.optimizer_class, "__name__", repr(self.optimizer_class)), *parts])


@dataclass(frozen=True, init=False)
class ModelProperties:
    """Model class and its arguments.

    Args:
        model_class: a class of modules, or a function that returns a module (for example pretrained, or on an accelerator).
        *model_args: its arguments.
        **model_kwargs: its arguments by name.

    Raises:
        TypeError: ``model_class`` cannot be called with such arguments.

    Example:
        >>> import torch
        >>> from torch_clipped import ModelProperties
        >>> ModelProperties(torch.nn.Linear, 3, 1, bias=False).make()
        Linear(in_features=3, out_features=1, bias=False)
    """

    model_class: Callable[..., Module]
    model_args: tuple[object, ...]
    model_kwargs: StateDict

    def __init__(self, model_class: Callable[..., Module], *model_args: object, **model_kwargs: object) -> None:
        _bind("model_class", model_class, model_args, model_kwargs)
        object.__setattr__(self, "model_class", model_class)
        object.__setattr__(self, "model_args", model_args)
        object.__setattr__(self, "model_kwargs", model_kwargs)

    def make(self) -> Module:
        """Make a new model."""
        return self.model_class(*self.model_args, **self.model_kwargs)


@dataclass(frozen=True)
class RestartSchedule:
    """Validated arguments of a restarter: the windows between restarts, and the kind of average."""

    first_restart_steps_cnt: int = 50
    restart_coeff: float = 1.25
    max_steps_cnt: int = 2000
    average: str = "mean"

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "first_restart_steps_cnt", integer("first_restart_steps_cnt", self.first_restart_steps_cnt, smallest=1)
        )
        coeff = number("restart_coeff", self.restart_coeff, "a finite number >= 1")
        if not 1 <= coeff < math.inf:
            raise ValueError(f"restart_coeff must be a finite number >= 1, got {self.restart_coeff!r}")
        object.__setattr__(self, "restart_coeff", coeff)
        object.__setattr__(self, "max_steps_cnt", integer("max_steps_cnt", self.max_steps_cnt, smallest=1))
        if not isinstance(self.average, str) or self.average not in AVERAGES:
            raise ValueError(f"average must be one of {', '.join(AVERAGES)}, got {self.average!r}")

    def label(self) -> str:
        """Return the windows, and an average other than the mean, as text for legends."""
        windows = f"{self.first_restart_steps_cnt} x {_in_words(self.restart_coeff)} to {self.max_steps_cnt}"
        return f"restarts {windows}" + ("" if self.average == "mean" else f", average {self.average}")


def _bind(argument: str, function: Callable[..., object], args: Sequence[object], kwargs: StateDict) -> None:
    if not callable(function):
        raise TypeError(f"{argument} must be a class or a function, got {function!r}")
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name = str(getattr(function, "__name__", function))
        if all(p.kind is not p.VAR_KEYWORD for p in signature.parameters.values()):
            refuse_unknown(name, kwargs, signature.parameters)
        raise TypeError(f"{name}: {error}") from None


def _in_words(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
