"""Errors about unknown arguments, with the argument that was meant under its name in older code or in another library."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar, cast

__all__ = ["RENAMED", "hinted", "is_like_clipping", "refuse_unknown", "unknown_argument"]

_LEVELS = {  # clipping type: what the libraries that clip in this way call its level
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

F = TypeVar("F", bound=Callable[..., Any])


def is_like_clipping(name: str) -> bool:
    """Return whether an unknown argument of this name is probably about clipping."""
    return name.startswith("clip") or name in RENAMED


def unknown_argument(owner: str, name: str, known: Iterable[str]) -> TypeError:
    """Return the error about an argument that ``owner`` does not know, with the one that was probably meant."""
    spellings = {spelling.lower(): spelling for spelling in known}
    meant = RENAMED.get(name, f"clipping_{name}")
    if meant not in spellings.values():
        elsewhere = name in RENAMED or name in RENAMED.values()  # then it is no typo
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
    """Make unknown keywords of a function or a constructor raise an error with a hint; its signature stays explicit."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError:
            owner = type(args[0]).__name__ if function.__name__ == "__init__" else function.__name__
            refuse_unknown(owner, kwargs, (name for name in inspect.signature(function).parameters if name != "self"))
            raise

    return cast(F, call)
