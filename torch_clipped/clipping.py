"""The rule of clipping and the table of its named types (``engine`` carries it out).

    alpha = threshold / length          g <- g * min(1, alpha)   where the decision says so

A new clipping type is a new row of ``CLIPPING_TYPES``; a new kind of measure, threshold or decision is a class or function
in the module of that name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import measures, scaling
from .decisions import Always, Decision, Randomly
from .history import namespace
from .thresholds import Constant, Quantile, Threshold

__all__ = ["CLIPPING_TYPES", "MEASURES", "Clipping", "Measure"]


class Measure(NamedTuple):
    """How one kind of block is measured and shortened."""

    norms: Callable[[Sequence[Tensor | None], float, torch.device], Any]  # of the tensors
    blocks_are_tensors: bool  # else all tensors together are one block
    gives_norm: bool  # whether the norm of the whole gradient follows from the lengths
    shrink_: Callable[[Sequence[Tensor | None], Any, Any], None]


MEASURES: dict[str, Measure] = {
    "global": Measure(measures.tensor_norms, False, True, scaling.scale_all_),
    "layer": Measure(measures.tensor_norms, True, True, scaling.scale_each_),
    "coordinate": Measure(measures.largest_entries, True, False, scaling.clamp_entries_),
}


@dataclass(frozen=True)
class Clipping:
    """A clipping type: a measure (a key of ``MEASURES``), a threshold and a decision."""

    measure: str
    threshold: Threshold
    decision: Decision = Always()  # noqa: RUF009 (frozen)

    def __call__(
        self, lengths: Any, level: float, beta: float, memory: SimpleNamespace, valid: Any, draw: Callable[[], Any]
    ) -> tuple[Any, Any]:
        """The threshold and the coefficient of each block; a block that is not valid is left alone."""
        xp = namespace(lengths)
        thresholds = self.threshold(lengths, level, memory, valid)
        alpha = thresholds / xp.where(valid, lengths, 1.0)
        clipped = valid & self.decision(alpha, beta, draw)
        return thresholds, xp.where(clipped, alpha, 1.0)


CLIPPING_TYPES: dict[str, Clipping | None] = {
    "none": None,
    "norm": Clipping("global", Constant(1.0)),
    "layer_wise": Clipping("layer", Constant(0.3)),
    "coord_wise": Clipping("coordinate", Constant(0.1)),
    "auto": Clipping("global", Quantile(0.75)),
    "linear_rand_norm": Clipping("global", Constant(1.0), Randomly(power=1)),
    "quadratic_rand_norm": Clipping("global", Constant(1.0), Randomly(power=2)),
    "linear_rand_auto": Clipping("global", Quantile(0.75), Randomly(power=1)),
    "quadratic_rand_auto": Clipping("global", Quantile(0.75), Randomly(power=2)),
}
