"""What a task of ``compare`` has to be, and where each is found."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

TASKS = {  # modules with a function ``load``, imported when named: each may need packages of its own
    "image": "experiments.compare.task_image",
    "segmentation": "experiments.compare.task_segmentation",
    "text": "experiments.compare.task_text",
    "graph": "experiments.compare.task_graph",
}


class Task(Protocol):
    """A model, its data and its measure of success; a larger metric is better.

    A task with grids of its own has them in ``learning_rates``, like ``LEARNING_RATES`` of ``compare_methods``.

    Attributes:
        name: a key of ``TASKS``.
        metric: "accuracy", "mean IoU", "Matthews correlation", ...
        batch: samples of a batch.
        steps: of a training, unless the user says otherwise.
        source: one line about the data.
    """

    name: str
    metric: str
    batch: int
    steps: int
    source: str

    def make_model(self, seed: int) -> nn.Module:
        """A new model on the CPU, the same for the same seed; torch's global random numbers stay as they are."""
        ...

    def batches(self, seed: int) -> Iterator[Any]:
        """Endless; the same order for the same seed. What comes is on the CPU."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The training loss of a batch, differentiable; the batch is moved to the device of the model."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The metric on a fixed part of the training data ("train") and on held-out data ("validation"); others by their names.

        The model is in evaluation mode meanwhile, and as it was before afterwards.
        """
        ...


def load(name: str, data: Path | None, pretrained: Path | None, seed: int, quick: bool) -> Task:
    """The task of that name; ValueError where its files or packages are missing or damaged.

    Args:
        name: a key of ``TASKS``.
        data: folder with the field's own data set, None for the small one that is always there.
        pretrained: folder with weights to start from; only the task text knows any.
        seed: of data that are drawn and of splits; the same data for all trainings.
        quick: smaller and shorter.
    """
    task: Task = import_module(TASKS[name]).load(data, pretrained, seed, quick)
    return task
