"""Compare clipped optimizers with a slow model of the contract, over random sequences of actions.

    python tests/differential.py --sequences 1000 --seed 7

prints the first sequence that differs, as short as it can be made, and how often each action and type occurred.
"""

import argparse
import copy
import io
import math
import pickle
import random
import sys
import warnings
from collections import Counter

import numpy as np
import torch
from differential_model import Model
from differential_sequences import Sequence, random_gradients, random_sequence

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD, ClippingWarning, GradientClipper
from torch_clipped.decisions import uniform

ADAM = {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.01}
OPTIMIZERS = {
    "sgd": (ClippedSGD, torch.optim.SGD, {"lr": 0.01}),
    "momentum": (ClippedSGD, torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}),
    "adam": (ClippedAdam, torch.optim.Adam, ADAM),
    "adamw": (ClippedAdamW, torch.optim.AdamW, ADAM | {"amsgrad": True}),
    "clipper": (None, torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
}
FLAGS = {"chosen": {}, "foreach": {"foreach": True}, "loop": {"foreach": False, "fused": False}, "fused": {"fused": True}}
LOOP = FLAGS["loop"]
CLIPPING = ("clipping_", "norm_type", "nonfinite")  # what the keys of clipping in a parameter group begin with
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-9}


class Different(Exception):
    """The optimizer does not do what the model does."""


class ClipperLoop:
    """A GradientClipper before a plain optimizer, to be used like a clipped optimizer."""

    def __init__(self, groups, arguments, options):
        self.plain = torch.optim.SGD(groups, **options)
        self.clipper = GradientClipper([p for group in groups for p in group["params"]], **arguments)
        self.nonfinite = arguments.get("nonfinite", "skip")

    @property
    def param_groups(self):
        return self.plain.param_groups

    @property
    def state(self):
        return self.plain.state

    def step(self):
        norm = self.clipper.step()
        if norm.isfinite() or self.nonfinite != "skip":
            self.plain.step()

    def clipping_stats(self, per_set=False):
        return [self.clipper.clipping_stats()] if per_set else self.clipper.clipping_stats()

    def grad_norms(self):
        return self.clipper.grad_norms()

    def state_dict(self):
        return {"plain": self.plain.state_dict(), "param_groups": [self.clipper.state_dict()]}

    def load_state_dict(self, state):
        self.plain.load_state_dict(state["plain"])
        self.clipper.load_state_dict(state["param_groups"][0])


def start(shapes, dtypes, seed):
    rng = np.random.default_rng(seed)
    return [
        torch.nn.Parameter(torch.tensor(rng.standard_normal(shape) * (i % 4 > 0), dtype=dtypes[i % len(dtypes)]))
        for i, shape in enumerate(shapes)
    ]


def doubles(params):
    return [torch.nn.Parameter(p.detach().double().clone()) for p in params]


def flat(tensors):
    return np.concatenate([np.zeros(0), *(t.detach().double().reshape(-1).numpy() for t in tensors if t is not None)])


class Run:
    """The optimizer and the model, to which the same is done."""

    def __init__(self, sequence, counts):
        self.sequence, self.counts, self.saved = sequence, counts, None
        self.clipped_class, self.plain_class, self.options = OPTIMIZERS[sequence.optimizer]
        groups = [
            {"params": start(shapes, sequence.dtypes, sequence.seed + i), **own} for i, (shapes, own) in enumerate(sequence.groups)
        ]
        plain = self.plain_class([{"params": doubles(group["params"])} for group in groups], **self.options, **LOOP)
        self.model = Model(plain, [own for _, own in sequence.groups], sequence.defaults, uniform)
        self.optimizer = self.made(groups)

    def made(self, groups):
        options = self.options | FLAGS[self.sequence.flags]
        if self.clipped_class is None:
            return ClipperLoop(groups, self.sequence.defaults, options)
        return self.clipped_class(groups, **options, **self.sequence.defaults)

    def params(self):
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def run(self):
        for number, action in enumerate(self.sequence.actions):
            try:
                done = getattr(self, action.kind.replace(" ", "_"))(**action.details)
                self.counts[f"action {action.kind} {action.details.get('how', '')}".strip()] += done is not False
            except Different as difference:
                raise Different(f"action {number}: {difference}") from None
            except Exception as error:
                raise Different(f"action {number}: {type(error).__name__}: {error}") from error

    # Steps

    def many_steps(self, times, **details):
        for offset in range(times):
            self.step(offset=offset, **details)

    def step(self, offset=0, **details):
        params = self.params()
        for p, g in zip(params, random_gradients(details, [p.shape for p in params], [p.dtype for p in params], offset), strict=True):
            p.grad = g
        before = [p.detach().clone() for p in params]
        grads = [None if p.grad is None else p.grad.double().numpy().copy() for p in params]
        wanted = self.model.step(grads)
        try:
            self.optimizer.step()
            if wanted == "error":
                raise Different("no error was raised")
        except RuntimeError as error:
            if wanted != "error" or "parameter group" not in str(error):
                raise
        self.count(wanted, details)
        self.compare(grads)
        self.heal(before)

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
            same(f"weights of parameter {i}", flat([p]), flat([q]), 2 * tolerance)
            if (p.grad is None) != (g is None):
                raise Different(f"gradient of parameter {i}: {p.grad} instead of {g}")
            same(f"gradient of parameter {i}", flat([p.grad]), flat([]) if g is None else g.reshape(-1), tolerance)
        self.compare_statistics()

    def compare_statistics(self):
        model, stats = self.model, self.optimizer.clipping_stats()
        wanted = {"steps": model.steps, "clipped_steps": model.clipped_steps, "skipped_steps": model.skipped_steps}
        if any(stats[name] != value for name, value in wanted.items()):
            raise Different(f"statistics: {stats} instead of {wanted}")
        same("grad_norms()", self.optimizer.grad_norms().numpy(), np.array(model.grad_norms), 1e-5)
        if not model.groups:
            return
        told, sets = self.optimizer.clipping_stats(per_set=True), model.sets()
        if len(told) != len(sets) and self.clipped_class is not None:
            raise Different(f"{len(told)} clip sets instead of {len(sets)}")
        for i, (one, tells) in enumerate(zip(sets, told, strict=False)):
            counts = model.set_counts.get(frozenset(one.names), [math.nan])
            found = [tells[name] for name in wanted]
            if not math.isnan(counts[0]) and found != counts:
                raise Different(f"counts of clip set {i}: {found} instead of {counts}")
        for i, (values, tells) in enumerate(zip(model.values, told, strict=False)):
            for name in ("grad_norm", "clipped_norm", "threshold", "coefficient") if values.recorded else ():
                wanted_value = np.array([getattr(values, name)])
                if np.isfinite(wanted_value) or name == "grad_norm":
                    same(f"{name} of clip set {i}", np.array([tells[name]]), wanted_value, 1e-4)

    def heal(self, before):
        """Give parameters that are no longer finite their former values, as a user would."""
        for p, q, value in zip(self.params(), self.model.params(), before, strict=True):
            if not p.isfinite().all():
                p.data, q.data = value.clone(), value.double()
                self.optimizer.state.pop(p, None)
                self.model.plain.state.pop(q, None)

    # What is done to groups

    def edit(self, group, **arguments):
        if self.clipped_class is None or not self.model.groups:
            return False
        group %= len(self.model.groups)
        self.optimizer.param_groups[group].update(arguments)
        self.model.groups[group].arguments.update(arguments)

    def make_equal(self, group, other):
        if self.clipped_class is None or len(self.model.groups) < 2:
            return False
        group, other = group % len(self.model.groups), other % len(self.model.groups)
        self.edit(group, **self.model.groups[other].arguments)

    def add(self, shapes, arguments):
        if self.clipped_class is None:
            return False
        params = start(shapes, self.sequence.dtypes, len(self.params()))
        self.optimizer.add_param_group({"params": params, **arguments})
        self.model.add(doubles(params), arguments)

    def pop(self, group):
        if self.clipped_class is None or len(self.model.groups) < 2:
            return False
        self._take_out(group % len(self.model.groups))

    def _take_out(self, group):
        for p in self.optimizer.param_groups.pop(group)["params"]:
            self.optimizer.state.pop(p, None)  # torch cannot save the state of what is in no group
        self.model.pop(group)

    def replace_all(self, shapes, arguments):
        if self.clipped_class is None:
            return False
        while self.model.groups:
            self._take_out(-1)
        self.add(shapes, arguments)

    def reverse(self):
        if self.clipped_class is None:
            return False
        self.optimizer.param_groups.reverse()
        self.model.reverse()

    def grow(self, parameter):
        """Give a parameter more rows, as an embedding that takes more words."""
        p, q = (params[parameter % len(params)] for params in (self.params(), self.model.params()))
        if not p.dim():
            return False
        p.data = torch.cat([p.detach(), torch.ones(2, *p.shape[1:], dtype=p.dtype)])
        q.data, p.grad, q.grad = p.detach().double(), None, None
        self.optimizer.state.pop(p, None)
        self.model.plain.state.pop(q, None)

    # Loading

    def fresh(self):
        params = [[torch.nn.Parameter(p.detach().clone()) for p in group["params"]] for group in self.optimizer.param_groups]
        return self.made([{"params": members} for members in params])

    def load(self, how):
        self.model.settle()
        if how in ("pickle", "deepcopy"):
            self.optimizer = copy.deepcopy(self.optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(self.optimizer))
            return None
        state = self.optimizer.state_dict()
        if how == "in place":
            self.optimizer.load_state_dict(state)
            return None
        fresh = self.fresh()
        if how == "file":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        elif how in ("through torch", "plain"):
            if self.clipped_class is None:
                return False
            plain = self.plain_class([{"params": group["params"]} for group in fresh.param_groups], **self.options)
            plain.load_state_dict(state)
            state = plain.state_dict()
            if how == "plain":
                self._make_plain(state, fresh)
        fresh.load_state_dict(state)
        self.optimizer = fresh
        return None

    def _make_plain(self, state, fresh):
        state["param_groups"] = [
            {key: value for key, value in group.items() if not key.startswith(CLIPPING)} for group in state["param_groups"]
        ]
        for group, known in zip(fresh.param_groups, self.model.groups, strict=True):
            group.update(known.arguments)
        self.model.forget()

    def save(self):
        self.model.settle()
        state = self.optimizer.state_dict()
        state = {key: value if key == "param_groups" else copy.deepcopy(value) for key, value in state.items()}
        self.saved = copy.deepcopy(self.model), state, [p.detach().clone() for p in self.params()]

    def restore(self):
        if self.saved is None:
            return False
        model, state, weights = self.saved
        if [len(g.names) for g in model.groups] != [len(g.names) for g in self.model.groups]:
            return False
        if [w.shape for w in weights] != [p.shape for p in self.params()] or any(
            w.dtype != p.dtype for w, p in zip(weights, self.params(), strict=True)
        ):
            return False
        self.model = copy.deepcopy(model)
        self.model.defaults = self.model.defaults
        self.optimizer.load_state_dict(copy.deepcopy(state))
        for p, weight in zip(self.params(), weights, strict=True):
            p.data = weight.clone()

    # Memory

    def move(self, how):
        groups, params = self.optimizer.param_groups, self.params()
        values = [v for group in groups for v in [*group.values(), *group["params"]] if isinstance(v, torch.Tensor)]
        if how == "share everything":
            for value in values:
                value.share_memory_()
        elif how == "share the state_dict":
            for group in self.optimizer.state_dict()["param_groups"]:
                for value in group.values():
                    if isinstance(value, torch.Tensor):
                        value.share_memory_()
        elif how == "share gradients":
            for p in params:
                if p.grad is not None:
                    p.grad.share_memory_()
        elif how == "new storages":
            for value in values:
                value.data = value.detach().clone()
        elif how == "new tensors":
            for group in groups:
                group.update({key: value.clone() for key, value in group.items() if isinstance(value, torch.Tensor)})
        elif how == "pickle":
            pickle.dumps(self.optimizer)
        else:
            self.model.settle()
            self.model.values = []
            self.compare_statistics()


def same(what, found, wanted, tolerance):
    """Raise Different unless both arrays are equal, relative to the largest entry; NaN and infinities count as one."""
    if found.shape == wanted.shape:
        finite = np.isfinite(wanted)
        bound = tolerance * np.abs(wanted[finite]).max(initial=1e-6)
        if (np.isfinite(found) == finite).all() and (np.abs(found - wanted)[finite] <= bound).all():
            return
    raise Different(f"{what}: {found} instead of {wanted}")


def difference(sequence, counts=None):
    """What is different in this sequence, or None."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", ClippingWarning)
        try:
            Run(sequence, Counter() if counts is None else counts).run()
        except Different as found:
            return str(found)
    return None


def shortened(sequence):
    """The same sequence without the actions that the difference does not need."""
    place = 0
    while place < len(sequence.actions):
        fewer = sequence._replace(actions=sequence.actions[:place] + sequence.actions[place + 1 :])
        if difference(fewer) is None:
            place += 1
        else:
            sequence = fewer
    return sequence


def sequence_of(seed):
    return random_sequence(random.Random(seed), seed)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first sequence; the next have the next seeds")
    parser.add_argument("--all", action="store_true", help="print every difference, not only the first")
    arguments = parser.parse_args(argv)
    counts, found = Counter(), 0
    for seed in range(arguments.seed, arguments.seed + arguments.sequences):
        if (what := difference(sequence_of(seed), counts)) is None:
            continue
        found += 1
        short = shortened(sequence_of(seed))
        print(f"{what}\nas short as possible:\n{short}\n{difference(short)}\n")
        if not arguments.all:
            print(f"again: python {sys.argv[0]} --sequences 1 --seed {seed}")
            break
    for name, count in sorted(counts.items()):
        print(f"{count:8d}  {name}")
    print(f"{found} sequences differ")
    return int(found > 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
