"""Torch's fused kernels, chosen step by step where they give correct results, with the clipping coefficient applied inside.

The parameter groups keep the user's value of ``fused``. The parent's step sees copies of the groups with ``fused`` switched on.
Checkpoints stay the same, and a checkpoint of the plain optimizer does not switch fused kernels off.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import cast

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from .arrays import Factor, Numbers, Truth
from .clip_sets import ClipSet, Gradients
from .norms import PLAIN, stored
from .sharding import is_sharded, local
from .step_hooks import undecorated
from .types import Group, StateDict, StepFunction

__all__ = ["FusedPlan", "KnownState", "scaler_factors"]

_DEVICES = frozenset(_get_fused_kernels_supported_devices())
_HALVES = {torch.bfloat16, torch.float16}
State = dict[Tensor, StateDict]
_NOTHING: StateDict = {}


_SCALING_STEPS = {undecorated(cls.step) for cls in (SGD, Adam, AdamW)}  # up to torch 2.6 AdamW had a step of its own
_FUSED_STEPS = {*_SCALING_STEPS, undecorated(Adagrad.step)}  # all fused steps of torch

# The same without torch's own switch of the grad mode, which breaks graphs of its compiler and costs a fifth of a small step
_WITHOUT_GRAD = {step: torch.no_grad()(vars(step)["__wrapped__"]) for step in _SCALING_STEPS}


def scaler_factors(optimizer: Optimizer, clip_set: ClipSet) -> tuple[Factor, Truth]:
    """Return the factor of a gradient scaler that is in the gradients, and whether the scaler found an inf."""
    grad_scale, found_inf = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    if clip_set.arrays.is_host:
        return 1.0 if grad_scale is None else float(grad_scale), found_inf is not None and bool(found_inf)
    return (
        1.0 if grad_scale is None else grad_scale.to(clip_set.device),
        False if found_inf is None else found_inf.to(clip_set.device) != 0,
    )


class KnownState:
    """Record of optimizer state known to have the memory layout of the parameters; a check in each step would be slow."""

    def __init__(self) -> None:
        self._sets: Sequence[ClipSet] | None = None
        self._dicts: list[StateDict] = []
        self._values: list[object] = []
        self._numels: list[int] = []
        self._dtype: torch.dtype | None = None

    def are_plain(self, optimizer: Optimizer, sets: Sequence[ClipSet], gradients: Sequence[Gradients]) -> bool:
        """Return whether parameters, gradients and state are contiguous, of one type and on devices with a fused kernel.

        Tensors of the state are checked when they are new, parameters and gradients in each step.
        """
        if False in [grads.are_plain for grads in gradients]:
            return False
        params = sets[0].params if len(sets) == 1 else [p for clip_set in sets for p in clip_set.params]
        grads = gradients[0].tensors if len(gradients) == 1 else [g for each in gradients for g in each.tensors]
        state = optimizer.state
        is_known = (
            self._sets is sets
            and len(state) == len(self._dicts)
            and all(map(is_, state.values(), self._dicts))
            and sum(map(len, self._dicts)) == len(self._values)
            and all(map(is_, chain.from_iterable(map(dict.values, self._dicts)), self._values))
        )
        if not is_known and not self._learn(sets, params, state):
            return False
        dtypes = {p.dtype for p in params} | {g.dtype for g in grads}  # type: ignore[union-attr]
        return dtypes == {self._dtype} and all(map(Tensor.is_contiguous, params)) and [*map(Tensor.numel, params)] == self._numels

    def _learn(self, sets: Sequence[ClipSet], params: Sequence[Tensor], state: State) -> bool:
        self._sets = None
        self._dicts = [*state.values()]
        if self._dicts and len(self._dicts) != len(params):
            return False
        if not self._dicts and any(group.get("momentum") for clip_set in sets for group in clip_set.groups):
            return False  # before the first step, for which buffers may have to be made
        if not {*map(type, params)} <= PLAIN:
            return False
        self._values = [*chain.from_iterable(map(dict.values, self._dicts))]
        self._dtype, self._numels = params[0].dtype, [p.numel() for p in params]
        for p in params:
            if not (p.is_floating_point() and p.device.type in _DEVICES and bool(state.get(p)) == bool(self._dicts)):
                return False
            for name, value in state.get(p, _NOTHING).items():
                fits_kernel = type(value) in PLAIN and (
                    value.dtype is torch.float32 and (p.is_cpu or value.device == p.device)
                    if name == "step"
                    else value.is_contiguous() and value.dtype is self._dtype and value.numel() == p.numel()
                )
                if not fits_kernel:
                    return False
        self._sets = sets
        return True


class FusedPlan:
    """Plan of one step: which groups take torch's fused kernel.

    ``can_scale_in_kernel`` is true if all groups take it, on one type of device, with a kernel that scales. Only then may the
    kernel scale or skip, because this applies to the whole optimizer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        sets: Sequence[ClipSet],
        gradients: Sequence[Gradients],
        parent_step: StepFunction,
        known: KnownState,
    ) -> None:
        self.optimizer, self.parent_step = optimizer, parent_step
        self.to_complete: list[_Members] = []
        groups = optimizer.param_groups
        self.flags: list[bool | None] = [group.get("fused") for group in groups]  # for this step
        self.is_refusing = False  # the user's choice of a fused kernel
        self.is_unscaled = False
        can_scale = parent_step in _SCALING_STEPS
        clipped = {index for clip_set in sets for index in clip_set.indices}
        are_plain = can_scale and known.are_plain(optimizer, sets, gradients)
        fused_groups = 0
        for index, group in enumerate(groups if parent_step in _FUSED_STEPS else []):
            fused = bool(group["fused"])
            if index in clipped and (fused or (can_scale and group["fused"] is None and group["foreach"] is None)):
                if are_plain and not _is_unsupported(group):
                    fused = True
                else:
                    members = _Members(group, optimizer.state)
                    fused = members.can_be_fused()
                    self.to_complete += [members] if fused else []
            elif fused:
                self.to_complete.append(_Members(group, optimizer.state))
            if fused != bool(group["fused"]):
                self.flags[index] = fused
                self.is_refusing = self.is_refusing or not fused
            fused_groups += fused
        # a kernel on the CPU reads values of an accelerator before they have arrived (pytorch issues 86264, 140296)
        kinds = sets[0].device_types if len(sets) == 1 else set().union(*[clip_set.device_types for clip_set in sets])
        self.can_scale_in_kernel = can_scale and fused_groups == len(groups) and len(kinds) == 1
        if self.can_scale_in_kernel and not optimizer.defaults["differentiable"]:
            self.parent_step = _WITHOUT_GRAD[parent_step]

    def takes_over_unscaling(self, found_inf: Truth) -> bool:
        """Return whether a gradient scaler expects a fused kernel to unscale, but this step takes a kernel that does not."""
        handed = vars(self.optimizer)
        left = handed.get("grad_scale") is not None or handed.get("found_inf") is not None
        return left and not bool(found_inf)  # waits for an accelerator only if there is a factor to unscale

    def unscale_(self, grad_scale: Factor) -> float:
        """Divide all gradients by the scaler's factor, if there is one; return the remaining factor, 1."""
        self.is_unscaled = True
        if vars(self.optimizer).get("grad_scale") is not None:
            for p in (p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None):
                stored(p.grad).div_(cast(float, grad_scale))
        return 1.0

    def step(self, grad_scale: Factor, coefficient: Numbers | None, skip: Truth) -> object:
        """Take the parent's step by this plan; multiply gradients by ``coefficient``, and skip the update if ``skip`` is true."""
        for members in self.to_complete:
            members.fill_momentum_buffers(isinstance(skip, Tensor))
            members.mend_step_counts()
        changed: StateDict = {}
        if self.flags != [group.get("fused") for group in self.optimizer.param_groups]:
            pairs = zip(self.optimizer.param_groups, self.flags, strict=True)
            changed["param_groups"] = [{**group, "fused": fused} for group, fused in pairs]
        if self.is_unscaled:
            changed |= {"grad_scale": None, "found_inf": None}
        if isinstance(coefficient, Tensor):
            inverse = coefficient.reciprocal() if isinstance(grad_scale, float) else grad_scale / coefficient
            changed["grad_scale"] = inverse.float()
        elif coefficient is not None and coefficient < 1:
            changed["grad_scale"] = torch.tensor(grad_scale / coefficient, dtype=torch.float32, device="cpu")
        if isinstance(skip, Tensor):
            changed["found_inf"] = skip.float()
        if not changed:
            return self.parent_step(self.optimizer)
        # Another object with the same state takes the step: settings for this step need not be reset, and an interruption
        # leaves no trace in the optimizer.
        stand_in = object.__new__(type(self.optimizer))
        vars(stand_in).update(vars(self.optimizer), **changed)
        returned = self.parent_step(stand_in)
        vars(self.optimizer).update({name: value for name, value in vars(stand_in).items() if name not in changed})
        return returned


class _Members:
    """Parameters of a group that have a gradient, and their optimizer state."""

    def __init__(self, group: Group, state: State) -> None:
        self.group, self.state = group, state
        self.params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
        self.grads: list[Tensor] = [p.grad for p in self.params]  # type: ignore[misc]
        owned = [
            (p, key, value) for p in self.params for key, value in state.get(p, _NOTHING).items() if isinstance(value, Tensor)
        ]
        self.kept = [(p, value) for p, key, value in owned if key != "step"]
        self.steps = [(p, value) for p, key, value in owned if key == "step"]  # counts need not have the parameter's layout
        self.devices = {p.device for p in self.params}
        self.are_on_host = {device.type for device in self.devices} <= {"cpu"}

    def can_be_fused(self) -> bool:
        """Return whether torch's fused kernel gives the same next step for this group as its other implementations."""
        is_dampening = bool(self.group.get("dampening")) and self._lack_buffers()  # the kernel dampens a first gradient
        return not _is_unsupported(self.group) and not is_dampening and self._are_laid_out_alike()

    def _are_laid_out_alike(self) -> bool:
        """Return whether parameter, gradient and state have the same dense memory layout, as the kernels assume."""
        if self._are_plain():
            return True
        kinds = {*map(is_sharded, self.params)}
        if len(kinds) > 1 or (kinds == {True} and "dampening" in self.group):
            return False  # torch cannot mix DTensors with other tensors, and its fused SGD takes none
        with torch.no_grad():
            alike = all(map(_are_alike, map(local, self.params), map(local, self.grads)))
            return alike and all(local(v).stride() == local(p).stride() and v.dtype is p.dtype for p, v in self.kept)

    def _are_plain(self) -> bool:
        """Return whether all tensors are contiguous, of one type and on devices with a fused kernel: a quick check."""
        others = [*self.grads, *[v for _, v in self.kept]]
        tensors = self.params + others
        return (
            {*map(type, self.params)} <= PLAIN
            and {*map(type, others)} <= PLAIN
            and {t.layout for t in self.grads} <= {torch.strided}
            and len({t.dtype for t in tensors}) == 1
            and tensors[0].is_floating_point()
            and all(map(Tensor.is_contiguous, tensors))
            and {device.type for device in self.devices} <= _DEVICES
            and [v.numel() for _, v in self.kept] == [p.numel() for p, _ in self.kept]
        )

    def fill_momentum_buffers(self, may_skip: bool) -> None:
        """Give late parameters of SGD a zero momentum buffer, from which their first step starts anyway.

        Without it torch's fused SGD raises TypeError if only some parameters have a buffer, and leaves buffers uninitialised if
        the kernel skips the first step.
        """
        if self.group.get("momentum") and not self.group["dampening"] and (may_skip or self._lack_buffers()):
            for p in self.params:
                if self.state[p].get("momentum_buffer") is None:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)  # type: ignore[arg-type]

    def _lack_buffers(self) -> bool:
        if not self.group.get("momentum") or len(self.kept) == len(self.params):
            return False
        missing = sum(self.state.get(p, {}).get("momentum_buffer") is None for p in self.params)
        return missing > 0 and (missing < len(self.params) or not self.are_on_host)

    def mend_step_counts(self) -> None:
        """Give the step counts of a checkpoint the type and the device that the kernel requires."""
        for p, step in self.steps:
            if step.dtype is not torch.float32 or (not self.are_on_host and step.device != p.device):
                self.state[p]["step"] = step.to(p.device, torch.float32)


def _is_unsupported(group: Group) -> bool:
    if group["differentiable"] or isinstance(group["weight_decay"], Tensor):
        return True
    if group.get("capturable") and any(p.is_cpu for p in group["params"]):
        return True
    # The CPU kernel of SGD does not update most entries of low-precision parameters (pytorch issue 191763)
    return "dampening" in group and not _HALVES.isdisjoint([p.dtype for p in group["params"] if p.is_cpu])


def _are_alike(param: Tensor, grad: Tensor) -> bool:
    if not {type(param), type(grad)} <= PLAIN or grad.layout is not torch.strided:
        return False
    if grad.dtype is not param.dtype or not grad.is_floating_point():
        return False
    if param.device.type not in _DEVICES:
        return False
    if param.is_contiguous() and grad.is_contiguous():
        return True
    return param.stride() == grad.stride() and bool(torch.ops.aten.is_non_overlapping_and_dense(param))
