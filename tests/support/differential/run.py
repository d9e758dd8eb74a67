"""A sequence of actions, done to a clipped optimizer and to the slow model, which are compared after every step."""

import math

import numpy as np
import torch

from torch_clipped.decisions import uniform

from .actions import LOOP, OPTIMIZERS, Actions, doubles, start
from .model import Model
from .sequences import random_gradients

TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-9}


class DifferenceError(Exception):
    """The optimizer does not do what the model does."""


def flat(tensors):
    return np.concatenate([np.zeros(0), *(t.detach().double().reshape(-1).numpy() for t in tensors if t is not None)])


def same(what, found, wanted, tolerance, smallest=1e-6):
    """Raise unless both are equal, relative to the largest entry or ``smallest``; NaN and infinities count as one."""
    if found.shape == wanted.shape:
        finite = np.isfinite(wanted)
        bound = tolerance * np.abs(wanted[finite]).max(initial=smallest)
        if (np.isfinite(found) == finite).all() and (np.abs(found - wanted)[finite] <= bound).all():
            return
    raise DifferenceError(f"{what}: {found} instead of {wanted}")


class Run(Actions):
    """The optimizer and the model, to which the same is done."""

    def __init__(self, sequence, counts):
        self.sequence, self.counts, self.saved = sequence, counts, None
        self.clipped_class, self.plain_class, self.options = OPTIMIZERS[sequence.optimizer]
        groups = [
            {"params": start(shapes, sequence.dtypes, sequence.seed + i), **own}
            for i, (shapes, own) in enumerate(sequence.groups)
        ]
        plain = self.plain_class([{"params": doubles(group["params"])} for group in groups], **self.options, **LOOP)
        self.model = Model(plain, [own for _, own in sequence.groups], sequence.defaults, uniform)
        self.optimizer = self.made(groups)

    def run(self):
        for number, action in enumerate(self.sequence.actions):
            try:
                done = getattr(self, action.kind.replace(" ", "_"))(**action.details)
                self.counts[f"action {action.kind} {action.details.get('how', '')}".strip()] += done is not False
            except DifferenceError as difference:
                raise DifferenceError(f"action {number}: {difference}") from None
            except Exception as error:
                raise DifferenceError(f"action {number}: {type(error).__name__}: {error}") from error

    # Steps

    def many_steps(self, times, **details):
        for offset in range(times):
            self.step(offset=offset, **details)

    def step(self, offset=0, closure=False, **details):
        params, grads = self.params(), self.gradients(details, offset)

        def give_gradients():
            for p, g in zip(params, grads, strict=True):
                p.grad = g

        before = [p.detach().clone() for p in params]
        clipped = [None if g is None else g.double().numpy().copy() for g in grads]
        wanted = self.model.step(clipped)
        try:
            if closure and self.clipped_class is not None:
                self.optimizer.step(give_gradients)
            else:
                give_gradients()
                self.optimizer.step()
            if wanted == "error":
                raise DifferenceError("no error was raised")
        except RuntimeError as error:
            if wanted != "error" or "parameter group" not in str(error):
                raise
        self.count(wanted, details)
        self.compare(clipped)
        self.heal(before)

    def gradients(self, details, offset):
        params = self.params()
        grads = random_gradients(details, [p.shape for p in params], [p.dtype for p in params], offset)
        if self.sequence.flags != "fused":
            return grads
        left_to_torch = [group.arguments["clipping_type"] == "none" for group in self.model.groups for _ in group.names]
        # torch's fused kernels take a transposed gradient in the wrong order
        return [g.contiguous() if left and g is not None else g for g, left in zip(grads, left_to_torch, strict=True)]

    def count(self, result, details):
        self.counts.update([f"step {result}", *(f"gradient {kind}" for kind in {*details["kinds"]}), *self.model.events])
        self.model.events.clear()
        if result == "done":
            for one, values in zip(self.model.sets(), self.model.values, strict=True):
                name = one.arguments["clipping_type"]
                self.counts.update({f"type {name}": values.recorded, f"type {name} clipped": values.clipped})

    def compare(self, grads):
        params, copies = self.params(), self.model.params()
        for i, (p, q, g) in enumerate(zip(params, copies, grads, strict=True)):
            tolerance = TOLERANCE[min(self.sequence.dtypes, key=str)]
            same(f"weights of parameter {i}", flat([p]), flat([q]), 2 * tolerance, 0.01)
            if (p.grad is None) != (g is None):
                raise DifferenceError(f"gradient of parameter {i}: {p.grad} instead of {g}")
            same(f"gradient of parameter {i}", flat([p.grad]), flat([]) if g is None else g.reshape(-1), tolerance)
        self.compare_statistics()

    def compare_statistics(self):
        model, stats = self.model, self.optimizer.clipping_stats()
        wanted = {"steps": model.steps, "clipped_steps": model.clipped_steps, "skipped_steps": model.skipped_steps}
        if any(stats[name] != value for name, value in wanted.items()):
            raise DifferenceError(f"statistics: {stats} instead of {wanted}")
        same("grad_norms()", self.optimizer.grad_norms().numpy(), np.array(model.grad_norms), 1e-5)
        if model.groups:
            self.compare_sets(list(wanted))

    def compare_sets(self, counted):
        model, told, sets = self.model, self.optimizer.clipping_stats(per_set=True), self.model.sets()
        if len(told) != len(sets) and self.clipped_class is not None:
            raise DifferenceError(f"{len(told)} clip sets instead of {len(sets)}")
        for i, (one, tells) in enumerate(zip(sets, told, strict=False)):
            counts = model.set_counts.get(frozenset(one.names), [math.nan])
            found = [tells[name] for name in counted]
            if not math.isnan(counts[0]) and found != counts:
                raise DifferenceError(f"counts of clip set {i}: {found} instead of {counts}")
        for i, (values, tells) in enumerate(zip(model.values, told, strict=False)):
            for name in ("grad_norm", "clipped_norm", "threshold", "coefficient") if values.recorded else ():
                wanted_value = np.array([getattr(values, name)])
                if np.isfinite(wanted_value) or name == "grad_norm":
                    same(f"{name} of clip set {i}", np.array([tells[name]]), wanted_value, 1e-4)

    def heal(self, before):
        """Give parameters that are no longer finite their former values, as a user would."""
        for p, q, value in zip(self.params(), self.model.params(), before, strict=True):
            if not p.isfinite().all():
                p.data, q.data = value.clone(), value.double().clone()
                self.optimizer.state.pop(p, None)
                self.model.plain.state.pop(q, None)
