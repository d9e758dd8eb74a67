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
    """Return the step function without torch's wrapper for the step hooks, which ``Clipped.step`` has run already."""
    function = getattr(step, "__func__", step)
    return cast(StepFunction, vars(function)["__wrapped__"] if getattr(function, "hooked", False) else function)


def with_quick_hooks(hooked: StepFunction) -> StepFunction:
    """Return a step that calls torch's wrapper ``hooked`` only if there are hooks or a profiler.

    The wrapper's profiler range takes as long as the norm of a small model. Without a profiler a range of the same name is
    opened in a thirtieth of the time, for other observers of ranges.
    """
    step = undecorated(hooked)

    # cloudpickle copies this function and the objects that it names, except modules
    @wraps(step)
    def quick(self: Optimizer, *args: object, **kwargs: object) -> object:
        if (
            torch.compiler.is_compiling()  # first: torch's compiler may not support the next calls
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
