"""Errors about unknown arguments; they suggest the argument that has this name in older code or in another library."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import wraps
from typing import TypeVar, cast

import numpy as np
from torch import Tensor

__all__ = [
    "RENAMED",
    "check_fits",
    "check_keys",
    "fits",
    "hinted",
    "integer",
    "is_like_clipping",
    "number",
    "refuse_masked",
    "refuse_unknown",
    "unknown_argument",
]

_LEVELS = {  # clipping type: names of its level in other libraries
    "norm": (
        *("max_norm", "max_grad_norm", "max_gradient_norm", "clip_norm", "global_clipnorm", "grad_norm_clip"),
        *("clip_grad", "clip_grad_norm", "clip_gradient", "clip_max_norm", "grad_clip", "grad_clip_norm", "gradient_clip"),
        *("gradient_clip_val", "gradient_clip_norm", "gradient_clipping"),
    ),
    "layer_wise": ("clipnorm",),
    "coord_wise": ("clip_value", "clipvalue", "clip_grad_value", "grad_clip_value", "max_grad_value"),
    "adaptive": ("clip_factor", "agc_clipping", "agc_clip_val"),
    "auto": ("percentile", "quantile", "clip_percentile", "clip_quantile", "p_autoclip"),
    "layer_wise_auto": ("percentile_clipping",),
    "zclip": ("z_thresh", "z_threshold"),
}
_TYPES = {name: clipping_type for clipping_type, names in _LEVELS.items() for name in names}
_RANGES = {"auto": " and a level between 0 and 1", "layer_wise_auto": " and a level between 0 and 1"}
RENAMED = {  # names in older code and in other libraries
    "beta": "clipping_beta",
    "history_length": "clipping_window",
    "clip_mode": "clipping_type",
    "gradient_clip_algorithm": "clipping_type",
    "clip_seed": "clipping_seed",
    **dict.fromkeys(("clip", "clipping", "clip_threshold", "clipping_threshold", *_TYPES), "clipping_level"),
}

F = TypeVar("F", bound=Callable[..., object])


def is_like_clipping(name: str) -> bool:
    """Return whether an unknown argument of this name is probably about clipping."""
    return name.startswith("clip") or name in RENAMED


def unknown_argument(owner: str, name: str, known: Iterable[str]) -> TypeError:
    """Return the error about an argument that ``owner`` does not have, with the probably intended one."""
    spellings = {spelling.lower(): spelling for spelling in known}
    meant = RENAMED.get(name, f"clipping_{name}")
    if meant not in spellings.values():
        elsewhere = name in RENAMED or name in RENAMED.values()  # then it is not a typo
        near = [] if elsewhere else difflib.get_close_matches(name.lower(), spellings, n=1)
        if not near:
            return TypeError(f"{owner} has no argument {name!r}; choose from {', '.join(spellings.values())}")
        meant = spellings[near[0]]
    hint = f"did you mean {meant!r}?"
    if meant == "clipping_level" and name in _TYPES:
        hint += f" Use it with clipping_type={_TYPES[name]!r}{_RANGES.get(_TYPES[name], '')}"
    return TypeError(f"{owner} has no argument {name!r}; {hint}")


def refuse_unknown(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for the first given argument that is not known."""
    names = list(known)
    for name in given:
        if name not in names:
            raise unknown_argument(owner, name, names) from None


def hinted(function: F) -> F:
    """Make unknown keywords of a function or a constructor raise an error with a hint; the signature stays explicit."""

    @wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        try:
            return function(*args, **kwargs)
        except TypeError:
            owner = type(args[0]).__name__ if function.__name__ == "__init__" else function.__name__
            refuse_unknown(owner, kwargs, (name for name in inspect.signature(function).parameters if name != "self"))
            raise

    return cast(F, call)


def fits(kept: Tensor, param: Tensor) -> bool:
    """Return whether a tensor can be state of this parameter, after a conversion of type or device at most."""
    return (
        kept.shape == param.shape
        and kept.layout == param.layout
        and kept.is_floating_point() == param.is_floating_point()
        and kept.is_complex() == param.is_complex()
        and getattr(kept, "placements", None) == getattr(param, "placements", None)  # a DTensor's
        and (param.is_meta or not kept.is_meta)
    )


def check_fits(name: str, kept: object, param: Tensor) -> None:
    """Raise ValueError if ``kept`` is not a tensor that can be state of the parameter."""
    if not isinstance(kept, Tensor):
        raise ValueError(f"{name} must be a tensor of shape {tuple(param.shape)}, got {kept!r}")
    if not fits(kept, param):
        raise ValueError(f"{name} must fit its parameter, {_described(param)}, got {_described(kept)}")


def check_keys(name: str, state: object, keys: Collection[str], owner: str, exact: bool = True) -> None:
    """Raise ValueError if ``state`` is not a dict with these keys, or has other keys although ``exact`` is true."""
    if not isinstance(state, Mapping):
        raise ValueError(f"{name} must be one of a {owner}, got a {type(state).__name__}")
    for key in keys:
        if key not in state:
            raise ValueError(f"{name} must be one of a {owner}, but has no {key!r}")
    for key in state if exact else ():
        if key not in keys:
            raise ValueError(f"{name} must be one of a {owner}, which has no {key!r}")


def _described(tensor: Tensor) -> str:
    layout = str(tensor.layout).removeprefix("torch.")
    placements = f" placed {tensor.placements}" if hasattr(tensor, "placements") else ""
    return f"a {layout} tensor of shape {tuple(tensor.shape)} and {tensor.dtype} on {tensor.device}{placements}"


def number(argument: str, value: object, wanted: str) -> float:
    """Return a real number, or a tensor or array without dimensions, as a float; raise ValueError for others and for NaN."""
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


def integer(argument: str, value: object, smallest: int) -> int:
    """Return an integer from ``smallest`` that fits 64 bits, as an int; raise ValueError for others and for True and False."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not smallest <= int(value) < 2**63:
        raise ValueError(f"{argument} must be an integer >= {smallest}, got {value!r}")
    return int(value)


def refuse_masked(name: str, samples: object) -> None:
    """Raise ValueError if samples are masked: numpy would treat masked samples like the others."""
    if isinstance(samples, np.ma.MaskedArray) and (masked := int(np.ma.getmaskarray(samples).sum())):
        raise ValueError(f"{name} must not be masked, got {masked} masked of {samples.size} samples: pass {name}.compressed()")
