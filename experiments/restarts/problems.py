"""Problems of ``restarts``: the language model of ``heavy_tails`` and the regression of ``toy``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from torch_clipped import ModelProperties, RestartProperties

from ..common.language_models import BATCH, LARGEST_NORM, LSTM, VALIDATION_WINDOWS, next_character_loss
from ..common.regression import make_data
from ..common.text import Text, even_windows, random_windows

TRAINING_WINDOWS = 128  # windows of the training text for the curves
HELD_OUT = 2000  # validation samples of the regression

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes and clipping of the regression; ``power`` is the p of its loss."""

    samples: int = 10_000
    features: int = 200
    power: float = 1.75
    batch: int = 20
    momentum: float = 0.9
    clipping_level: float = 1.0  # about the median norm of a batch's gradient at the start


SIZES = Sizes()


@dataclass(frozen=True, kw_only=True)
class Task:
    """Problem with one seed; all batches of ``training`` have the same size, and so have those of ``validation``."""

    model: ModelProperties
    draw: Callable[[torch.Generator], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    training: Sequence[Batch]
    validation: Sequence[Batch]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Settings of a problem; the first of the ``schedules`` is None, for no restart."""

    name: str
    data: str
    loss: str
    task: Callable[[int], Task]
    schedules: tuple[RestartProperties | None, ...]
    lrs: tuple[float, ...]
    clipping_level: float
    momentum: float = 0.9
    batch: int
    steps: int
    measured_every: int  # steps between two points of the curves
    seeds: int
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        """Return all settings that the numbers depend on."""
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "task"}
        return settings | {"schedules": [None if s is None else vars(s) for s in self.schedules]}


def contender(schedule: RestartProperties | None) -> str:
    """Return the name of a schedule in the table and in the picture."""
    if schedule is None:
        return "no restart"
    return f"restarts from the {schedule.average}, {schedule.first_restart_steps_cnt} x {schedule.restart_coeff:g}"


def language_model(text: Text, seed: int = 0) -> Problem:
    """Return the LSTM on characters; weights and batches of a seed are the same as in ``heavy_tails``."""

    def task(seed: int) -> Task:
        return Task(
            model=ModelProperties(LSTM, text.alphabet),
            draw=lambda generator: random_windows(text.training, BATCH, generator),
            loss=next_character_loss,
            training=list(even_windows(text.training, TRAINING_WINDOWS, TRAINING_WINDOWS)),
            validation=list(even_windows(text.validation, VALIDATION_WINDOWS, BATCH)),
        )

    return Problem(
        name="language model",
        data=f"LSTM on the characters of {text.source}",
        loss="nats a character",
        task=task,
        schedules=_schedules((25, 1.0), (50, 1.25), (50, 2.0)),
        lrs=(1.5, 5.0, 15.0),
        clipping_level=LARGEST_NORM,
        batch=BATCH,
        steps=220,
        measured_every=10,
        seeds=3,
        seed=seed,
    )


class Point(nn.Module):
    """Weights x that predict features @ x."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(start.clone())

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.x


def regression(seed: int = 0, sizes: Sizes = SIZES) -> Problem:
    """Return the mean of |Ax - y|^p with heavy-tailed features.

    Args:
        seed: the first seed.
        sizes: samples, features, p, batch, momentum and clipping level.
    """

    def task(seed: int) -> Task:
        data = make_data(sizes.samples + HELD_OUT, sizes.features, seed)

        def draw(generator: torch.Generator) -> Batch:
            chosen = torch.randint(sizes.samples, (sizes.batch,), generator=generator)
            return data.features[chosen], data.labels[chosen]

        return Task(
            model=ModelProperties(Point, data.start),
            draw=draw,
            loss=lambda model, batch: (model(batch[0]) - batch[1]).abs().pow(sizes.power).mean(),
            training=[(data.features[: sizes.samples], data.labels[: sizes.samples])],
            validation=[(data.features[sizes.samples :], data.labels[sizes.samples :])],
        )

    return Problem(
        name="regression",
        data=f"{sizes.samples} heavy-tailed samples, {sizes.features} features",
        loss=f"mean |Ax - y|^{sizes.power:g}",
        task=task,
        schedules=_schedules((150, 1.0), (50, 1.25), (50, 2.0)),
        lrs=(0.00316, 0.01, 0.0316),
        clipping_level=sizes.clipping_level,
        momentum=sizes.momentum,
        batch=sizes.batch,
        steps=2000,
        measured_every=50,
        seeds=5,
        seed=seed,
    )


def _schedules(*windows: tuple[int, float]) -> tuple[RestartProperties | None, ...]:
    """Return no restart, restarts from the mean with these windows, and restarts from the last iterate with the second window."""
    from_mean = [RestartProperties(first, coeff) for first, coeff in windows]
    return None, *from_mean, RestartProperties(*windows[1], average="last")
