"""A slow model of a clipped optimizer: what the contract says, step by step, in float64, above a plain torch optimizer.

It imports nothing of the library; formulas come from ``reference.py``. A block is a list of numpy views into the gradients, so
that shortening it changes the gradients. What a type remembers of a block stands under the tensors the block is made of: a
block that gains or loses a tensor is another block, and remembers nothing.
"""

import math
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from reference import CLIPPING_TYPES, AdaGC, ZClip, clipping_probability, mean_and_std, p_norm, quantile

ALIASES = {"value": "coord_wise", "no_clip": "none", "coordinate_wise": "coord_wise", "auto_clip": "auto"}
MEMORIES = {"quantile": list, "zscore": list, "zclip": ZClip, "adagc": AdaGC}  # quantile and zscore: the last norms
DEFAULTS = {
    "clipping_type": "norm",
    "clipping_level": None,
    "clipping_beta": 0.85,
    "clipping_window": 1000,
    "norm_type": 2.0,
    "nonfinite": "skip",
    "clipping_seed": 0,
}


def completed(arguments):
    """Clipping arguments with the present name of their type, and its default level where they name none."""
    name = ALIASES.get(arguments["clipping_type"], arguments["clipping_type"])
    level = CLIPPING_TYPES[name].level if arguments["clipping_level"] is None and name != "none" else arguments["clipping_level"]
    return {**arguments, "clipping_type": name, "clipping_level": level}


class Group:
    """The names of a group's tensors and its clipping arguments."""

    def __init__(self, names, arguments):
        self.names, self.arguments = names, arguments


class ClipSet(NamedTuple):
    """The groups whose clipping arguments are equal: the place of the first, the arguments, the tensors by name and place."""

    first: int
    arguments: dict[str, Any]
    names: list[int]
    places: list[int]

    @property
    def row(self):
        return CLIPPING_TYPES[self.arguments["clipping_type"]]

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


class Model:
    """A plain torch optimizer whose gradients are clipped by hand.

    Args:
        plain: a torch optimizer over float64 copies of the parameters.
        arguments: the clipping arguments of its groups.
        defaults: those of a group that names none.
        draw: the number in [0, 1) that belongs to a seed, the place of a set's first group, and a count of steps.
    """

    def __init__(self, plain, arguments, defaults, draw):
        self.plain, self.defaults, self.draw = plain, DEFAULTS | defaults, draw
        self.groups, self.named = [], 0
        for group, own in zip(plain.param_groups, arguments, strict=True):
            self._name(group["params"], own)
        self.forget()

    def forget(self):
        """Start all histories and counts anew, as where a checkpoint of a plain optimizer is loaded."""
        self.memories, self.set_counts, self.grad_norms = {}, {}, []
        self.steps = self.clipped_steps = self.skipped_steps = 0
        self.values = []
        self.events = []

    def _name(self, params, own):
        level = {"clipping_level": None} if "clipping_type" in own else {}
        names = [self.named + i for i in range(len(params))]
        self.named += len(params)
        self.groups.append(Group(names, self.defaults | level | own))

    def add(self, params, own):
        self.plain.add_param_group({"params": params})
        self._name(params, own)

    def pop(self, index):
        self.plain.param_groups.pop(index)
        self.groups.pop(index)

    def reverse(self):
        self.plain.param_groups.reverse()
        self.groups.reverse()

    def params(self):
        return [p for group in self.plain.param_groups for p in group["params"]]

    def sets(self):
        """The clip sets, in the order of their first groups; groups of type none are in none."""
        sets, place = [], 0
        for index, group in enumerate(self.groups):
            places = list(range(place, place + len(group.names)))
            place += len(group.names)
            if group.arguments["clipping_type"] == "none":
                continue
            equal = next((s for s in sets if s.arguments == group.arguments), None)
            if equal is None:
                sets.append(ClipSet(index, group.arguments, list(group.names), places))
            else:
                equal.names.extend(group.names)
                equal.places.extend(places)
        return sets

    def settle(self):
        """Take notice of what was done to the groups: keep the memory of the blocks that are still there."""
        for group in self.groups:
            group.arguments = completed(group.arguments)
        memories, counts = {}, {}
        for one in self.sets():
            counts[frozenset(one.names)] = self.set_counts.get(frozenset(one.names), [math.nan] * 3 if self.steps else [0] * 3)
            make = MEMORIES.get(one.row.threshold)
            for block in one.block_names() if make else ():
                key = (make, one.arguments["norm_type"], block)
                memories[key] = self.memories.get(key)
                if memories[key] is None:
                    self.events += ["history starts in the middle"] if self.steps else []
                    memories[key] = make()
                if make is list:
                    memories[key] = memories[key][-one.arguments["clipping_window"] :]
        self.memories, self.set_counts = memories, counts
        if self.groups:
            self.grad_norms = self.grad_norms[-self.groups[0].arguments["clipping_window"] :]

    def step(self, gradients):
        """Take a step with these float64 arrays (None: missing), which are changed; returns done, skipped or error."""
        self.settle()
        self.values = []
        sets = self.sets()
        bad = [not all(np.isfinite(g).all() for g in self._of(one, gradients)) for one in sets]
        policies = [one.arguments["nonfinite"] for one in sets]
        pairs = list(zip(policies, bad, strict=True))
        self.events += [f"not finite, {policy}" for policy, is_bad in pairs if is_bad]
        if ("error", True) in pairs:
            return "error"
        if ("skip", True) in pairs:
            self.skipped_steps += 1
            for one, pair in zip(sets, pairs, strict=True):
                self.set_counts[frozenset(one.names)][2] += pair == ("skip", True)
            return "skipped"
        for one, pair in zip(sets, pairs, strict=True):
            for g in self._of(one, gradients) if pair == ("zero", True) else ():
                g[~np.isfinite(g)] = 0
        self._clip(sets, gradients)
        for p, g in zip(self.params(), gradients, strict=True):
            p.grad = None if g is None else torch.from_numpy(g.copy())
        self.plain.step()
        return "done"

    def _of(self, one, gradients):
        return [gradients[place] for place in one.places if gradients[place] is not None]

    def _clip(self, sets, gradients):
        whole = self._whole_norm(gradients)
        self.values = [self._clip_set(one, gradients) for one in sets]
        for one, values in zip(sets, self.values, strict=True):
            counts = self.set_counts[frozenset(one.names)]
            counts[0] += values.recorded
            counts[1] += values.clipped
        if any(values.recorded for values in self.values):
            self.steps += 1
            self.clipped_steps += any(values.clipped for values in self.values)
            if math.isfinite(whole):
                self.grad_norms = [*self.grad_norms, whole][-self.groups[0].arguments["clipping_window"] :]

    def _whole_norm(self, gradients):
        """The norm of the whole gradient, NaN where it is not measured."""
        measured = all(CLIPPING_TYPES[g.arguments["clipping_type"]].measure != "coordinate" for g in self.groups)
        norm_types = {g.arguments["norm_type"] for g in self.groups}
        if not measured or len(norm_types) != 1 or any(g.arguments["clipping_type"] == "none" for g in self.groups):
            return math.nan
        return norm_of([g for g in gradients if g is not None], norm_types.pop())

    def _clip_set(self, one, gradients):
        mine, norm_type = self._of(one, gradients), one.arguments["norm_type"]
        if one.row.measure == "coordinate":
            return self._clip_coordinates(mine, one.arguments["clipping_level"])
        blocks = blocks_of(one.row.measure, [gradients[place] for place in one.places])
        lengths = [norm_of(block, norm_type) for block in blocks]
        whole = norm_of(mine, norm_type)
        thresholds, coefficients = [], []
        for number, (block, length) in enumerate(zip(blocks, lengths, strict=True)):
            if length == 0 or not math.isfinite(length):
                continue
            threshold = self._threshold(one, number, length, whole, gradients)
            alpha = threshold / length
            is_clipped = alpha < 1 and self._decides(one, alpha)
            for view in block if is_clipped else ():
                view *= alpha
            thresholds.append(threshold)
            coefficients.append(alpha if is_clipped else 1.0)
        told = (median(thresholds), median(coefficients)) if thresholds else (math.nan, math.nan)
        return Values(any(length != 0 for length in lengths), min(coefficients, default=1) < 1, whole, norm_of(mine, norm_type), *told)

    def _clip_coordinates(self, arrays, level):
        """Clamp the entries; inf is clamped too, NaN stays, and both count as clipped."""
        recorded = any((array != 0).any() for array in arrays)
        clipped = any((~(np.abs(array) <= level)).any() for array in arrays)
        for array in arrays:
            array[...] = np.clip(array, -level, level)
        return Values(recorded, clipped)

    def _decides(self, one, alpha):
        if one.row.power == 0:
            return True
        arguments = one.arguments
        number = self.draw(arguments["clipping_seed"], one.first, self.steps)
        decided = number < clipping_probability(alpha, arguments["clipping_beta"], one.row.power)
        self.events.append("drawn to be clipped" if decided else "drawn to be left alone")
        return decided

    def _threshold(self, one, number, length, whole, gradients):
        """The threshold of one block; what is remembered of it moves on."""
        kind, level, norm_type = one.row.threshold, one.arguments["clipping_level"], one.arguments["norm_type"]
        if kind == "constant":
            return level
        if kind == "weights":
            params = self.params()
            weights = [params[i].detach().numpy() if gradients[i] is not None else None for i in one.places]
            norm = norm_of(blocks_of("unit", weights)[number], norm_type)
            self.events += ["weights shorter than the floor"] if norm < 1e-3 else []
            return level * (norm if math.isnan(norm) else max(norm, 1e-3))
        key = (MEMORIES[kind], norm_type, one.block_names()[number])
        memory = self.memories[key]
        if kind == "zclip":
            self.events += ["zclip after its warm-up"] if len(memory.first_norms) == ZClip.WARM_UP else []
            return memory.threshold(length, level)
        if kind == "adagc":
            if self.steps < AdaGC.WARM_UP and not math.isfinite(whole):
                return math.inf
            self.events += ["adagc after its warm-up"] if self.steps >= AdaGC.WARM_UP else []
            return memory.threshold(0, length, whole, self.steps + 1, level)
        self.memories[key] = [*memory, length][-one.arguments["clipping_window"] :]
        if kind == "quantile":
            return quantile(self.memories[key], level)
        mean, std = mean_and_std(memory) if len(memory) >= 2 else (math.inf, 0.0)
        return mean + level * std
