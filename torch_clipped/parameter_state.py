"""State that is kept for a parameter: whether it still fits, and the checks of a state that is about to be loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

__all__ = ["check_fits", "check_keys", "fits"]


def fits(kept: Tensor, param: Tensor) -> bool:
    """Return whether a tensor can be state of this parameter as it is now, after a conversion of type or device at most."""
    return (
        kept.shape == param.shape
        and kept.layout == param.layout
        and kept.is_floating_point() == param.is_floating_point()
        and kept.is_complex() == param.is_complex()
        and getattr(kept, "placements", None) == getattr(param, "placements", None)  # a DTensor's
        and (param.is_meta or not kept.is_meta)
    )


def check_fits(name: str, kept: Any, param: Tensor) -> None:
    """Raise ValueError if this is no tensor that can be state of the parameter."""
    if not isinstance(kept, Tensor):
        raise ValueError(f"{name} must be a tensor of shape {tuple(param.shape)}, got {kept!r}")
    if not fits(kept, param):
        raise ValueError(f"{name} must fit its parameter, {_described(param)}, got {_described(kept)}")


def check_keys(name: str, state: Any, keys: Collection[str], owner: str, exact: bool = True) -> None:
    """Raise ValueError if this is no dict with these keys, or if it has others where the keys are to be exact."""
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
