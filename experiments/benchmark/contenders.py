"""Contenders of ``benchmark``: torch's optimizers and clipping functions, and clipped optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from torch_clipped import Clipped
from torch_clipped.clipping import CLIPPING_TYPES

from .levels import ALMOST_ALWAYS, clipping_arguments, full_memory, is_random
from .problem import LEARNING_RATE, Problem

FLOOR = "torch fused"
DEFAULT = "torch default"
NORM_FUSED, NORM_DEFAULT = "clip_grad_norm_ + torch fused", "clip_grad_norm_ + torch default"
VALUE_FUSED, VALUE_DEFAULT = "clip_grad_value_ + torch fused", "clip_grad_value_ + torch default"
COMPILED = "norm, under torch.compile"
TORCH = (FLOOR, DEFAULT, NORM_FUSED, NORM_DEFAULT, VALUE_FUSED, VALUE_DEFAULT)


@dataclass
class Contender:
    """Optimizer step that is timed.

    ``clipped`` is "yes", "no" or "-" for contenders that cannot clip. ``verify`` raises RuntimeError if the steps did not
    clip as ``clipped`` says. ``skipped`` is the reason if there are no steps.
    """

    name: str
    clipped: str
    step: Callable[[], object]
    verify: Callable[[], None]
    skipped: str = ""


def torch_contenders(problem: Problem) -> Iterator[Contender]:
    """Yield torch's optimizer, fused and by default, alone and after each of torch's two clipping functions."""
    longest, largest = float(problem.lengths("global")) / 2, clipping_arguments("coord_wise", problem, True)["clipping_level"]
    parameters = problem.parameters
    for fused, alone, by_norm, by_value in ((True, *TORCH[::2]), (False, *TORCH[1::2])):
        step = plain_optimizer(problem, fused).step

        def norm_step(step: Callable[[], object] = step) -> None:
            clip_grad_norm_(parameters, longest)
            step()

        def value_step(step: Callable[[], object] = step) -> None:
            clip_grad_value_(parameters, largest)
            step()

        yield Contender(alone, "-", step, lambda: None)
        yield Contender(by_norm, "yes", norm_step, gradient_verification(problem, norm_step, by_norm))
        yield Contender(by_value, "yes", value_step, gradient_verification(problem, value_step, by_value))


def plain_optimizer(problem: Problem, fused: bool) -> Optimizer:
    """Return torch's optimizer with the shared state, fused or with torch's default implementation."""
    flags = {"fused": True} if fused else {}
    optimizer = problem.plain(problem.parameters, lr=LEARNING_RATE, **problem.arguments, **flags)
    problem.share_state(optimizer, fused)
    return optimizer


def gradient_verification(problem: Problem, step: Callable[[], object], name: str) -> Callable[[], None]:
    """Return a function that takes one more step and raises RuntimeError if it leaves the gradients unchanged."""

    def verify() -> None:
        problem.restore_gradients()
        step()
        if not problem.gradients_are_clipped():
            raise RuntimeError(f"{name} claims to clip, but left the gradients unchanged")

    return verify


def our_contenders(problem: Problem) -> Iterator[Contender]:
    """Yield every clipping type, not clipping and clipping, and last the type norm with a compiled step."""
    for name, rule in CLIPPING_TYPES.items():
        for clipped in (False, True) if rule is not None else (False,):
            optimizer = clipped_optimizer(problem, name, clipped)
            yield Contender(name, "yes" if clipped else "no", optimizer.step, Verification(optimizer, name, clipped))
    for clipped in (False, True):
        optimizer = clipped_optimizer(problem, "norm", clipped)
        step = torch.compile(optimizer.step)
        yield Contender(COMPILED, "yes" if clipped else "no", step, Verification(optimizer, "norm", clipped))


def clipped_optimizer(problem: Problem, name: str, clipped: bool) -> Clipped:
    """Return our optimizer with the shared state, and with a clipping state that makes it clip or not."""
    arguments = problem.arguments | clipping_arguments(name, problem, clipped)
    optimizer = problem.clipped(problem.parameters, lr=LEARNING_RATE, **arguments)
    assert isinstance(optimizer, Clipped)
    saved = optimizer.state_dict()  # loaded before there is other state, which would be copied
    saved["param_groups"][0].update(full_memory(name, problem, clipped))
    optimizer.load_state_dict(saved)
    problem.share_state(optimizer)
    return optimizer


class Verification:
    """Compare an optimizer's clipping statistics since construction with ``clipped``; raise RuntimeError if they differ."""

    def __init__(self, optimizer: Clipped, name: str, clipped: bool) -> None:
        self.optimizer, self.name, self.clipped = optimizer, name, clipped
        self.before = optimizer.clipping_stats()

    def __call__(self) -> None:
        stats = self.optimizer.clipping_stats()
        steps, clipped_steps, skipped = (stats[k] - self.before[k] for k in ("steps", "clipped_steps", "skipped_steps"))
        done = f"{self.name} clipped {clipped_steps:g} and skipped {skipped:g} of {steps:g} steps"
        if skipped or (not self.clipped and clipped_steps):
            raise RuntimeError(f"{done}, but should clip none" if not self.clipped else f"{done}: none should be skipped")
        if self.clipped:
            wanted = ALMOST_ALWAYS if is_random(self.name) else 1.0
            if not steps or clipped_steps < wanted * steps:
                raise RuntimeError(f"{done}, but should clip at least {wanted:.0%} of them")
            if wanted == 1 and stats["coefficient"] >= 1:  # NaN for types without a coefficient
                raise RuntimeError(f"{done}, but left most blocks of the last one unclipped")
