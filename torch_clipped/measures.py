"""Measures: the blocks of a gradient, their norms, and how they are shortened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._engine import norms, scaling

__all__ = ["MEASURES", "Measure"]


class Measure(NamedTuple):
    """How one kind of block is measured and shortened."""

    norms: Callable[[Sequence[Tensor | None], Sequence[int], float, torch.device], Any]
    blocks_in: Callable[[Tensor], int] | None  # how many blocks a parameter has; None: all parameters are one block
    gives_norm: bool  # whether the norm of the whole gradient follows from the lengths
    shrink_: Callable[[Sequence[Tensor | None], Sequence[int], Any, Any], None]
    by_entry: bool = False  # whether entries are shortened one by one, so that an infinite one can be


MEASURES: dict[str, Measure] = {
    "global": Measure(norms.tensor_norms, None, True, scaling.scale_all_),
    "layer": Measure(norms.tensor_norms, lambda parameter: 1, True, scaling.scale_each_),
    "unit": Measure(norms.unit_norms, norms.unit_count, True, scaling.scale_units_),
    "coordinate": Measure(norms.largest_entries, lambda parameter: 1, False, scaling.clamp_entries_, by_entry=True),
}
