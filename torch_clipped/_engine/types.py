"""Names of types that torch's optimizers use without a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Entries", "Group", "StateDict", "StepFunction"]

Group = dict[str, Any]  # a parameter group
Entries = Mapping[str, Any]  # of a parameter group or of an optimizer's defaults, not to be changed
StateDict = Group
StepFunction = Callable[..., Any]  # of an optimizer; returns the closure's result
