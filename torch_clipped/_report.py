"""Report on recorded gradient norms: tails, levels, the effect of each clipping type, and a plot."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ._norm_files import RecordedNorms
from .clipping import CLIPPING_TYPES
from .heavy_tails import tail_statistics
from .levels import suggest_level
from .optimizers import ClippedSGD
from .plots import plot_histogram, plot_norms, plot_survival

__all__ = ["Replay", "advice", "draw", "replay", "report"]

CLIP_RATES = (0.01, 0.05, 0.1, 0.25, 0.5)
DRIFT = 3.0  # ratio between medians of quarters above which no level clips evenly
RARE = 0.05  # largest share of spikes among norms; a larger share is a heavy tail
REPLAYED = 20_000  # largest number of norms, the newest: a type takes about 150 microseconds per step
ROWS = {  # of the tail table
    "median": "quantile_0.5",
    "skewness": "skewness",
    "excess kurtosis": "excess_kurtosis",
    "Hill index": "hill_index",
    "stable index": "stable_index",
    "share beyond 3 IQR": "beyond_3_iqr",
}


class Replay(NamedTuple):
    """Effect of a clipping type on recorded norms."""

    clipping_type: str
    level: float
    coefficients: npt.NDArray[np.float64]  # by step

    @property
    def is_clipped(self) -> npt.NDArray[np.bool_]:
        """Return whether each step is clipped."""
        return self.coefficients < 1

    @property
    def coefficient(self) -> float:
        """Return the median coefficient of the clipped steps."""
        return float(np.median(self.coefficients[self.is_clipped])) if self.is_clipped.any() else 1.0


def replay(norms: npt.NDArray[np.float64], clipping_type: str, level: float | None = None) -> Replay:
    """Let a clipping type clip a gradient of one entry that takes these norms, one after the other.

    For types that clip tensor by tensor the whole gradient is one tensor.
    """
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64, device="cpu"))
    optimizer = ClippedSGD([weight], lr=0.0, clipping_type=clipping_type, clipping_level=level)
    coefficients = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a level in another unit
        for norm in norms.tolist():
            weight.grad = torch.tensor([norm], dtype=torch.float64, device="cpu")
            optimizer.step()
            coefficients.append(weight.grad.item() / norm)
    return Replay(clipping_type, optimizer.param_groups[0]["clipping_level"], np.array(coefficients))


def report(recorded: RecordedNorms, seed: int = 0) -> str:
    """Return the tables as text."""
    norms = recorded.norms
    tails = tail_statistics(norms, seed=seed)
    statistics = [
        (name, f"{tails[key]:.4g}", f"{tails[f'{key}_low']:.4g} to {tails[f'{key}_high']:.4g}") for name, key in ROWS.items()
    ]
    levels = [(f"{rate:g}", f"{_short_level(norms, rate):.16g}") for rate in CLIP_RATES]
    newest = norms[-REPLAYED:]
    replays = [replay(newest, "norm", _short_level(newest, 0.1)), *(replay(newest, name) for name in _types())]
    types = [(r.clipping_type, f"{r.level:.16g}", f"{r.is_clipped.mean():.3f}", f"{r.coefficient:.3f}") for r in replays]
    of_all = "" if len(newest) == len(norms) else f" (the last {len(newest)} norms)"
    left_out = f", {recorded.left_out} others left out" if recorded.left_out else ""
    return "\n".join(
        [
            f"{len(norms)} norms in {recorded.name!r}{left_out}; the smallest {norms.min():.4g}, the largest {norms.max():.4g}",
            "",
            *_aligned([("tails", "", "95 % interval"), *statistics]),
            "",
            *_aligned([("clip rate", 'level for "norm"'), *levels]),
            "",
            f"What each type would have done{of_all}, with the whole gradient as one tensor:",
            *_aligned([("clipping_type", "level", "steps clipped", "median coefficient"), *types]),
            "",
            *advice(norms),
        ]
    )


def advice(norms: npt.NDArray[np.float64]) -> list[str]:
    """Return the types that fit these norms, with reasons; docs/choosing.md has details."""
    quarter = len(norms) // 4
    first, last = (float(np.median(part)) for part in (norms[:quarter], norms[-quarter:]))
    drift = max(first, last) / min(first, last)
    upper, lower = np.quantile(np.log(norms), [0.75, 0.25])
    limit = np.exp(upper + 3 * (upper - lower))
    spikes = float((norms > limit).mean())
    level = _short_level(norms, 0.1)
    lines = [f'clipping_type="norm", clipping_level={level:.16g} would have clipped {(norms > level).mean():.0%} of the steps.']
    if drift >= DRIFT:
        lines.append(
            f"The median norm went from {first:.3g} in the first quarter to {last:.3g} in the last, so that no one level fits: "
            'clipping_type="auto" follows it.'
        )
    newest = norms[-REPLAYED:]
    is_spike = newest > limit
    if 0 < spikes <= RARE and is_spike.any():
        zclip, zscore = (replay(newest, *arguments).is_clipped for arguments in (("zclip",), ("zscore", 6.0)))
        lines.append(
            f"{spikes:.2%} of the norms are spikes, above {limit:.3g} (3 interquartile ranges of the logarithms). "
            f'clipping_type="zclip" would have shortened {_shares(zclip, is_spike)}; clipping_type="zscore", clipping_level=6.0, '
            f'clipping_action="skip" would have left out {_shares(zscore, is_spike)}.'
        )
    return lines


def _shares(is_clipped: npt.NDArray[np.bool_], is_spike: npt.NDArray[np.bool_]) -> str:
    return f"{is_clipped[is_spike].mean():.0%} of them and {is_clipped[~is_spike].mean():.1%} of the other steps"


def _short_level(norms: npt.NDArray[np.float64], rate: float) -> float:
    """Return the level with the fewest digits, at least 3, that clips as many steps as the suggested one, within 5 %."""
    level = suggest_level(norms, rate)
    wanted = (norms > level).mean()
    short = (float(f"{level:.{digits}g}") for digits in range(3, 17))
    return next((value for value in short if abs((norms > value).mean() - wanted) <= 0.05 * wanted), level)


def _types() -> list[str]:
    """Return the types whose thresholds follow from the norms of a run; by tensor only if none is for the whole gradient."""
    rows = {name: rule for name, rule in CLIPPING_TYPES.items() if rule is not None and rule.threshold.memory(1, 2)}
    of_global = {type(rule.threshold) for rule in rows.values() if rule.measure == "global"}
    return [name for name, rule in rows.items() if rule.measure == "global" or type(rule.threshold) not in of_global]


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def draw(recorded: RecordedNorms, path: Path) -> None:
    """Draw histogram, survival function and norms over time in one picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    over_time, histogram, survival = figure.subplots(1, 3)
    plot_norms(recorded.norms, over_time)
    plot_histogram(recorded.norms, histogram)
    plot_survival(recorded.norms, ax=survival)
    figure.suptitle(f"{len(recorded.norms)} gradient norms ({recorded.name})")
    figure.savefig(path, dpi=110)
