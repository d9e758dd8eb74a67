"""Clipping statistics in the logs of other libraries, each of which is imported only when its name here is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lightning import LightningClippingCallback

__all__ = ["LightningClippingCallback"]

# the name and its module here
_PLACES = {"LightningClippingCallback": "lightning"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
