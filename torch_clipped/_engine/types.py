"""Names for what torch's optimizers hold and hand around without a type of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Entries", "Group", "StateDict", "StepFunction"]

Group = dict[str, Any]  # a parameter group
Entries = Mapping[str, Any]  # of a parameter group or of an optimizer's defaults, not to be changed
StateDict = Group
StepFunction = Callable[..., Any]  # of an optimizer; returns what the closure did
