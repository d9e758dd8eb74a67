"""Write and read the measurements of ``heavy_tails``, a row for every step, and summarize the rows."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..common.files import read_csv
from ..common.machine import versions

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
BEYOND_3_STD = 0.5 * math.erfc(3 / math.sqrt(2))  # share of a normal distribution above mean + 3 std


class Run(NamedTuple):
    """Optimizer, clipped or not, with one learning rate."""

    optimizer: str
    clipped: bool
    lr: float

    @property
    def label(self) -> str:
        return f"{self.optimizer}, lr {self.lr:g}"


class Row(NamedTuple):
    """Measurements of one step of one run with one seed; ``grad_norm`` is the gradient norm before clipping."""

    seed: int
    run: str
    lr: float
    step: int
    loss: float
    grad_norm: float
    threshold: float
    clipped: int


class Outcome(NamedTuple):
    """Result of a finished training; the validation loss is NaN if a training loss was not finite."""

    seed: int
    run: Run
    validation_loss: float
    texts: list[str]  # first seed only: written before the training, and after it if it came to its end


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write a csv file with a line for every row; six digits are more than the picture and the summary need."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        for row in rows:
            measured = (f"{value:.6g}" for value in (row.loss, row.grad_norm, row.threshold))
            writer.writerow((row.seed, row.run, row.lr, row.step, *measured, row.clipped))


def read_rows(path: Path) -> list[Row]:
    """Read the rows from a file of :func:`write_rows`."""
    kinds = {"seed": int, "run": str, "step": int, "clipped": int}
    return [Row(**{name: kinds.get(name, float)(x) for name, x in row.items()}) for row in read_csv(path)]


def select(rows: Sequence[Row], optimizer: str, lr: float) -> list[Row]:
    """Return the rows of a run, of all its seeds."""
    return [row for row in rows if (row.run, row.lr) == (optimizer, lr)]


def summarize(settings: dict[str, Any], runs: Sequence[Run], rows: Sequence[Row], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return losses, clip rates and gradient norms of every run, by seed and over all seeds, and the comparison."""
    longest = 1 + max(row.step for row in rows)  # fewer steps than in the settings if the first training was interrupted
    start_steps = max(1, longest // 10)
    summaries = [_of_run(run, select(rows, run.optimizer, run.lr), outcomes, start_steps) for run in runs]
    summaries = [summary for summary in summaries if summary["seeds"]]
    return {
        "experiment": "heavy-tails",
        "settings": settings,
        "versions": versions(),
        "interrupted": len(outcomes) < len(runs) * len(settings["seeds"]),
        "rows": len(rows),
        "longest_training": longest,
        "start_steps": start_steps,
        "comparison": compare(summaries),
        "runs": summaries,
        "texts": _texts(outcomes),
    }


def _texts(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Return the texts of the first seed's model: untrained, the same for all runs, and after each run."""
    texts = {outcome.run.label: outcome.texts for outcome in outcomes if outcome.texts}
    after = {label: mine[1] for label, mine in texts.items() if len(mine) > 1}
    return {"untrained": next(iter(texts.values()))[0], **after} if texts else {}


def _of_run(run: Run, rows: list[Row], outcomes: Sequence[Outcome], start_steps: int) -> dict[str, Any]:
    ends = {outcome.seed: outcome.validation_loss for outcome in outcomes if outcome.run == run}
    by_seed = {seed: [row for row in rows if row.seed == seed] for seed in dict.fromkeys(row.seed for row in rows)}
    seeds = [_of_seed(mine, ends.get(seed)) for seed, mine in by_seed.items()]
    finished = [seed for seed in seeds if seed["finished"]] or seeds
    return {
        **run._asdict(),
        **{name: _mean([seed[name] for seed in finished]) for name in ("train_loss", "validation_loss", "clip_rate")},
        "diverged": sum(seed["diverged"] for seed in seeds),
        "grad_norm": lengths([row.grad_norm for row in rows]),
        "grad_norm_after_start": lengths([row.grad_norm for row in rows if row.step >= start_steps]),
        "seeds": seeds,
    }


def _of_seed(rows: list[Row], validation_loss: float | None) -> dict[str, Any]:
    last = [row.loss for row in rows[-max(1, len(rows) // 10) :]]
    train_loss = sum(last) / len(last)
    return {
        "seed": rows[0].seed,
        "steps": len(rows),
        "finished": validation_loss is not None,
        "diverged": not train_loss <= rows[0].loss,  # also when it is NaN
        "train_loss": _finite(train_loss),
        "validation_loss": _finite(validation_loss),
        "clip_rate": sum(row.clipped for row in rows) / len(rows),
        "grad_norm": lengths([row.grad_norm for row in rows]),
    }


def _finite(value: float | None) -> float | None:
    """Return None for NaN and infinity, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if there are no values or one is None, as of a run that diverged."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def lengths(norms: Sequence[float]) -> dict[str, Any]:
    """Return quantiles of gradient norms, and compare their tail with that of a normal distribution."""
    finite = np.array([norm for norm in norms if math.isfinite(norm)])
    summary: dict[str, Any] = {"count": len(norms), "not_finite": len(norms) - len(finite)}
    if not len(finite):
        return summary
    mean, std = float(finite.mean()), float(finite.std())
    return summary | {
        "mean": mean,
        "std": std,
        "quantiles": {f"{q:g}": float(np.quantile(finite, q)) for q in QUANTILES},
        "beyond_3_std": int((finite > mean + 3 * std).sum()),
        "beyond_3_std_if_normal": len(finite) * BEYOND_3_STD,
        "largest_in_std": (float(finite.max()) - mean) / std if std else 0.0,
    }


def compare(summaries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Compare the clipped run with the unclipped one at its learning rate and at the best one, seed by seed.

    The best one has the lowest mean validation loss. The choice uses the number that is compared, which can only favour the
    unclipped side. Return None if an interruption left nothing to compare.
    """
    losses = {(s["clipped"], s["lr"]): _validation_losses(s) for s in summaries}
    clipped = next((losses[key] for key in losses if key[0]), {})
    unclipped = {lr: by_seed for (is_clipped, lr), by_seed in losses.items() if not is_clipped and by_seed}
    if not clipped or not unclipped:
        return None
    longest = max(map(len, unclipped.values()))
    complete = {lr: by_seed for lr, by_seed in unclipped.items() if len(by_seed) == longest}
    best = min(complete, key=lambda lr: sum(complete[lr].values()) / longest)
    return {
        "unclipped_lrs": list(complete),
        "best_unclipped_lr": best,
        "chosen_by": "lowest mean validation loss",
        "same_lr": _duel(clipped, unclipped[max(unclipped)]),
        "best_lr": _duel(clipped, unclipped[best]),
    }


def _validation_losses(summary: dict[str, Any]) -> dict[int, float]:
    seeds = [seed for seed in summary["seeds"] if seed["finished"]]
    return {s["seed"]: math.inf if s["validation_loss"] is None else s["validation_loss"] for s in seeds}


def _duel(clipped: dict[int, float], unclipped: dict[int, float]) -> dict[str, list[int]]:
    both = [seed for seed in clipped if seed in unclipped]
    better = [seed for seed in both if clipped[seed] < unclipped[seed]]
    return {"clipped_is_better": better, "clipped_is_not_better": [seed for seed in both if seed not in better]}
