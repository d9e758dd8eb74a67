"""What is done to a clipped optimizer between two steps, and at once to its slow model.

An action that the optimizer does not allow returns False.
"""

import copy
import io
import pickle

import numpy as np
import torch

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD, GradientClipper

from ..cases import FLAGS

ADAM = {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.01}
OPTIMIZERS = {
    "sgd": (ClippedSGD, torch.optim.SGD, {"lr": 0.01}),
    "momentum": (ClippedSGD, torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}),
    "adam": (ClippedAdam, torch.optim.Adam, ADAM),
    "adamw": (ClippedAdamW, torch.optim.AdamW, ADAM | {"amsgrad": True}),
    "clipper": (None, torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
}
LOOP = FLAGS["loop"]
CLIPPING = ("clipping_", "norm_type", "nonfinite")  # what the keys of clipping in a parameter group begin with


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


def tensors(groups):
    return [value for group in groups for value in group.values() if isinstance(value, torch.Tensor)]


def share(groups):
    for value in tensors(groups):
        value.share_memory_()


class Actions:
    """An ``optimizer`` made for a ``sequence``, its ``model``, and what is ``saved`` of both."""

    def made(self, groups):
        options = self.options | FLAGS[self.sequence.flags]
        if self.clipped_class is None:
            return ClipperLoop(groups, self.sequence.defaults, self.options | LOOP)
        return self.clipped_class(groups, **options, **self.sequence.defaults)

    def params(self):
        return [p for group in self.optimizer.param_groups for p in group["params"]]

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

    def hand_over(self, group, other):
        if self.clipped_class is None or len(self.model.groups) < 2:
            return False
        group, other = group % len(self.model.groups), other % len(self.model.groups)
        if group == other or len(self.model.groups[group].names) < 2:
            return False
        if any(len(block) == 1 for _, _, block in self.model.memories):  # kept by group, not promised to follow one tensor
            return False
        groups = self.optimizer.param_groups
        groups[other]["params"].append(groups[group]["params"].pop())
        self.model.hand_over(group, other)

    def grow(self, parameter):
        """Give a parameter more rows, as an embedding that takes more words."""
        p, q = (params[parameter % len(params)] for params in (self.params(), self.model.params()))
        if not p.dim():
            return False
        p.data = torch.cat([p.detach(), torch.ones(2, *p.shape[1:], dtype=p.dtype)])
        q.data, p.grad, q.grad = p.detach().double().clone(), None, None
        self.optimizer.state.pop(p, None)
        self.model.plain.state.pop(q, None)

    # Loading

    def fresh(self):
        params = [[torch.nn.Parameter(p.detach().clone()) for p in group["params"]] for group in self.optimizer.param_groups]
        return self.made([{"params": members} for members in params])

    def load(self, how):
        self.model.settle()
        if how == "in place":
            self.optimizer.load_state_dict(self.optimizer.state_dict())
        elif how == "deepcopy":
            self.optimizer = copy.deepcopy(self.optimizer)
        elif how == "pickle":
            self.optimizer = pickle.loads(pickle.dumps(self.optimizer))
        elif how in ("fresh", "file") or self.clipped_class is not None:
            fresh = self.fresh()
            fresh.load_state_dict(self._carried(self.optimizer.state_dict(), how, fresh))
            self.optimizer = fresh
        else:
            return False

    def _carried(self, state, how, fresh):
        """The state as it comes out of a file, or out of a plain optimizer of torch."""
        if how == "fresh":
            return state
        if how == "file":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            return torch.load(file, weights_only=True)
        plain = self.plain_class([{"params": group["params"]} for group in fresh.param_groups], **self.options)
        plain.load_state_dict(state)
        state = plain.state_dict()
        if how == "plain":
            self._make_plain(state, fresh)
        return state

    def _make_plain(self, state, fresh):
        """Take clipping out of the state, as if it were one of torch's; arguments are then those that ``fresh`` has."""
        for group in state["param_groups"]:
            for key in [key for key in group if key.startswith(CLIPPING)]:
                del group[key]
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
        sizes = [[len(group.names) for group in one.groups] for one in (model, self.model)]
        kinds = [[(tensor.shape, tensor.dtype) for tensor in tensors] for tensors in (weights, self.params())]
        if sizes[0] != sizes[1] or kinds[0] != kinds[1]:
            return False
        self.model = copy.deepcopy(model)
        self.optimizer.load_state_dict(copy.deepcopy(state))
        for p, weight in zip(self.params(), weights, strict=True):
            p.data = weight.clone()

    # Memory

    def move(self, how):
        if how in ("share the state_dict", "pickle", "read statistics"):
            self.model.settle()
        groups = self.optimizer.param_groups
        if how == "share everything":
            share([*groups, *({"p": p} for p in self.params())])
        elif how == "share the state_dict":
            share(self.optimizer.state_dict()["param_groups"])
        elif how == "share gradients":
            share({"grad": p.grad} for p in self.params())
        elif how == "new storages":
            for value in [*tensors([*groups]), *self.params()]:
                value.data = value.detach().clone()
        elif how == "new tensors":
            for group in groups:
                group.update({key: value.clone() for key, value in group.items() if isinstance(value, torch.Tensor)})
        elif how == "pickle":
            pickle.dumps(self.optimizer)
        else:
            self.model.values = []
            self.compare_statistics()
