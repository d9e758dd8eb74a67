"""The clipping arguments of a parameter group: their names, their defaults, and what may stand there."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .clipping import CLIPPING_TYPES, OLDER_SPELLINGS, Clipping
from .hints import RENAMED, unknown_argument

__all__ = [
    "ARGUMENT_NAMES",
    "MEMORY",
    "NONFINITE_POLICIES",
    "Arguments",
    "clipping_arguments",
    "group_arguments",
]

NONFINITE_POLICIES = ("skip", "error", "zero", "propagate")


@dataclass(frozen=True)
class Arguments:
    """The validated clipping arguments of one parameter group, as plain names and numbers."""

    clipping_type: str = "norm"
    clipping_level: Any = None  # a float, or None for a type without a level
    clipping_beta: float = 0.85
    clipping_window: int = 1000
    norm_type: float = 2.0
    nonfinite: str = "skip"
    clipping_seed: int = 0

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> Arguments:
        """The arguments that stand in a parameter group; ValueError names the first one that is nonsense."""
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
        if not isinstance(group["nonfinite"], str) or group["nonfinite"] not in NONFINITE_POLICIES:
            choices = ", ".join(NONFINITE_POLICIES)
            raise ValueError(f"nonfinite must be one of {choices}, got {group['nonfinite']!r}")
        return cls(
            clipping_type=name,
            clipping_level=_level(name, CLIPPING_TYPES[name], group["clipping_level"]),
            clipping_beta=beta,
            clipping_window=integer("clipping_window", group["clipping_window"], smallest=2),
            norm_type=norm_type,
            nonfinite=group["nonfinite"],
            clipping_seed=integer("clipping_seed", group["clipping_seed"], smallest=0),
        )

    def as_dict(self) -> dict[str, Any]:
        """The entries of a parameter group."""
        return asdict(self)


ARGUMENT_NAMES = tuple(Arguments().as_dict())
MEMORY = "clipping_memory_"  # what the keys of a parameter group begin with under which clipping remembers


def group_arguments(group: Mapping[str, Any], source: Mapping[str, Any], index: int, own: Container[str]) -> Arguments:
    """The checked arguments of the parameter group with this index; what it does not name comes from ``source``.

    A group that names its type takes that type's default level unless it names a level too. The keys ``own`` are the
    optimizer's, whatever they look like.
    """
    for key in group:
        looks_like_ours = (key.startswith("clip") and not key.startswith(MEMORY)) or key in RENAMED
        if looks_like_ours and key not in ARGUMENT_NAMES and key not in own:
            raise unknown_argument(f"parameter group {index}", key, ARGUMENT_NAMES)
    named = {name: group[name] for name in ARGUMENT_NAMES if name in group}
    level = {"clipping_level": None} if "clipping_type" in named else {}
    try:
        return Arguments.of({**source, **level, **named})
    except ValueError as error:
        raise ValueError(f"parameter group {index}: {error}") from None


def clipping_arguments(group: Mapping[str, Any], source: Mapping[str, Any], index: int, own: Container[str]) -> Arguments:
    """The same for a group as it is about to step."""
    arguments = group_arguments(group, source, index, own)
    if group.get("differentiable") and CLIPPING_TYPES[arguments.clipping_type] is not None:
        raise ValueError(f"parameter group {index}: differentiable=True needs clipping_type='none'")
    return arguments


def _clipping_type(name: Any) -> str:
    current = OLDER_SPELLINGS.get(name, name) if isinstance(name, str) else None
    if current in CLIPPING_TYPES:
        return str(current)
    choices = sorted({*CLIPPING_TYPES, "value"})
    near = difflib.get_close_matches(str(name).lower(), [*choices, *OLDER_SPELLINGS], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"clipping_type must be one of {', '.join(choices)}, got {name!r}{hint}")


def _level(name: str, rule: Clipping | None, level: Any) -> float | None:
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


def number(argument: str, value: Any, wanted: str) -> float:
    """A real number as a float: also numpy's, and tensors and arrays without dimensions."""
    plain = value.item() if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0 else value
    if not isinstance(plain, numbers.Real) or isinstance(plain, (bool, np.bool_)):
        raise ValueError(f"{argument} must be {wanted}, got {value!r}")
    try:
        found = float(plain)
    except OverflowError:
        raise ValueError(f"{argument} must be {wanted} that a float can hold, got {value!r}") from None
    if math.isnan(found):
        raise ValueError(f"{argument} must be {wanted}, got {value!r}")
    return found


def integer(argument: str, value: Any, smallest: int) -> int:
    """An integer that fits 64 bits and is not smaller than ``smallest``; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not smallest <= int(value) < 2**63:
        raise ValueError(f"{argument} must be an integer >= {smallest}, got {value!r}")
    return int(value)


def refuse_masked(name: str, samples: Any) -> None:
    """Raise ValueError if samples are masked: numpy would take them for samples like the others."""
    masked = int(np.ma.getmaskarray(samples).sum()) if isinstance(samples, np.ma.MaskedArray) else 0
    if masked:
        raise ValueError(f"{name} must not be masked, got {masked} masked of {samples.size} samples: pass {name}.compressed()")
