"""Clipping statistics in the logs of other libraries; each library is imported only when its name here is used.

>>> from torch_clipped.integrations import log_clipping_stats
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lightning import LightningClippingCallback
    from .tensorboard import log_clipping_stats
    from .trainer import HuggingFaceClippingCallback

__all__ = ["HuggingFaceClippingCallback", "LightningClippingCallback", "log_clipping_stats"]

# name, its module here, and the package to install
_PLACES = {
    "HuggingFaceClippingCallback": ("trainer", '"transformers[torch]"'),
    "LightningClippingCallback": ("lightning", "lightning"),
    "log_clipping_stats": ("tensorboard", "tensorboard"),
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, packages = _PLACES[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{__name__}.{name} needs {error.name}, which is missing: pip install {packages}") from error


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
