"""Measures: the blocks of a gradient, their norms, and their scaling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ._engine.scaling import Scaling, clamp_entries_, scale_all_, scale_each_, scale_units_

__all__ = ["MEASURES", "Measure"]


@dataclass(frozen=True)
class Measure:
    """Kind of block, with the way its gradient is measured and scaled.

    Args:
        blocks: function that returns the number of blocks of a parameter: 1, or one for each of its rows. None: all parameters
            of a clip set are one block.
        scale_: function that scales the blocks of gradients in place, see ``torch_clipped/_engine/scaling.py``.
        norm_type (float): the p of the p-norm of a block, also over the ranks that hold parts of it. Default: None, the argument
            ``norm_type`` of the optimizer.
        divisor: function that returns the divisor of the norms of a parameter's blocks. Default: None, 1.
        gives_norm (bool): whether the norm of the whole gradient follows from the lengths of the blocks. Default: True.
        reports_coefficient (bool): whether coefficients are among the statistics. Default: True.
        clamps_entries (bool): whether entries are clamped one by one, which also works for entries of inf. Default: False.
    """

    blocks: Callable[[Tensor], int] | None
    scale_: Scaling
    norm_type: float | None = None
    divisor: Callable[[Tensor], float] | None = None
    gives_norm: bool = True
    reports_coefficient: bool = True
    clamps_entries: bool = False

    is_one_block: bool = field(init=False)  # whether all parameters of a clip set are one block

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_one_block", self.blocks is None)
        if self.blocks is None and self.divisor is not None:
            raise ValueError("divisor must be None where all parameters are one block")


def one_block(parameter: Tensor) -> int:
    """Return 1: each parameter is a block."""
    return 1


def units(parameter: Tensor) -> int:
    """Return the number of units of a parameter: the rows of a matrix, the filters of a convolution; else one."""
    return parameter.shape[0] if parameter.dim() > 1 else 1


MEASURES: dict[str, Measure] = {
    "global": Measure(None, scale_all_),
    "layer": Measure(one_block, scale_each_),
    "unit": Measure(units, scale_units_),
    "coordinate": Measure(
        one_block, clamp_entries_, norm_type=math.inf, gives_norm=False, reports_coefficient=False, clamps_entries=True
    ),
}
