"""Torch's fused kernels: chosen for one step where they are right, with the clipping coefficient folded in.

The parameter groups keep what the user wrote: ``fused`` is switched on around the parent's step only, so that checkpoints
stay the same and a checkpoint of the plain optimizer does not switch it off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adam, Optimizer
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from .history import on_host
from .measures import stored
from .sharding import is_sharded, local

__all__ = ["FusedPlan", "scaler_factors", "undecorated", "unscaled_where_fused_is_wrong"]

_DEVICES = frozenset(_get_fused_kernels_supported_devices())
_HALVES = (torch.bfloat16, torch.float16)
State = dict[Any, dict[str, Any]]
Group = dict[str, Any]


def undecorated(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step function without torch's wrapper that runs the step hooks: our own step has run them already."""
    function: Any = getattr(step, "__func__", step)
    return function.__wrapped__ if getattr(function, "hooked", False) else function  # type: ignore[no-any-return]


_FUSED_STEPS = {undecorated(SGD.step), undecorated(Adam.step)}


def scaler_factors(optimizer: Optimizer, device: torch.device) -> tuple[Any, Any]:
    """What a gradient scaler hands to a fused optimizer: the factor in the gradients, and whether it found an infinity."""
    grad_scale, found_inf = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    if on_host(device):
        return 1.0 if grad_scale is None else float(grad_scale), found_inf is not None and bool(found_inf)
    return (
        1.0 if grad_scale is None else grad_scale.to(device, non_blocking=True),
        False if found_inf is None else found_inf.to(device, non_blocking=True) != 0,
    )


@contextmanager
def unscaled_where_fused_is_wrong(
    optimizer: Optimizer, clipped: Sequence[Group], parent_step: Any, grad_scale: Any, found_inf: Any
) -> Iterator[bool]:
    """Take a gradient scaler's factor out of the gradients where its user asked for fused kernels that would go wrong.

    Only they understand what it hands over, so that without this such a step could not be taken by other implementations. Says
    whether it was done.
    """
    attributes: dict[str, Any] = vars(optimizer)
    hidden: dict[str, Any] = {}
    if attributes.get("grad_scale") is not None or attributes.get("found_inf") is not None:
        scaler: dict[str, Any] = {name: attributes.pop(name) for name in ("grad_scale", "found_inf") if name in attributes}
        wrong = any(not fused for _, fused in FusedPlan(optimizer, clipped, parent_step).switched)
        if wrong and not bool(found_inf):  # looks at an accelerator only where the step goes wrong without
            hidden = scaler
            scaled = [] if scaler.get("grad_scale") is None else [p for group in optimizer.param_groups for p in group["params"]]
            for p in (p for p in scaled if p.grad is not None):
                stored(p.grad).div_(grad_scale)
        else:
            attributes.update(scaler)
    try:
        yield bool(hidden)
    finally:
        attributes.update(hidden)


class FusedPlan:
    """Which groups take torch's fused kernel in this step.

    ``complete`` says that all groups do: only then may the kernel be told to scale or to skip, for it is told so for the
    whole optimizer.
    """

    def __init__(self, optimizer: Optimizer, clipped: Sequence[Group], parent_step: Any) -> None:
        groups = optimizer.param_groups if parent_step in _FUSED_STEPS else []
        scaled = getattr(optimizer, "grad_scale", None) is not None  # only fused kernels understand that
        self.switched: list[tuple[Group, bool]] = []
        self.fused: list[_Members] = []
        for group in groups:
            fused, members = bool(group["fused"]), _Members(group, optimizer.state)
            if any(group is other for other in clipped):
                asked, free = fused and not scaled, group["fused"] is None and group["foreach"] is None
                if asked or free:
                    fused = not members.go_wrong() and members.lie_alike()
            if fused != bool(group["fused"]):
                self.switched.append((group, fused))
            if fused:
                self.fused.append(members)
        self.complete = len(self.fused) == len(optimizer.param_groups)

    @contextmanager
    def carried_out(self, optimizer: Optimizer, grad_scale: Any, coefficient: Any, skip: Any) -> Iterator[None]:
        """Run the parent's step by this plan, multiplying by ``coefficient`` and leaving out what ``skip`` says."""
        for members in self.fused:
            members.fill_momentum_buffers()
            members.host_steps_to_device()
        wanted = [group["fused"] for group, _ in self.switched]
        for group, fused in self.switched:
            group["fused"] = fused
        attributes: dict[str, Any] = vars(optimizer)
        before: dict[str, Any] = {name: attributes[name] for name in ("grad_scale", "found_inf") if name in attributes}
        if isinstance(coefficient, Tensor):
            attributes["grad_scale"] = (grad_scale / coefficient).float()
        elif coefficient is not None and coefficient < 1:
            attributes["grad_scale"] = torch.tensor(grad_scale / coefficient, dtype=torch.float32)
        if isinstance(skip, Tensor):
            attributes["found_inf"] = skip.float()
        try:
            yield
        finally:
            for (group, _), fused in zip(self.switched, wanted, strict=True):
                group["fused"] = fused
            for name in ("grad_scale", "found_inf"):
                attributes.pop(name, None)
            attributes.update(before)


class _Members:
    """The parameters of a group that have a gradient, and what the optimizer keeps for them."""

    def __init__(self, group: Group, state: State) -> None:
        self.group, self.state = group, state
        self.params = [p for p in group["params"] if p.grad is not None]
        self.grads = [p.grad for p in self.params]
        kept = ((p, key, v) for p in self.params for key, v in state.get(p, {}).items() if isinstance(v, Tensor))
        self.kept = [(p, v) for p, key, v in kept if key != "step"]  # which is a count
        self.devices = {p.device for p in self.params}
        self.on_host = all(map(on_host, self.devices))

    def go_wrong(self) -> bool:
        """Whether torch's fused kernel fails in this group's next step, or does something else than torch's other ones."""
        group = self.group
        if group["differentiable"] or isinstance(group["weight_decay"], Tensor):
            return True
        if group.get("capturable") and any(on_host(p.device) for p in group["params"]):
            return True
        if "dampening" not in group:
            return False
        # SGD. Its kernel on the CPU leaves most entries of low-precision parameters as they are (pytorch issue 191763), and it
        # dampens a first gradient, unless it is the first of all parameters.
        halves = any(p.is_cpu and p.dtype in _HALVES for p in self.params)
        return halves or (bool(group["dampening"]) and self._lack_buffers())

    def lie_alike(self) -> bool:
        """The kernels walk through memory: parameter, gradient and state must lie there alike and without holes."""
        if self._are_plain():
            return True
        kinds = {*map(is_sharded, self.params)}
        if len(kinds) > 1 or (kinds == {True} and "dampening" in self.group):
            return False  # torch has no rule for DTensors beside others, and none for them in its fused SGD
        with torch.no_grad():
            alike = all(map(_lie_alike, map(local, self.params), map(local, self.grads)))
            return alike and all(local(v).stride() == local(p).stride() and v.dtype is p.dtype for p, v in self.kept)

    def _are_plain(self) -> bool:
        """What nearly all are, looked at quickly: all contiguous, of one type, on devices with a fused kernel."""
        others = [*self.grads, *[v for _, v in self.kept]]
        tensors = self.params + others
        return (
            {*map(type, self.params)} <= {Parameter, Tensor}
            and {*map(type, others)} <= {Tensor}
            and {t.layout for t in self.grads} <= {torch.strided}
            and len({t.dtype for t in tensors}) == 1
            and tensors[0].is_floating_point()
            and all(map(Tensor.is_contiguous, tensors))
            and {device.type for device in self.devices} <= _DEVICES
            and all(v.numel() == p.numel() for p, v in self.kept)
        )

    def fill_momentum_buffers(self) -> None:
        """Give late parameters of SGD a zero momentum buffer, which is what their first step starts from anyway.

        Without it torch's fused SGD raises TypeError where only some parameters have one, and on an accelerator leaves the
        buffers uninitialised where the kernel is told to skip the very first step.
        """
        if not self.group.get("dampening") and self._lack_buffers():
            for p in self.params:
                if self.state[p].get("momentum_buffer") is None:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)

    def _lack_buffers(self) -> bool:
        if not self.group.get("momentum") or len(self.kept) == len(self.params):
            return False
        missing = sum(self.state.get(p, {}).get("momentum_buffer") is None for p in self.params)
        return missing > 0 and (missing < len(self.params) or not self.on_host)

    def host_steps_to_device(self) -> None:
        """Move the step counts of a plain checkpoint to where the kernel wants them."""
        for p in self.params if not self.on_host else ():
            step = self.state.get(p, {}).get("step")
            if isinstance(step, Tensor) and step.device != p.device:
                self.state[p]["step"] = step.to(p.device, torch.float32)


def _lie_alike(param: Tensor, grad: Tensor) -> bool:
    if type(param) not in (Parameter, Tensor) or type(grad) is not Tensor or grad.layout is not torch.strided:
        return False
    if grad.dtype is not param.dtype or not grad.is_floating_point():
        return False
    if param.device.type not in _DEVICES:
        return False
    if param.is_contiguous() and grad.is_contiguous():
        return True
    return param.stride() == grad.stride() and bool(torch.ops.aten.is_non_overlapping_and_dense(param))
