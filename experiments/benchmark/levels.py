"""Make each clipping type of ``benchmark`` clip in every step, or in none, although the gradients are always the same.

Types without state get a level below or above the norms of the gradients. Types with state get the state after a full window
of gradients with half the norm, or with twice the norm, so that the timings are those of a long training. The state comes from
a dwarf optimizer with parameters of one entry, one for each number of entries of the real parameters.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torch_clipped import ClippedSGD
from torch_clipped._engine.arguments import MEMORY
from torch_clipped._engine.state import is_memory
from torch_clipped.clipping import CLIPPING_TYPES, Clipping
from torch_clipped.decisions import Always
from torch_clipped.thresholds import MeanStd, Quantile, RatioToWeights

from .problem import GRADIENT_STD, Problem

WINDOW = 1000
# Less than half of the window, so that the constant gradients do not fill the history.
LONGEST_RUN = 400
SHORTER, LONGER = 0.5, 2.0
BETA = 0.999  # the random types clip nearly always
ALMOST_ALWAYS = 0.9


def clipping_arguments(name: str, problem: Problem, clipped: bool) -> dict[str, Any]:
    """Return the arguments of an optimizer that clips the problem's gradients in every block, or in none.

    Clipping by coordinates changes some entries of every tensor.

    Args:
        name: a clipping type.
        problem: the gradients.
        clipped: whether to clip.
    """
    rule = CLIPPING_TYPES[name]
    if rule is None:
        return {"clipping_type": name}
    return {
        "clipping_type": name,
        "clipping_level": _level(rule, problem, clipped),
        "clipping_beta": BETA,
        "clipping_window": WINDOW,
    }


def _level(rule: Clipping, problem: Problem, clipped: bool) -> float:
    if rule.threshold.memory(1, WINDOW):
        # The quantile or number of standard deviations that adapts most slowly to another norm; the cost is the same for all.
        return 0.5 if isinstance(rule.threshold, (Quantile, MeanStd)) else rule.threshold.default_level
    lengths = problem.lengths(rule.measure)
    if isinstance(rule.threshold, RatioToWeights):
        lengths = lengths / problem.lengths(rule.measure, of_weights=True).clamp(min=1e-3)
    return float(SHORTER * lengths.min() if clipped else LONGER * lengths.max())


def is_random(name: str) -> bool:
    """Return whether this type may leave a gradient above the threshold unclipped."""
    rule = CLIPPING_TYPES[name]
    return rule is not None and not isinstance(rule.decision, Always)


def full_memory(name: str, problem: Problem, clipped: bool) -> dict[str, Tensor]:
    """Return the state of this type after a full window of smaller gradients, if it should clip, or of larger ones.

    The result is empty for a type whose threshold has no state: all its steps cost the same.
    """
    rule = CLIPPING_TYPES[name]
    if rule is None or not rule.threshold.memory(1, WINDOW):
        return {}
    numels = problem.numels if rule.measure == "layer" else (sum(problem.numels),)
    alike = (
        other for other, its in CLIPPING_TYPES.items() if its and (its.measure, its.threshold) == (rule.measure, rule.threshold)
    )
    distinct = tuple(dict.fromkeys(numels))  # tensors of equal size have the same state
    memory = dict(_memory_of_dwarf(next(alike), distinct, SHORTER if clipped else LONGER, WINDOW))
    for key in rule.threshold.memory(1, WINDOW):
        memory[MEMORY + key] = memory[MEMORY + key][..., [distinct.index(numel) for numel in numels]]
    return memory


@cache
def _memory_of_dwarf(name: str, numels: tuple[int, ...], factor: float, window: int) -> dict[str, Tensor]:
    """Return the state after a window of gradients with about ``factor`` times the norms of normal blocks of these sizes."""
    rule = CLIPPING_TYPES[name]
    assert rule is not None
    never = 1.0 if isinstance(rule.threshold, Quantile) else 1e9  # high enough for the warm-up of AdaGC, which clips
    dwarf = [nn.Parameter(torch.zeros(1)) for _ in numels]
    lengths = factor * GRADIENT_STD * torch.tensor(numels, dtype=torch.float32).sqrt()
    gradients = torch.zeros_like(lengths)
    for parameter, gradient in zip(dwarf, gradients.split(1), strict=True):
        parameter.grad = gradient
    optimizer = ClippedSGD(dwarf, lr=0.0, clipping_type=name, clipping_level=never, clipping_window=window)
    for noise in np.random.default_rng(0).uniform(0.9, 1.1, window):
        torch.mul(lengths, noise, out=gradients)
        optimizer.step()
    return {key: value for key, value in optimizer.param_groups[0].items() if is_memory(key)}
