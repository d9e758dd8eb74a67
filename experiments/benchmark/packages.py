"""Contenders from other packages that clip, called as their documentation says; a missing package gets a row that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from torch import Tensor, nn

from .contenders import Contender, gradient_verification, plain_optimizer
from .levels import SHORTER, WINDOW
from .problem import GRADIENT_STD, LEARNING_RATE, Problem

Made = tuple[Callable[[], object], Callable[[], None] | None]


def package_contenders(problem: Problem) -> Iterator[Contender]:
    """Yield the packages of the extra ``benchmark``, clipping in every step; skip those that are missing or raise."""
    for package, kind, make in PACKAGES:
        try:
            name = f"{package} {version(package)} ({kind})"
        except PackageNotFoundError:
            yield skipped(f"{package} ({kind})", "not installed")
            continue
        try:
            step, verify = make(problem)
            problem.restore_gradients()
            step()
        except Exception as error:  # other packages may raise anything; a row says what
            yield skipped(name, reason(error))
            continue
        yield Contender(name, "yes", step, verify or gradient_verification(problem, step, name))


def skipped(name: str, why: str) -> Contender:
    """Return a contender without steps, whose row has no numbers."""
    return Contender(name, "-", lambda: None, lambda: None, why)


def reason(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _torch_clip(problem: Problem) -> Made:
    if problem.optimizer != "sgd":
        raise NotImplementedError("the package has SGD only")
    level, norm = float(problem.lengths("global")) / 2, float(problem.lengths("global"))
    optimizer = import_module("torch_clip.optimizers").ClippedSGD(
        problem.parameters, lr=LEARNING_RATE, clipping_type="norm", clipping_level=level, **problem.arguments
    )
    problem.share_state(optimizer)

    def verify() -> None:  # it scales the momentum, not the gradients
        if not optimizer.grad_desc_step.get_alpha(grad_norm=norm, clipping_level=level) < 1:
            raise RuntimeError("torch-clip claims to clip, but does not")

    return optimizer.step, verify


def _autoclip(problem: Problem, whole_gradient: bool) -> Made:
    optimizer = import_module("autoclip.torch").QuantileClip.as_optimizer(
        optimizer=plain_optimizer(problem, fused=True), quantile=0.5, history_length=WINDOW, global_threshold=whole_gradient
    )
    if whole_gradient:
        optimizer.clipper.state["global_history"] = _history(problem, sum(problem.numels))
    else:
        for parameter in problem.parameters:
            optimizer.clipper.state[parameter]["history"] = _history(problem, parameter.numel())
    return optimizer.step, None


def _zclip(problem: Problem) -> Made:
    clipper, model = import_module("zclip").ZClip(), nn.ParameterList(problem.parameters)
    clipper.buffer = _history(problem, sum(problem.numels))[: clipper.warmup_steps].tolist()
    clipper._initialize_ema()
    optimizer = plain_optimizer(problem, fused=True)

    def step() -> None:
        clipper.step(model)
        optimizer.step()

    return step, None


def _history(problem: Problem, numel: int) -> Tensor:
    """Return a full window of gradient norms, about half the norm of ``numel`` entries of the problem."""
    noise = np.random.default_rng(0).uniform(0.9, 1.1, WINDOW)
    lengths = torch.tensor(SHORTER * GRADIENT_STD * numel**0.5 * noise, dtype=torch.float32)
    return lengths.to(problem.parameters[0].device)


PACKAGES: tuple[tuple[str, str, Callable[[Problem], Made]], ...] = (
    ("torch-clip", "norm", _torch_clip),
    ("autoclip", "whole gradient", lambda problem: _autoclip(problem, True)),
    ("autoclip", "each tensor", lambda problem: _autoclip(problem, False)),
    ("zclip", "default", _zclip),
)
