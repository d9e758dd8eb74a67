"""Task cartpole of ``compare``: see :mod:`experiments.compare.task_control`."""

from __future__ import annotations

from pathlib import Path

from .task import Task
from .task_control import task


def load(data: Path | None, pretrained: Path | None, seed: int, quick: bool) -> Task:
    """Return the task."""
    return task("cartpole", data, quick)
