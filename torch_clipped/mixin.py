"""Mixin that puts clipping into an optimizer class, between the closure and the update."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable would import the compiler, which takes a second
from torch.optim import Optimizer

from ._engine.arguments import ADDED, ARGUMENT_NAMES, OF_THE_TYPE, Arguments, clipping_arguments, group_arguments
from ._engine.checks import (
    refuse_class,
    refuse_optimizer_inside,
    refuse_order,
    refuse_own_arguments,
    refuse_pieces,
    refuse_wrapper,
)
from ._engine.clip_sets import ClipSet
from ._engine.closure_steps import evaluates_closure_first, requires_closure, step_with_clipping_closure, with_arguments
from ._engine.current_sets import CurrentSets
from ._engine.fused import FusedPlan, KnownState, scaler_factors
from ._engine.monitor import EITHER, NOT_FINITE, SkipReason, warn_of_loaded_arguments
from ._engine.state import check_memory, common_device, copied, install, is_memory, prepared_memory
from ._engine.statistics import TotalStatistics
from ._engine.step import clip_
from ._engine.step_hooks import undecorated, with_quick_hooks
from ._engine.types import Entries, Group, StateDict, StepFunction
from ._engine.validation import is_like_clipping, refuse_unknown
from .clipping import ClippingType

__all__ = ["Clipped"]


class Clipped(Optimizer):
    """Mixin that adds gradient clipping to an optimizer class; it precedes that class in the bases.

    Between the closure and the update, the gradient g of each block is clipped in place:

        alpha = threshold / length          g <- g * min(1, alpha)   if the type decides to clip

    ``clipping_type`` names the kind of block (the whole gradient, one tensor, one entry), the threshold and the decision to clip;
    docs/types.md has the table of types. Weight decay, momentum and moments only see the clipped gradient, and ``p.grad`` holds
    it after the step. Parameter groups with equal clipping arguments form one clip set. The global norm is the norm of the whole
    set, by default of the whole model.

    Args:
        *args: the arguments of the optimizer class, with its own names, places and defaults.
        **kwargs: the same by name. ``fused=None`` with ``foreach=None`` takes torch's fused kernels wherever they give correct
            results.
        clipping_type (str): the name of a clipping type. Default: ``"norm"``.
        clipping_level (float): the one number that the type needs, in the unit that the table gives.
            Default: None, the type's default level.
        clipping_action (str): the action for a block whose norm exceeds its threshold. ``"clip"``: clip the block. ``"skip"``:
            skip the whole step, like a step whose gradient is not finite; weights, state and ``p.grad`` do not change. A skipped
            step counts in ``steps``, ``clipped_steps`` and ``skipped_steps``, and its norms enter the history as if they were
            clipped. The 1st, 10th, 100th, ... skipped step in a row warns. Default: ``"clip"``.
        clipping_cap (float): the largest norm of a block, whatever its threshold, also in a warm-up and with
            ``clipping_action="skip"``. The type's own state ignores the cap. Default: None, no cap.
        clipping_warmup (int): the number of norms of a block that a type with a history records before it clips; for ``zclip``
            and ``adagc`` the length of their own warm-ups. Until then only the cap applies, and in the warm-up of ``adagc``,
            which counts steps, also its own limit of norm 1. Default: None, the type's own.
        clipping_set (str): a label. Parameter groups are measured together if all clipping arguments are equal, including this
            one. Default: None.
        clipping_beta (float): base of the clipping probability of the random types, in (0, 1). Default: 0.85.
        clipping_window (int): the number of recorded norms, at least 2. Default: 1000 (steps).
        norm_type (float): the p of the p-norm, from 1 to inf. Default: 2.
        nonfinite (str): the action for a gradient with entries that are inf or NaN. ``"skip"``: skip the step; weights, state
            and history do not change, the step is counted, and the 1st, 10th, 100th, ... such step in a row warns.
            ``"error"``: raise RuntimeError before anything is changed. ``"zero"``: set such entries to 0 and clip the rest.
            ``"propagate"``: clip block by block as torch's functions do: finite blocks are clipped as always, an entry of inf is
            clamped if blocks are single entries, and a block whose norm is not finite is not changed. Default: ``"skip"``.
        clipping_seed (int): seed of the random types, at least 0. Their draws depend on the seed and the step count only.
            Default: 0.

    A parameter group may have its own clipping arguments. All of them may be changed between steps by writing to
    ``param_groups``. A group that names a ``clipping_type`` takes its default level unless it names a ``clipping_level``.

    Raises:
        ValueError: an argument is invalid; in :meth:`step` also a value written to ``param_groups``.
        TypeError: an unknown argument.

    Example:
        >>> import torch
        >>> class ClippedRMSprop(Clipped, torch.optim.RMSprop):
        ...     "RMSprop with gradient clipping."
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = ClippedRMSprop([weight], lr=0.1, clipping_level=1.0)
        >>> weight.grad = torch.tensor([30.0, 40.0])
        >>> optimizer.step()
        >>> weight.grad
        tensor([0.6000, 0.8000])

    References:
        Razvan Pascanu, Tomas Mikolov, Yoshua Bengio, On the difficulty of training recurrent neural networks, 2013,
        https://arxiv.org/abs/1211.5063 (clipping by the norm).
    """

    __signature__: ClassVar[inspect.Signature]

    def __init__(
        self,
        *args: Any,
        clipping_type: ClippingType | str = "norm",
        clipping_level: float | None = None,
        clipping_action: str = "clip",
        clipping_cap: float | None = None,
        clipping_warmup: int | None = None,
        clipping_set: str | None = None,
        clipping_beta: float = 0.85,
        clipping_window: int = 1000,
        norm_type: float = 2.0,
        nonfinite: str = "skip",
        clipping_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        arguments = Arguments(
            *(clipping_type, clipping_level, clipping_action, clipping_cap, clipping_warmup, clipping_set),
            *(clipping_beta, clipping_window, norm_type, nonfinite, clipping_seed),
        )
        self._clipping_defaults = Arguments.of(arguments.as_dict()).as_dict()
        try:
            super().__init__(*args, **kwargs)
        except TypeError as error:
            self._refuse_unknown([name for name in kwargs if f"unexpected keyword argument {name!r}" in str(error)])
            raise
        refuse_wrapper(self)
        refuse_optimizer_inside(self)
        if swallowed := [name for name in kwargs if is_like_clipping(name) and name not in self.defaults]:
            self._refuse_unknown(swallowed)  # taken by **kwargs of the parent
        self._clip_sets()  # refuse arguments that are only invalid in a whole group here, not in the first step

    def _refuse_unknown(self, names: Sequence[str]) -> None:
        known = list(ARGUMENT_NAMES)
        for cls in type(self).__mro__[type(self).__mro__.index(Clipped) + 1 :]:
            if "__init__" in vars(cls):
                _, *parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
                known += [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
                if all(p.kind is not p.VAR_KEYWORD for p in parameters):  # it forwards no unknown arguments
                    break
        refuse_unknown(type(self).__name__, names, known)

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Show the arguments of the parent and of clipping in help() and editors."""
        super().__init_subclass__(**kwargs)
        refuse_order(cls, Clipped)
        refuse_class(next(c for c in cls.__mro__ if issubclass(c, Optimizer) and not issubclass(c, Clipped)))
        constructor = next(c for c in cls.__mro__ if "__init__" in vars(c))
        if constructor is not Clipped:  # a class with arguments of its own
            own_signature = inspect.signature(vars(constructor)["__init__"])
            cls.__signature__ = own_signature.replace(parameters=list(own_signature.parameters.values())[1:])
            return
        clipping = [p for p in inspect.signature(Clipped.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY]
        parent = inspect.signature(next(c for c in cls.__mro__ if not issubclass(c, Clipped)).__init__)
        cls.__signature__ = parent.replace(parameters=sorted([*parent.parameters.values()][1:] + clipping, key=lambda p: p.kind))

    def add_param_group(self, param_group: Group) -> None:
        """Add a parameter group, as torch does; the group may name its own clipping arguments.

        A group that names a ``clipping_type`` takes that type's default level unless it names a ``clipping_level`` too.
        """
        if isinstance(param_group, dict):
            if "clipping_type" not in self.defaults:  # during construction
                refuse_own_arguments(type(self), self.defaults)
                self.defaults.update(self._clipping_defaults)
            arguments = group_arguments(param_group, self.defaults, len(self.param_groups), self.defaults)
            param_group.update(arguments.as_dict())
        super().add_param_group(param_group)
        try:
            install(param_group, {})  # remove the state that a group of another optimizer brings
            install(param_group, prepared_memory(param_group, arguments, common_device(self.param_groups)))
        except BaseException:
            self.param_groups.pop()
            raise
        if not hasattr(self, "_current_sets"):
            self._current_sets, self._known_state = CurrentSets(), KnownState()

    def _adopt_groups(self, groups: Sequence[Group], sources: Sequence[Entries]) -> None:
        """Give each parameter group its missing clipping arguments, from its source, and its state."""
        pairs = enumerate(zip(groups, sources, strict=True))
        found = [clipping_arguments(group, source, i, source) for i, (group, source) in pairs]
        refuse_pieces([group | arguments.as_dict() for group, arguments in zip(groups, found, strict=True)])
        for group, arguments in zip(groups, found, strict=True):
            check_memory(group, arguments)
        memories = [prepared_memory(g, arguments, common_device(groups)) for g, arguments in zip(groups, found, strict=True)]
        for group, arguments, memory in zip(groups, found, memories, strict=True):
            group.update(arguments.as_dict())
            install(group, memory)
        self._current_sets, self._known_state = CurrentSets(), KnownState()

    def __getstate__(self) -> StateDict:
        """Return the state for copy and pickle, without copies: a new process needs tensors that stay alive."""
        self._settle()
        state: StateDict = super().__getstate__()
        return state

    def __setstate__(self, state: StateDict) -> None:
        """Take over a state; clipping arguments that are missing in it (a plain torch checkpoint) keep their values."""
        if "param_groups" not in state:  # no group is replaced
            super().__setstate__(state)
            return
        groups = state["param_groups"]
        known = vars(self).get("param_groups")
        if not known:
            state["defaults"] = {name: Arguments().as_dict()[name] for name in ADDED} | state["defaults"]
        sources = known or [state["defaults"]] * len(groups)
        for group, source in zip(groups, sources, strict=True):
            if group.get("clipping_type") == source["clipping_type"]:
                for name in OF_THE_TYPE:  # an older checkpoint may lack some
                    group.setdefault(name, source[name])
        self._adopt_groups(groups, sources)
        super().__setstate__(state)
        self._clip_sets()
        if known:
            warn_of_loaded_arguments(known, groups, levels=not vars(self).get("_level_is_scheduled", False))

    def state_dict(self) -> StateDict:
        """Return the state as torch does; the clipping state is a copy, which later steps do not change."""
        self._settle()
        state_dict: StateDict = super().state_dict()
        if "param_groups" in state_dict:
            state_dict["param_groups"] = [copied(group) for group in state_dict["param_groups"]]
        return state_dict

    def _settle(self) -> None:
        """Bring the state up to date with the groups, so that the next step starts from the saved state."""
        with suppress(ValueError, TypeError):  # the next step raises; a last checkpoint can still be written
            self._clip_sets()
        self._current_sets.put_back()

    def __repr__(self) -> str:
        shown = object.__new__(type(self))  # not self: attributes set on a wrapper would stay there
        groups = [{k: v for k, v in group.items() if not is_memory(k)} for group in self.param_groups]
        vars(shown).update(vars(self) | {"param_groups": groups})
        return super(Clipped, shown).__repr__()

    @_disable_dynamo
    def _clip_sets(self) -> tuple[list[ClipSet], TotalStatistics]:
        return self._current_sets.of(self.param_groups, self.defaults)

    def _patch_step_function(self) -> None:
        cls: Any = type(self)
        is_patched = getattr(cls.step, "hooked", False)
        super()._patch_step_function()
        if not is_patched:
            cls.step = with_quick_hooks(cls.step)

    def step(self, closure: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the closure, if there is one, clip the gradients in place and perform the parent's step.

        ``nonfinite`` decides about a gradient that is not finite. After the step ``p.grad`` holds the clipped gradient.

        Args:
            closure: reevaluates the model and returns the loss.
            *args: further arguments of the parent's step.
            **kwargs: the same by name.

        Returns:
            The result of the closure; without one, the result of the parent's step.
        """
        parent_step = undecorated(super().step)
        if all(group["clipping_type"] == "none" for group in self.param_groups):  # torch.compile traces this branch only
            self._clip_sets()  # checks the other arguments and drops outdated state
            return with_arguments(parent_step, closure, args, kwargs)(self)
        return self._clipped_step(parent_step, closure, args, kwargs)

    @_disable_dynamo
    def _clipped_step(self, parent_step: StepFunction, closure: object, args: tuple[object, ...], kwargs: StateDict) -> object:
        if closure is None and requires_closure(parent_step):
            return parent_step(self, *args, **kwargs)
        is_closure = callable(closure)
        if callable(closure) and not evaluates_closure_first(parent_step):
            return step_with_clipping_closure(self, parent_step, closure, self._clip, args, kwargs)
        loss = None
        if callable(closure):
            with torch.enable_grad():
                loss = closure()
        is_plain = (is_closure or closure is None) and not (args or kwargs)
        own_step = parent_step if is_plain else with_arguments(parent_step, None if is_closure else closure, args, kwargs)
        sets, totals = self._current_sets.of(self.param_groups, self.defaults)  # a closure may have edited them
        if not sets or True in [clip_set.is_dry_run for clip_set in sets if clip_set.without_numbers]:
            returned = own_step(self)
            return loss if is_closure else returned
        grad_scale, found_inf = scaler_factors(self, sets[0])
        gradients = [clip_set.gradients() for clip_set in sets]
        plan = FusedPlan(self, sets, gradients, own_step, self._known_state)
        if plan.is_refusing and plan.takes_over_unscaling(found_inf):
            grad_scale = plan.unscale_(grad_scale)
        in_kernel = (
            plan.can_scale_in_kernel
            and len(sets) == 1
            and len(sets[0].groups) == len(self.param_groups)
            and sets[0].measure.is_one_block
        )
        skip, _, coefficient = clip_(sets, totals, gradients, grad_scale, found_inf, in_kernel)
        if isinstance(skip, Tensor):
            if not plan.can_scale_in_kernel:
                skip = bool(skip)  # only a fused kernel can skip without a decision on the host
            totals.monitor.observe_counts(totals.counts, _reason(sets))
        returned = plan.step(grad_scale, coefficient, skip) if skip is not True else None
        return loss if is_closure else returned

    def _clip(self) -> bool:
        """Clip the gradients in the middle of a step; return whether to skip the step."""
        sets, totals = self._clip_sets()
        if any(clip_set.is_dry_run for clip_set in sets):
            return False
        skip = clip_(sets, totals, [clip_set.gradients() for clip_set in sets]).skip
        if isinstance(skip, Tensor) and bool(skip):  # on the host the step itself has reported it
            totals.monitor.observe_skip(_reason(sets))
        return bool(skip)

    @overload
    def clipping_stats(self, per_set: Literal[False] = ...) -> dict[str, float]: ...

    @overload
    def clipping_stats(self, per_set: Literal[True]) -> list[dict[str, float]]: ...

    def clipping_stats(self, per_set: bool = False) -> dict[str, float] | list[dict[str, float]]:
        """Return the clipping statistics as plain floats for any logger. Reading waits for an accelerator.

        Args:
            per_set: whether to return a list with one dict for each clip set, instead of one dict for the whole gradient.

        Returns:
            ``grad_norm`` and ``clipped_norm``, the norm of the gradient before and after clipping in the last step;
            ``threshold`` and ``coefficient`` of that step, medians if there are many blocks; ``clip_rate``, the share of
            steps with a clipped block; ``steps``, ``clipped_steps`` and ``skipped_steps``. Steps whose gradient is zero are
            not counted. A value that would cost another pass over the gradient is NaN.

        Example:
            >>> import torch
            >>> from torch_clipped import ClippedSGD
            >>> weight = torch.nn.Parameter(torch.zeros(2))
            >>> optimizer = ClippedSGD([weight], clipping_level=1)
            >>> weight.grad = torch.tensor([3.0, 4.0])
            >>> optimizer.step()
            >>> stats = optimizer.clipping_stats()
            >>> stats["grad_norm"], stats["clipped_norm"], stats["clip_rate"]
            (5.0, 1.0, 1.0)
        """
        sets, totals = self._clip_sets()
        return [clip_set.record.statistics() for clip_set in sets] if per_set else totals.statistics()

    def grad_norms(self) -> Tensor:
        """Return the norms of the whole gradient before clipping, oldest first: float64 of shape (at most ``clipping_window``,).

        Zero gradients and gradients that are not finite are not recorded. The result is empty if the norm of the whole
        gradient is unknown: with types that do not measure it (``none``, ``coord_wise``), or with several norm types.
        """
        return self._clip_sets()[1].grad_norms()


def _reason(sets: Sequence[ClipSet]) -> SkipReason:
    """Return why steps of these clip sets may be skipped on an accelerator, which does not report the reason."""
    return EITHER if any(clip_set.arguments.clipping_action == "skip" for clip_set in sets) else NOT_FINITE
