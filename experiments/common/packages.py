"""Load packages that only some experiments need."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def needed(module: str, package: str, what: str) -> Any:
    """Return an installed module; if it is missing, raise a ValueError that says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"{what} needs {package}: pip install 'torch-clipped[tasks]' ({error})") from None
