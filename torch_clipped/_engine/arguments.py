"""Clipping arguments of a parameter group: their names, their defaults and the checks of their values."""

from __future__ import annotations

import difflib
import math
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache

from ..clipping import CLIPPING_TYPES, OLDER_SPELLINGS, Clipping
from ..thresholds import Threshold
from .types import Entries, StateDict
from .validation import RENAMED, integer, number, unknown_argument

__all__ = [
    "ACTIONS",
    "ADDED",
    "ARGUMENT_NAMES",
    "MEMORY",
    "NONFINITE_POLICIES",
    "OF_THE_TYPE",
    "Arguments",
    "clipping_arguments",
    "group_arguments",
]

ACTIONS = ("clip", "skip")
NONFINITE_POLICIES = ("skip", "error", "zero", "propagate")
ADDED = ("clipping_action", "clipping_cap", "clipping_warmup", "clipping_set")  # missing in state of version 0.1
OF_THE_TYPE = ("clipping_level", "clipping_cap", "clipping_warmup")  # have another meaning with another type


@dataclass(frozen=True)
class Arguments:
    """Validated clipping arguments of one parameter group, as plain names and numbers."""

    clipping_type: str = "norm"
    clipping_level: float | None = None  # None: a type without a level
    clipping_action: str = "clip"
    clipping_cap: float | None = None
    clipping_warmup: int | None = None  # None: the type's own
    clipping_set: str | None = None
    clipping_beta: float = 0.85
    clipping_window: int = 1000
    norm_type: float = 2.0
    nonfinite: str = "skip"
    clipping_seed: int = 0

    @classmethod
    def of(cls, group: Entries) -> Arguments:
        """Return the validated arguments of a parameter group; raise ValueError for the first invalid one."""
        name = _clipping_type(group["clipping_type"])
        beta = number("clipping_beta", group["clipping_beta"], "a number between 0 and 1")
        if not 0 < beta < 1:
            raise ValueError(f"clipping_beta must be between 0 and 1, both excluded, got {beta}")
        norm_type = group["norm_type"]
        if isinstance(norm_type, str) and norm_type == "inf":  # as torch's norms spell it
            norm_type = math.inf
        norm_type = number("norm_type", norm_type, "a number")
        if norm_type < 1:
            raise ValueError(f"norm_type must be >= 1 or inf, got {norm_type}")
        label = group["clipping_set"]
        if label is not None and not isinstance(label, str):
            raise ValueError(f"clipping_set must be a str or None, got {label!r}")
        label = None if label is None else str(label)  # not numpy's, which a checkpoint cannot hold
        return cls(
            clipping_type=name,
            clipping_level=_level(name, CLIPPING_TYPES[name], group["clipping_level"]),
            clipping_action=_choice("clipping_action", group["clipping_action"], ACTIONS),
            clipping_cap=_cap(name, CLIPPING_TYPES[name], group["clipping_cap"]),
            clipping_warmup=_warmup(name, CLIPPING_TYPES[name], group["clipping_warmup"]),
            clipping_set=label,
            clipping_beta=beta,
            clipping_window=integer("clipping_window", group["clipping_window"], smallest=2),
            norm_type=norm_type,
            nonfinite=_choice("nonfinite", group["nonfinite"], NONFINITE_POLICIES),
            clipping_seed=integer("clipping_seed", group["clipping_seed"], smallest=0),
        )

    @property
    def rule(self) -> Clipping | None:
        """Return the rule of the clipping type with the warm-up of these arguments; None if gradients are not clipped.

        With ``clipping_action="skip"`` the norm to which a warm-up clips is inf: no step is skipped for exceeding it.
        """
        rule = CLIPPING_TYPES[self.clipping_type]
        changes: StateDict = {} if self.clipping_warmup is None else {"warm_up": self.clipping_warmup}
        if rule is not None and self.clipping_action == "skip" and "warm_up_norm" in _fields(rule.threshold):
            changes["warm_up_norm"] = math.inf  # a warm-up clips every step, also without a spike
        return replace(rule, threshold=replace(rule.threshold, **changes)) if rule is not None and changes else rule

    def as_dict(self) -> StateDict:
        """Return the arguments as entries of a parameter group."""
        return asdict(self)


ELSEWHERE = {  # names of clipping types in other libraries
    **dict.fromkeys(("agc", "adaptive_clipping"), "adaptive"),
    **dict.fromkeys(("global", "global_norm", "clip_grad_norm", "clip_grad_norm_", "norm_clip"), "norm"),
    **dict.fromkeys(("clip_grad_value", "clip_grad_value_", "clip_value"), "value"),
    **dict.fromkeys(("percentile", "quantile", "autoclip"), "auto"),
}
ARGUMENT_NAMES = tuple(Arguments().as_dict())
MEMORY = "clipping_memory_"  # prefix of the keys under which a parameter group holds the state of clipping


def group_arguments(group: Entries, source: Entries, index: int, own: Container[str]) -> Arguments:
    """Return the validated arguments of parameter group ``index``; missing ones are taken from ``source``.

    A group that names its type takes that type's default level, no cap and that type's own warm-up unless it names them too.
    The keys ``own`` are arguments of the optimizer, even if they look like clipping arguments.
    """
    for key in group:
        if key not in ARGUMENT_NAMES and key not in own and _is_meant_for_clipping(key):
            raise unknown_argument(f"parameter group {index}", key, ARGUMENT_NAMES)
    named = {name: group[name] for name in ARGUMENT_NAMES if name in group}
    of_the_type: Entries = dict.fromkeys(OF_THE_TYPE) if "clipping_type" in named else {}
    try:
        return Arguments.of({**source, **of_the_type, **named})
    except ValueError as error:
        raise ValueError(f"parameter group {index}: {error}") from None


@lru_cache(maxsize=256)
def _is_meant_for_clipping(key: str) -> bool:
    """Return whether an unknown key of a parameter group is probably a misspelt clipping argument."""
    plain = key.lower()
    near = difflib.get_close_matches(plain, ["norm_type", "nonfinite"], cutoff=0.85)
    return (plain.startswith("clip") and not key.startswith(MEMORY)) or key in RENAMED or bool(near)


def clipping_arguments(group: Entries, source: Entries, index: int, own: Container[str]) -> Arguments:
    """Return the checked arguments; raise ValueError for ``differentiable=True`` with a clipping type."""
    arguments = group_arguments(group, source, index, own)
    if group.get("differentiable") and CLIPPING_TYPES[arguments.clipping_type] is not None:
        raise ValueError(f"parameter group {index}: differentiable=True needs clipping_type='none'")
    return arguments


def _clipping_type(name: object) -> str:
    current = OLDER_SPELLINGS.get(name, name) if isinstance(name, str) else None
    if current in CLIPPING_TYPES:
        return str(current)
    choices = sorted({*CLIPPING_TYPES, "value"})
    plain = str(name).lower()
    near = [ELSEWHERE[plain]] if plain in ELSEWHERE else difflib.get_close_matches(plain, [*choices, *OLDER_SPELLINGS], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"clipping_type must be one of {', '.join(choices)}, got {name!r}{hint}")


def _fields(threshold: Threshold) -> set[str]:
    return {field.name for field in fields(threshold)}


def _choice(argument: str, value: object, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(choices)}, got {value!r}")
    return str(value)


def _cap(name: str, rule: Clipping | None, cap: object) -> float | None:
    if cap is None:
        return None
    if rule is None:
        raise ValueError(f"clipping_cap must be None for clipping_type={name!r}, which does not clip, got {cap!r}")
    found = number("clipping_cap", cap, "a number or None")
    if not found > 0:
        raise ValueError(f"clipping_cap must be > 0, got {found}")
    return found


def _warmup(name: str, rule: Clipping | None, warmup: object) -> int | None:
    if warmup is None:
        return None
    if rule is None or "warm_up" not in _fields(rule.threshold):
        raise ValueError(f"clipping_warmup must be None for clipping_type={name!r}, which has no warm-up, got {warmup!r}")
    return integer("clipping_warmup", warmup, smallest=0)


def _level(name: str, rule: Clipping | None, level: object) -> float | None:
    if rule is None:
        if level is not None:
            raise ValueError(f"clipping_level must be None for clipping_type={name!r}, which does not clip, got {level!r}")
        return None
    if level is None:
        return rule.threshold.default_level
    found = number("clipping_level", level, "a number or None")
    try:
        rule.threshold.check(found)
    except ValueError as error:
        raise ValueError(f"{error} (clipping_type={name!r})") from None
    return found
