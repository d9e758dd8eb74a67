"""Random sequences of what people do to an optimizer between and in its steps, as data that can be printed and shortened."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from ..reference import CLIPPING_TYPES

SHAPES = [(3,), (2, 3), (4, 2), (2, 1, 2), (5,), (), (1, 3), (0,), (1,)]
LEVELS = {
    "none": None,
    "constant": (0.3, 6.0),
    "quantile": (0.3, 1.0),
    "zscore": (0.0, 2.0),
    "weights": (0.01, 1.0),
    "zclip": (0.3, 2.5),
    "adagc": (1.0, 1.3),
}
TYPES = [name for name in CLIPPING_TYPES if name != "none"]
POLICIES = ["skip", "error", "zero", "propagate"]
BURSTS = {"zclip": 40, "adagc": 115}  # steps that are longer than a warm-up
LOADS = ["fresh", "file", "in place", "through torch", "plain", "pickle", "deepcopy"]
MOVES = [
    "share everything",
    "share the state_dict",
    "share gradients",
    "new storages",
    "new tensors",
    "pickle",
    "read statistics",
]
ACTIONS = {
    "step": 60,
    "many steps": 1,
    "edit": 14,
    "add": 4,
    "pop": 4,
    "replace all": 1,
    "reverse": 2,
    "hand over": 6,
    "load": 8,
    "save": 4,
    "restore": 6,
    "move": 7,
    "grow": 3,
}


class Action(NamedTuple):
    kind: str
    details: Mapping[str, Any] = {}

    def __str__(self):
        return f"{self.kind}({', '.join(f'{key}={value!r}' for key, value in self.details.items())})"


class Sequence(NamedTuple):
    """An optimizer and what is done to it."""

    seed: int
    optimizer: str
    flags: str
    dtypes: list[torch.dtype]
    defaults: dict[str, Any]
    groups: list[tuple[list[tuple[int, ...]], dict[str, Any]]]  # shapes and the arguments of their own
    actions: list[Action]

    def __str__(self):
        head = f"seed {self.seed}: {self.optimizer}, {self.flags}, {self.dtypes}, {self.defaults}"
        groups = [f"  group {shapes} {own}" for shapes, own in self.groups]
        return "\n".join([head, *groups, *(f"  {number}. {action}" for number, action in enumerate(self.actions))])


def random_type(rng, name=None):
    """A type and a level for it: its default now and then."""
    name = name or rng.choice([*TYPES, *TYPES, "none"])
    between = LEVELS[CLIPPING_TYPES[name].threshold]
    if CLIPPING_TYPES[name].measure == "coordinate":
        name, between = rng.choice(["coord_wise", "value"]), (0.05, 1.0)
    level = None if between is None or rng.random() < 0.2 else round(rng.uniform(*between), 3)
    return {"clipping_type": name, "clipping_level": level}


def random_others(rng, most=1.0):
    """Clipping arguments beside type and level."""
    choices = {
        "clipping_beta": round(rng.uniform(0.2, 0.9), 2),
        "clipping_window": rng.randint(2, 9),
        "norm_type": rng.choice([1.0, 1.5, 3.0, math.inf]),
        "nonfinite": rng.choice(POLICIES),
        "clipping_seed": rng.randint(0, 5),
    }
    return {name: value for name, value in choices.items() if rng.random() < rng.choice([0.2, most])}


def random_arguments(rng):
    if rng.random() < 0.4:
        return {}
    arguments = random_type(rng) if rng.random() < 0.6 else {}
    if arguments.get("clipping_level", 0) is None:
        del arguments["clipping_level"]  # a group that names its type takes that type's default
    return arguments | (random_others(rng, 0.3) if rng.random() < 0.5 else {})


def random_step(rng, kind="step", **details):
    kinds = [rng.choice(["usual"] * 6 + ["transposed", "stride 0", "none", "zeros", "spike"]) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.06:
        kinds = [rng.choice(["none", "zeros"])]
    details |= {"closure": True} if rng.random() < 0.1 else {}
    details |= {"seed": rng.randrange(2**32), "scale": round(10 ** rng.uniform(-1.5, 0.7), 4), "kinds": kinds}
    if kind == "step" and rng.random() < 0.25:
        places = [rng.randrange(8) for _ in range(rng.randint(1, 2))]
        details["bad"] = [(place, rng.randrange(99), rng.choice([math.nan, math.inf, -math.inf])) for place in places]
    return Action(kind, details)


def random_edit(rng, numbers):
    kind = rng.choice(["type", "others", "equal", "differ", "differ"])
    if kind == "equal":
        return Action("make equal", {"group": numbers[0], "other": numbers[1]})
    if kind == "differ":
        return Action("edit", {"group": numbers[0], "clipping_window": rng.randint(2, 9)})
    return Action("edit", {"group": numbers[0]} | (random_type(rng) if kind == "type" else random_others(rng)))


def random_action(rng):
    numbers = [rng.randrange(6) for _ in range(2)]
    kind = rng.choices([*ACTIONS], [*ACTIONS.values()])[0]
    if kind == "step":
        return random_step(rng)
    if kind == "many steps":
        return random_step(rng, kind, times=rng.randint(3, 30))
    if kind == "edit":
        return random_edit(rng, numbers)
    if kind == "hand over":
        return Action(kind, {"group": numbers[0], "other": numbers[1]})
    if kind in ("add", "replace all"):
        shapes = [rng.choice(SHAPES) for _ in range(rng.randint(1, 2))]
        return Action(kind, {"shapes": shapes, "arguments": random_arguments(rng)})
    if kind in ("load", "move"):
        return Action(kind, {"how": rng.choice(LOADS if kind == "load" else MOVES)})
    return Action(kind, {"pop": {"group": numbers[0]}, "grow": {"parameter": numbers[0]}}.get(kind, {}))


def random_burst(rng, name):
    """More steps than the warm-up of this type has, then more of the other type that has one."""
    steps = [random_step(rng, "many steps", times=times) for times in (BURSTS[name], 8)]
    other = next(one for one in BURSTS if one != name)
    return [steps[0], Action("edit", {"group": 0} | random_type(rng, other)), steps[1]]


def random_sequence(rng, seed):
    """One sequence; its clipping type is used longer than the warm-up that it has."""
    name = TYPES[seed % len(TYPES)]
    defaults = random_type(rng, name) | {"clipping_window": rng.randint(2, 9)} | random_others(rng, 0.5)
    groups = [
        ([rng.choice(SHAPES) for _ in range(rng.randint(1, 3))], random_arguments(rng) if rng.random() < 0.3 else {})
        for _ in range(rng.randint(1, 3))
    ]
    optimizer = rng.choice(["sgd", "momentum", "adam", "adamw", "clipper"])
    if optimizer == "clipper":
        groups = [(groups[0][0], {})]
    actions = [random_action(rng) for _ in range(rng.randint(8, 20))]
    if name in BURSTS:
        actions[1:1] = random_burst(rng, name)
        if rng.random() < 0.4:  # one tensor, whose average the other type must not take over
            groups = [([rng.choice(SHAPES[:5])], {})]
    dtypes = rng.choice([[torch.float32], [torch.float32], [torch.float64], [torch.float32, torch.float64]])
    flags = rng.choice(["chosen", "chosen", "fused", "foreach", "loop"])
    return Sequence(seed, optimizer, flags, dtypes, defaults, groups, actions)


def random_gradients(details, shapes, dtypes, offset=0):
    """The gradients of a step: tensors of these shapes and types, None where there are none."""
    rng = np.random.default_rng(details["seed"] + offset)
    grads = []
    for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
        kind = details["kinds"][(i + offset) % len(details["kinds"])]
        size = details["scale"] * {"zeros": 0.0, "spike": 300.0}.get(kind, math.exp(0.5 * rng.standard_normal()))
        grad = torch.tensor(rng.standard_normal(shape) * size, dtype=dtype)
        if kind == "transposed" and grad.dim() > 1:
            grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
        grads.append(None if kind == "none" else grad)
    for place, entry, value in details.get("bad", ()):
        grad = grads[place % len(grads)] if grads else None
        if grad is not None and grad.numel():
            grad[np.unravel_index(entry % grad.numel(), grad.shape)] = value
    for i, grad in enumerate(grads):
        if details["kinds"][(i + offset) % len(details["kinds"])] == "stride 0" and grad.dim() and grad.numel():
            grads[i] = grad.reshape(-1)[0].expand(grad.shape)
    return grads
