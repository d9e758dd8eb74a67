"""One step of one clip set of the slow model: which blocks there are, how long is too long, and what is clipped.

A block is a list of numpy views into the gradients, so that shortening it changes the gradients. Formulas come from
``reference.py``.
"""

import math
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from ..reference import CLIPPING_TYPES, AdaGC, ZClip, clipping_probability, mean_and_std, p_norm, quantile

MEMORIES = {"quantile": list, "zscore": list, "zclip": ZClip, "adagc": AdaGC}  # quantile and zscore: the last norms


class ClipSet(NamedTuple):
    """The groups whose clipping arguments are equal: the place of the first, the arguments, the tensors by name and place."""

    first: int
    arguments: dict[str, Any]
    names: list[int]
    places: list[int]

    @property
    def row(self):
        return CLIPPING_TYPES[self.arguments["clipping_type"]]

    def pick(self, gradients):
        """The gradients that are there."""
        return [gradients[place] for place in self.places if gradients[place] is not None]

    def block_names(self):
        """The tensors of each block that may have something to remember."""
        return [frozenset(self.names)] if self.row.measure == "global" else [frozenset([name]) for name in self.names]


class Values(NamedTuple):
    """What a set tells of one step."""

    recorded: bool
    clipped: bool
    grad_norm: float = math.nan
    clipped_norm: float = math.nan
    threshold: float = math.nan
    coefficient: float = math.nan


def blocks_of(measure, arrays):
    """The blocks of some arrays (None: missing): lists of views."""
    present = [array for array in arrays if array is not None]
    if measure == "global":
        return [present]
    if measure == "layer":
        return [[] if array is None else [array] for array in arrays]
    rows = [array.reshape(len(array), -1) if array.ndim > 1 else array.reshape(1, -1) for array in present]
    return [[row] for matrix in rows for row in matrix]


def norm_of(views, norm_type):
    return p_norm([value for view in views for value in view.reshape(-1).tolist()], norm_type)


def clip_set(model, one, gradients):
    """Clip the gradients of one set and return what it tells; what the model remembers moves on."""
    mine, norm_type = one.pick(gradients), one.arguments["norm_type"]
    if one.row.measure == "coordinate":
        return clip_coordinates(mine, one.arguments["clipping_level"])
    blocks = blocks_of(one.row.measure, [gradients[place] for place in one.places])
    lengths = [norm_of(block, norm_type) for block in blocks]
    whole = norm_of(mine, norm_type)
    thresholds, coefficients = [], []
    for number, (block, length) in enumerate(zip(blocks, lengths, strict=True)):
        if length == 0 or not math.isfinite(length):
            continue
        threshold = threshold_of(model, one, number, length, whole, gradients)
        alpha = threshold / length
        is_clipped = alpha < 1 and decides(model, one, alpha)
        for view in block if is_clipped else ():
            view *= alpha
        thresholds.append(threshold)
        coefficients.append(alpha if is_clipped else 1.0)
    told = (median(thresholds), median(coefficients)) if thresholds else (math.nan, math.nan)
    recorded, clipped = any(length != 0 for length in lengths), min(coefficients, default=1) < 1
    return Values(recorded, clipped, whole, norm_of(mine, norm_type), *told)


def clip_coordinates(arrays, level):
    """Clamp the entries; inf is clamped too, NaN stays, and both count as clipped."""
    recorded = any((array != 0).any() for array in arrays)
    clipped = any((~(np.abs(array) <= level)).any() for array in arrays)
    for array in arrays:
        array[...] = np.clip(array, -level, level)
    return Values(recorded, clipped)


def decides(model, one, alpha):
    if one.row.power == 0:
        return True
    arguments = one.arguments
    number = model.draw(arguments["clipping_seed"], one.first, model.steps)
    decided = number < clipping_probability(alpha, arguments["clipping_beta"], one.row.power)
    model.events.append("drawn to be clipped" if decided else "drawn to be left alone")
    return decided


def threshold_of(model, one, number, length, whole, gradients):
    """The threshold of one block; what is remembered of it moves on."""
    kind, level, norm_type = one.row.threshold, one.arguments["clipping_level"], one.arguments["norm_type"]
    if kind == "constant":
        return level
    if kind == "weights":
        params = model.params()
        weights = [params[i].detach().numpy() if gradients[i] is not None else None for i in one.places]
        norm = norm_of(blocks_of("unit", weights)[number], norm_type)
        model.events += ["weights shorter than the floor"] if norm < 1e-3 else []
        return level * (norm if math.isnan(norm) else max(norm, 1e-3))
    key = (MEMORIES[kind], norm_type, one.block_names()[number])
    memory = model.memories[key]
    if kind == "zclip":
        model.events += ["zclip after its warm-up"] if len(memory.first_norms) == ZClip.WARM_UP else []
        return memory.threshold(length, level)
    if kind == "adagc":
        if model.steps < AdaGC.WARM_UP and not math.isfinite(whole):
            return math.inf
        model.events += ["adagc after its warm-up"] if model.steps >= AdaGC.WARM_UP else []
        return memory.threshold(0, length, whole, model.steps + 1, level)
    model.memories[key] = [*memory, length][-one.arguments["clipping_window"] :]
    if kind == "quantile":
        return quantile(model.memories[key], level)
    mean, std = mean_and_std(memory) if len(memory) >= 2 else (math.inf, 0.0)
    return mean + level * std
