"""Optimizers that clip: torch's own, with the gradient clipped between the closure and the update."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from operator import is_
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from .arguments import Arguments
from .clip_sets import ARGUMENT_NAMES, ClipSet, Group, Totals, common_device, is_memory, prepare_memory
from .clipping import CLIPPING_TYPES
from .engine import clip_
from .fused import FusedPlan, scaler_factors, undecorated
from .statistics import grad_norms, statistics, whole_statistics

__all__ = ["Clipped", "ClippedAdam", "ClippedAdamW", "ClippedSGD"]

RENAMED = {"p_autoclip": "clipping_level", "beta": "clipping_beta"}


def _written(groups: list[Group]) -> list[Any]:
    """The objects that decide about clip sets: the groups and the clipping arguments in them."""
    return [*groups, *(group[name] for group in groups for name in ARGUMENT_NAMES)]


class Clipped(Optimizer):
    """Mixin that clips the gradient of any optimizer class before the optimizer sees it."""

    __signature__: ClassVar[inspect.Signature]
    _sets: tuple[list[ClipSet], Totals] | None
    _shape: list[tuple[int, torch.device | None]]
    _written: list[Any]

    def __init__(
        self,
        *args: Any,
        clipping_type: str = "norm",
        clipping_level: float | None = None,
        clipping_beta: float = 0.85,
        clipping_window: int = 1000,
        norm_type: float = 2.0,
        nonfinite: str = "skip",
        clipping_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        self._refuse_renamed(kwargs, inspect.signature(super().__init__).parameters)
        arguments = Arguments(clipping_type, clipping_level, clipping_beta, clipping_window, norm_type, nonfinite, clipping_seed)
        self._clipping_defaults = Arguments.of(arguments.as_dict()).as_dict()
        super().__init__(*args, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the parent's arguments and the clipping arguments in help() and editors."""
        super().__init_subclass__(**kwargs)
        own = inspect.signature(Clipped.__init__).parameters
        clipping = [p for p in own.values() if p.kind is p.KEYWORD_ONLY]
        parent = inspect.signature(next(c for c in cls.__mro__ if not issubclass(c, Clipped)).__init__)
        cls.__signature__ = parent.replace(parameters=[*list(parent.parameters.values())[1:], *clipping])

    def _refuse_renamed(self, given: Any, known: Any) -> None:
        for old, new in RENAMED.items():
            if old in given and old not in known:
                raise TypeError(f"{type(self).__name__} has no argument {old!r}: it is called {new!r}")

    def add_param_group(self, param_group: Group) -> None:
        """Add a parameter group, as torch does; it may name clipping arguments of its own.

        A group that names a ``clipping_type`` takes that type's default level unless it names a ``clipping_level`` too.
        """
        if isinstance(param_group, dict):
            if "clipping_type" not in self.defaults:  # during construction
                self.defaults.update(self._clipping_defaults)
            self._refuse_renamed(param_group, self.defaults)
            named = {name: param_group[name] for name in ARGUMENT_NAMES if name in param_group}
            level = {"clipping_level": None} if "clipping_type" in named else {}
            arguments = Arguments.of(self.defaults | level | named)
            param_group.update(arguments.as_dict())
        super().add_param_group(param_group)
        prepare_memory(param_group, arguments, common_device(self.param_groups))
        self._sets = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state; clipping arguments that it lacks (a plain torch checkpoint's) stay as they are."""
        before = self.__dict__.get("param_groups", [])
        super().__setstate__(state)
        for i, group in enumerate(self.param_groups):
            source = before[i] if i < len(before) else self.defaults
            for name in ARGUMENT_NAMES:
                group.setdefault(name, source[name])
            prepare_memory(group, Arguments.of(group), common_device(self.param_groups))
        self._sets = None

    def __repr__(self) -> str:
        groups = self.param_groups
        self.param_groups = [{k: v for k, v in group.items() if not is_memory(k)} for group in groups]
        try:
            return super().__repr__()
        finally:
            self.param_groups = groups

    def _clip_sets(self) -> tuple[list[ClipSet], Totals]:
        """The clip sets of the parameter groups as they are now; made anew only where something was edited."""
        groups = self.param_groups
        shape = [(len(group["params"]), group["params"][0].device if group["params"] else None) for group in groups]
        written = _written(groups)
        if self._sets is None or shape != self._shape or not all(map(is_, written, self._written)):
            self._sets = self._new_clip_sets()
            self._shape, self._written = shape, _written(groups)
        return self._sets

    def _new_clip_sets(self) -> tuple[list[ClipSet], Totals]:
        device = common_device(self.param_groups)
        members: dict[Arguments, list[int]] = {}
        for i, group in enumerate(self.param_groups):
            try:
                arguments = Arguments.of(group)
            except ValueError as error:
                raise ValueError(f"parameter group {i}: {error}") from None
            members.setdefault(arguments, []).append(i)
        for arguments, indices in members.items():
            for i in indices:
                self.param_groups[i].update(arguments.as_dict())
                prepare_memory(self.param_groups[i], arguments, device)
        rules = [(CLIPPING_TYPES[arguments.clipping_type], arguments, indices) for arguments, indices in members.items()]
        sets = [
            ClipSet(arguments, rule, [self.param_groups[i] for i in indices], indices, device)
            for rule, arguments, indices in rules
            if rule is not None
        ]
        complete = (
            len(sets) == len(members)
            and all(clip_set.measure.gives_norm for clip_set in sets)
            and len({clip_set.arguments.norm_type for clip_set in sets}) == 1
        )
        return sets, Totals(self.param_groups[0], complete)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluate the closure, if there is one, clip the gradients in place and perform the parent's step.

        A step whose gradient is not finite does what ``nonfinite`` says; afterwards ``p.grad`` holds the clipped gradient.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            What the closure returned, or None.
        """
        parent_step = undecorated(super().step)
        sets, totals = self._clip_sets()
        if not sets:
            return parent_step(self, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            sets, totals = self._clip_sets()  # a closure may edit the groups
        grad_scale, found_inf = scaler_factors(self, sets[0].device)
        clipped = [group for clip_set in sets for group in clip_set.groups]
        plan = FusedPlan(self.param_groups, clipped, self.state, parent_step)
        one_coefficient = len(sets) == 1 and len(clipped) == len(self.param_groups) and not sets[0].measure.blocks_are_tensors
        fold = one_coefficient and plan.complete and plan.exact
        skip, coefficient = clip_(sets, totals, grad_scale, found_inf, fold)
        if not plan.complete:
            skip = bool(skip)  # only a fused kernel can skip what the host does not know
        if skip is not True:
            with plan.carried_out(self, grad_scale, coefficient, skip):
                parent_step(self)
        return loss

    @overload
    def clipping_stats(self, per_set: Literal[False] = ...) -> dict[str, float]: ...

    @overload
    def clipping_stats(self, per_set: Literal[True]) -> list[dict[str, float]]: ...

    def clipping_stats(self, per_set: bool = False) -> dict[str, float] | list[dict[str, float]]:
        sets, totals = self._clip_sets()
        return [statistics(clip_set) for clip_set in sets] if per_set else whole_statistics(sets, totals)

    def grad_norms(self) -> Tensor:
        return grad_norms(self._clip_sets()[1])


class ClippedSGD(Clipped, SGD):
    """:class:`torch.optim.SGD` with gradient clipping."""


class ClippedAdam(Clipped, Adam):
    """:class:`torch.optim.Adam` with gradient clipping."""


class ClippedAdamW(Clipped, AdamW):
    """:class:`torch.optim.AdamW` with gradient clipping."""
