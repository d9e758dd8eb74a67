"""Torch's wrapper around an optimizer's step: its hooks, and its range in the profiler."""

from __future__ import annotations

from functools import wraps
from itertools import chain
from typing import cast

import torch
import torch.optim.optimizer as torch_optimizer
from torch.optim import Optimizer

from .types import StepFunction

__all__ = ["undecorated", "with_quick_hooks"]


def undecorated(step: StepFunction) -> StepFunction:
    """Return the step function without torch's wrapper that runs the step hooks: ``Clipped.step`` has run them already."""
    function = getattr(step, "__func__", step)
    return cast(StepFunction, vars(function)["__wrapped__"] if getattr(function, "hooked", False) else function)


def with_quick_hooks(hooked: StepFunction) -> StepFunction:
    """Return a step that goes through torch's wrapper ``hooked`` only where there are hooks or a profiler.

    The range that the wrapper opens for the profiler takes as long as the norm of a small model. Without a profiler a
    range of the same name is opened at a thirtieth of the time, for whatever else observes ranges.
    """
    step = undecorated(hooked)

    # cloudpickle copies this function and what it names: all but modules would be other objects then
    @wraps(step)
    def quick(self: Optimizer, *args: object, **kwargs: object) -> object:
        if (
            torch.compiler.is_compiling()  # first: torch's compiler may not know what comes next
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or torch._C._autograd._profiler_enabled()
        ):
            return hooked(self, *args, **kwargs)
        with torch._C._profiler._RecordFunctionFast(f"Optimizer.step#{type(self).__name__}.step"):
            returned = step(self, *args, **kwargs)
        for hook in chain(self._optimizer_step_post_hooks.values(), torch_optimizer._global_optimizer_post_hooks.values()):
            hook(self, (self, *args), kwargs)  # registered during the step
        return returned

    vars(quick)["hooked"] = True
    return quick
