"""Removed names of older code, and their replacements."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["older_name"]

_INSTEAD = {
    "OptimizersCollectorWithRestarts": "OptimizersCollector takes pairs of OptimizerProperties and RestartProperties",
    "PlotMaker": "plots.plot_losses, plot_metric and plot_gradient_norms draw a collector",
    "get_optimal_L": "estimate_lipschitz(model, loss, loader) estimates the constant",
}


def older_name(module: str) -> Callable[[str], object]:
    """Return a module's ``__getattr__``, which raises an error with the replacement for a removed name."""

    def look_up(name: str) -> object:
        if name in _INSTEAD:  # the text of an AttributeError is lost in "from torch_clipped import ..."
            raise ImportError(f"{module} has no {name!r} any more: {_INSTEAD[name]} (see the migration guide)")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return look_up
