"""A slow model of a clipped optimizer: what the contract says, step by step, in float64, above a plain torch optimizer.

It imports nothing of the library. What a type remembers of a block stands under the names of the tensors in the block: a
block that gains or loses a tensor is another block, and remembers nothing.
"""

import math

import numpy as np
import torch

from ..reference import CLIPPING_TYPES
from .clipping import MEMORIES, ClipSet, clip_set, norm_of

ALIASES = {"value": "coord_wise", "no_clip": "none", "coordinate_wise": "coord_wise", "auto_clip": "auto"}
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

    def hand_over(self, group, other):
        """Move the last tensor of a group to the end of another one."""
        for groups, key in ((self.plain.param_groups, "params"), ([vars(one) for one in self.groups], "names")):
            groups[other][key].append(groups[group][key].pop())

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
            unknown = [math.nan if self.steps or self.skipped_steps else 0] * 3  # those of a set that was another before
            counts[frozenset(one.names)] = self.set_counts.get(frozenset(one.names), unknown)
            make = MEMORIES.get(one.row.threshold)
            for block in one.block_names() if make else ():
                key = (make, one.arguments["norm_type"], block)
                memories[key] = self.memories.get(key)
                if memories[key] is None:
                    changed = any(former[0] is make and former[2] & block for former in self.memories)
                    self.events += [f"history starts anew{', of a changed block' if changed else ''}"] if self.steps else []
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
        bad = [not all(np.isfinite(g).all() for g in one.pick(gradients)) for one in sets]
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
            for g in one.pick(gradients) if pair == ("zero", True) else ():
                g[~np.isfinite(g)] = 0
        self._clip(sets, gradients)
        for p, g in zip(self.params(), gradients, strict=True):
            p.grad = None if g is None else torch.from_numpy(g.copy())
        self.plain.step()
        return "done"

    def _clip(self, sets, gradients):
        whole = self._whole_norm(gradients)
        self.values = [clip_set(self, one, gradients) for one in sets]
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
