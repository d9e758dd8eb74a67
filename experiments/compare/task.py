"""Interface of the tasks of ``compare``, and their modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

TASKS = {  # modules with a function ``load``, imported only when used: each may need packages of its own
    "image": "experiments.compare.task_image",
    "perceptron": "experiments.compare.task_perceptron",
    "segmentation": "experiments.compare.task_segmentation",
    "text": "experiments.compare.task_text",
    "rnn": "experiments.compare.task_rnn",
    "spelling": "experiments.compare.task_spelling",
    "translation": "experiments.compare.task_translation",
    "graph": "experiments.compare.task_graph",
    "cartpole": "experiments.compare.task_cartpole",
    "acrobot": "experiments.compare.task_acrobot",
}
PARTS = ("train", "validation", "test")
Grids = Mapping[str, tuple[float, ...]]


class Task(Protocol):
    """Model, its data and its measure of success; a larger metric is better.

    Attributes:
        name: a key of ``TASKS``.
        metric: "accuracy", "mean IoU", "Matthews correlation", ...
        batch: number of samples in a batch.
        steps: default number of steps of a training.
        source: one line about model and data.
        learning_rates: first grid of the search, for "SGD" (with momentum 0.9) and "Adam": ascending by factors of 2.
        decays: whether the learning rate decays to 0, linearly over the steps.
        trivial: name of a method that learns next to nothing, and its metric on the test data.
    """

    name: str
    metric: str
    batch: int
    steps: int
    source: str
    learning_rates: Grids
    decays: bool
    trivial: tuple[str, float]

    def make_model(self, seed: int) -> nn.Module:
        """Return a new model on the CPU, the same for the same seed; torch's global random state does not change."""
        ...

    def batches(self, seed: int) -> Iterator[Any]:
        """Return endless batches on the CPU, in the same order for the same seed."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the training loss of a batch, differentiable; the batch is moved to the device of the model."""
        ...

    def evaluate(self, model: nn.Module, part: str) -> float:
        """Return the metric on a fixed part of the data, one of ``PARTS``; no two parts have samples in common.

        The model is in evaluation mode during the call, and back in its former mode after it.
        """
        ...


def load(name: str, data: Path | None, pretrained: Path | None, seed: int, quick: bool) -> Task:
    """Return the task of that name.

    Args:
        name: a key of ``TASKS``.
        data: folder with a data set, None for the small default one.
        pretrained: folder with weights to start from; only for the task text.
        seed: seed of generated data and of splits; all trainings have the same data.
        quick: make the task smaller and shorter.

    Raises:
        ValueError: files or packages are missing or damaged.
    """
    task: Task = import_module(TASKS[name]).load(data, pretrained, seed, quick)
    return task
