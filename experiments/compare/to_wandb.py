"""Results of ``compare`` as offline runs of Weights & Biases: ``wandb sync wandb/offline-run-*`` uploads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..common.packages import needed
from .tuning import Outcome


def load_wandb() -> Any:
    """Return the package; raise ValueError if it is missing."""
    return needed("wandb", "wandb", "option wandb")


def log_results(name: str, settings: Mapping[str, Any], outcomes: Iterable[Outcome]) -> None:
    """Write a run for each training of the results into the folder ``wandb``, or into WANDB_DIR.

    A run has loss, gradient norm, share of clipped steps and validation metric by step, and the test metric in its summary.
    """
    metric = settings["metric"]
    for one in (result for outcome in outcomes for result in outcome.results):
        config = {"method": one.method, "lr": one.lr, "clipping_level": one.level, "seed": one.seed, "source": settings["source"]}
        rows: dict[int, dict[str, float]] = {
            step: {"loss": loss, "gradient norm": norm, "clipped": share} for step, loss, norm, share in one.curve
        }
        for step, value in one.points:
            rows.setdefault(step, {})[f"validation {metric}"] = value
        label = f"{one.method}, seed {one.seed}"
        with load_wandb().init(project="torch_clipped", mode="offline", group=name, name=label, config=config) as run:
            for step in sorted(rows):
                run.log(rows[step], step=step)
            run.summary[f"test {metric}"] = one.test
