"""Rule of clipping and the table of its named types (``_engine/step.py`` applies the rule).

    alpha = threshold / length          g <- g * min(1, alpha)   for blocks that the decision clips

A new clipping type is a new row of ``CLIPPING_TYPES``. A new kind of measure, threshold or decision is a class or function in the
module of that name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .decisions import Always, Decision, Randomly
from .measures import MEASURES, Measure
from .thresholds import AdaGC, Constant, MeanStd, Quantile, RatioToWeights, Threshold, ZClip

__all__ = ["CLIPPING_TYPES", "MEASURES", "OLDER_SPELLINGS", "Clipping", "ClippingType", "Measure", "register_clipping"]

ClippingType = Literal[
    "none",
    "norm",
    "layer_wise",
    "coord_wise",
    "value",
    "auto",
    "linear_rand_norm",
    "quadratic_rand_norm",
    "linear_rand_auto",
    "quadratic_rand_auto",
    "layer_wise_auto",
    "zscore",
    "layer_wise_zscore",
    "adaptive",
    "zclip",
    "adagc",
]
"""The names of the built-in clipping types, for type checkers and editors; registered ones are any ``str``."""


@dataclass(frozen=True)
class Clipping:
    """Clipping type: the measured blocks, their threshold, and the decision to clip.

    Args:
        measure (str): the blocks, a key of ``MEASURES``. ``"global"``: the whole gradient; ``"layer"``: each tensor; ``"unit"``:
            each row of a matrix, filter of a convolution or vector; ``"coordinate"``: each entry.
        threshold: a threshold with its default level, such as ``Quantile(0.9)``.
        decision: a decision such as ``Randomly(power=2)``. Default: ``Always()``.

    Raises:
        ValueError: the measure does not exist, or does not give the norm that the threshold needs.
        TypeError: ``threshold`` or ``decision`` has the wrong type.
    """

    measure: str
    threshold: Threshold
    decision: Decision = Always()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"measure must be one of {', '.join(sorted(MEASURES))}, got {self.measure!r}")
        if not isinstance(self.threshold, Threshold):
            raise TypeError(f"threshold must be a Threshold like Constant(1.0), got {self.threshold!r}")
        if self.threshold.needs_norm and not MEASURES[self.measure].gives_norm:
            raise ValueError(f"threshold {self.threshold!r} needs a measure that gives the norm, got {self.measure!r}")
        if isinstance(self.decision, type) or not callable(self.decision):
            raise TypeError(f"decision must be one like Always() or Randomly(power=1), got {self.decision!r}")

    @property
    def measured(self) -> Measure:
        """Return the measure of the blocks, the row ``measure`` of ``MEASURES``."""
        return MEASURES[self.measure]


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
    "layer_wise_auto": Clipping("layer", Quantile(0.9)),
    "zscore": Clipping("global", MeanStd(2.0)),
    "layer_wise_zscore": Clipping("layer", MeanStd(2.0)),
    "adaptive": Clipping("unit", RatioToWeights(0.01)),
    "zclip": Clipping("global", ZClip(2.5)),
    "adagc": Clipping("layer", AdaGC(1.04)),
}


def register_clipping(name: str, clipping: Clipping) -> None:
    """Add a clipping type for the argument ``clipping_type``, like the built-in ones.

    Parameter groups and checkpoints hold only the name: register the type in every process, before the optimizer is made.

    Args:
        name: the new name, an unused Python identifier.
        clipping: the measure, threshold and decision of the type.

    Raises:
        ValueError: the name is in use or not an identifier.
        TypeError: ``clipping`` is not a :class:`Clipping`.

    Example:
        >>> import torch
        >>> from torch_clipped import Clipping, ClippedSGD, Randomly, Quantile, register_clipping
        >>> register_clipping("layer_wise_rand_auto", Clipping("layer", Quantile(0.9), Randomly(power=2)))
        >>> optimizer = ClippedSGD([torch.zeros(3)], clipping_type="layer_wise_rand_auto")
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name must be a Python identifier, got {name!r}")
    if name in CLIPPING_TYPES or name in OLDER_SPELLINGS:
        is_own = name not in (*get_args(ClippingType), *OLDER_SPELLINGS)
        hint = f"; to replace it, first run torch_clipped.clipping.CLIPPING_TYPES.pop({name!r})" if is_own else ""
        raise ValueError(f"name must be new, but there is a clipping type {name!r} already{hint}")
    if not isinstance(clipping, Clipping):
        raise TypeError(f"clipping must be a Clipping(measure, threshold, decision), got {clipping!r}")
    CLIPPING_TYPES[name] = clipping


# names of older code
OLDER_SPELLINGS = {
    "value": "coord_wise",
    "no_clip": "none",
    "coordinate_wise": "coord_wise",
    "auto_clip": "auto",
    "linear_rand_autoclip": "linear_rand_auto",
    "quadratic_rand_autoclip": "quadratic_rand_auto",
}
