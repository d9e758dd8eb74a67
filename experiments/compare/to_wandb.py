"""Results of ``compare`` as offline runs of Weights & Biases: ``wandb sync wandb/offline-run-*`` uploads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .task_parts import needed
from .tuning import Outcome


class Logger:
    """Writes runs into the folder ``wandb``, or that of WANDB_DIR; ValueError where the package is missing."""

    def __init__(self) -> None:
        self._wandb = needed("wandb", "wandb", "wandb")

    def trainings(self, settings: Mapping[str, Any], outcomes: Iterable[Outcome]) -> None:
        """Write a run for each training of the results: loss, gradient norm, share of clipped steps and metric, by step."""
        for outcome in outcomes:
            for one in outcome.results:
                config = {"method": one.method, "lr": one.lr, "clipping_level": one.level, "seed": one.seed}
                self._wandb.init(
                    project="torch_clipped",
                    mode="offline",
                    group=f"compare {settings['task']}",
                    name=f"{one.method}, seed {one.seed}",
                    config={**config, "task": settings["task"], "source": settings["source"]},
                )
                rows: dict[int, dict[str, float]] = {}
                for step, loss, norm, share in one.curve:
                    rows[step] = {"loss": loss, "gradient norm": norm, "clipped": share}
                for step, metric in one.points:
                    rows.setdefault(step, {})["validation " + settings["metric"]] = metric
                for step in sorted(rows):
                    self._wandb.log(rows[step], step=step)
                self._wandb.finish()
