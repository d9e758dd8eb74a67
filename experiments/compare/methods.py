"""Methods of ``compare``, and the levels that each of them tries."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, Optimizer

from torch_clipped import AdaGC, ClippedAdam, ClippedSGD, Constant, Quantile
from torch_clipped.clipping import CLIPPING_TYPES

FACTORS = (1 / 3, 1.0, 3.0)  # of the levels to try, relative to the default
OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], Callable[..., Optimizer], dict[str, Any]]] = {
    "SGD": (SGD, ClippedSGD, {"momentum": 0.9}),
    "Adam": (Adam, ClippedAdam, {}),
}
_TYPES = ("norm", "layer_wise", "coord_wise", "auto", "linear_rand_norm", "quadratic_rand_auto", "zclip", "adagc", "adaptive")
CLIPPINGS: dict[str, dict[str, Any]] = {name: {"clipping_type": name} for name in _TYPES} | {
    "skip": {"clipping_type": "zscore", "clipping_action": "skip", "clipping_window": 128}
}
SKIP_LEVEL = 6.0  # standard deviations, as in OLMo-core
# Levels that are not multiplied by a factor: for a quantile it multiplies the share above, for AdaGC the ratio minus 1.
_CHANGES: dict[type, Callable[[float, float], float]] = {
    Quantile: lambda level, factor: 1 - (1 - level) * factor,
    AdaGC: lambda level, factor: 1 + (level - 1) * factor,
}


@dataclass(frozen=True)
class Method:
    """Optimizer without learning rate and level; ``baseline`` is the label of the unclipped optimizer."""

    baseline: str
    clipping: str | None = None  # a key of CLIPPINGS

    @property
    def label(self) -> str:
        """Return the name in tables and pictures."""
        return self.baseline if self.clipping is None else f"{self.baseline} {self.clipping}"

    def levels(self, length: float) -> tuple[float | None, ...]:
        """Return the levels to try: the default of the type and those a factor of 3 below and above.

        Args:
            length: a level of type norm that fits the gradients; constant levels are scaled by it.
        """
        if self.clipping is None:
            return (None,)
        rule = CLIPPING_TYPES[CLIPPINGS[self.clipping]["clipping_type"]]
        assert rule is not None
        level = SKIP_LEVEL if "clipping_action" in CLIPPINGS[self.clipping] else rule.threshold.default_level
        if isinstance(rule.threshold, Constant):
            level *= length
        change = _CHANGES.get(type(rule.threshold), lambda level, factor: level * factor)
        return tuple(sorted(float(f"{change(level, factor):.4g}") for factor in FACTORS))

    def make(self, parameters: Iterable[nn.Parameter] | list[dict[str, Any]], lr: float, level: float | None) -> Optimizer:
        """Return the optimizer."""
        plain, clipped, arguments = OPTIMIZERS[self.baseline]
        if self.clipping is None:
            return plain(parameters, lr=lr, fused=True, **arguments)  # as in clipped optimizers: other kernels round differently
        return clipped(parameters, lr=lr, clipping_level=level, **arguments, **CLIPPINGS[self.clipping])
