"""Problems of ``thresholds``: a forecaster of sine waves and the language model of ``heavy_tails``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ..common.language_models import BATCH, LSTM, VALIDATION_WINDOWS, next_character_loss
from ..common.text import Text, even_windows, random_windows

SEQUENCE = 100  # values of a wave that the forecaster sees
HIDDEN = 50
PERIODS = (10.0, 50.0)  # of the waves, in values
AMPLITUDES = (0.5, 1.5)
VALIDATION_WAVES = 512
VALIDATION_SEED = 10**6  # of the validation waves

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Settings of a problem, and its grid; all batches of ``validation`` have the same size."""

    name: str
    data: str
    loss_name: str
    model: Callable[[], nn.Module]
    draw: Callable[[torch.Generator], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    validation: list[Batch]
    lrs: tuple[float, ...]
    levels: tuple[float, ...]
    steps: int
    bar: float  # a learning rate is usable up to this multiple of the best loss
    momentum: float = 0.9

    def settings(self) -> dict[str, Any]:
        """Return all settings that the numbers depend on."""
        names = ("name", "data", "loss_name", "lrs", "levels", "steps", "bar", "momentum")
        return {name: getattr(self, name) for name in names} | {"batch": BATCH}


def powers_of_2(first: int, last: int) -> tuple[float, ...]:
    """Return learning rates by factors of 2, exact as floats."""
    return tuple(2.0**power for power in range(first, last + 1))


class Forecaster(nn.Module):
    """LSTM that reads values (batch, length) and predicts the next one of each row (batch,)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, HIDDEN, batch_first=True)
        self.out = nn.Linear(HIDDEN, 1)

    def forward(self, values: Tensor) -> Tensor:
        last: Tensor = self.out(self.lstm(values.unsqueeze(-1))[0][:, -1]).squeeze(-1)
        return last


def waves(count: int, generator: torch.Generator) -> Batch:
    """Draw sine waves of random period, phase and amplitude: ``SEQUENCE`` values of each, and the value that follows."""
    phase, period, amplitude = torch.rand(3, count, 1, generator=generator)
    period = PERIODS[0] + (PERIODS[1] - PERIODS[0]) * period
    amplitude = AMPLITUDES[0] + (AMPLITUDES[1] - AMPLITUDES[0]) * amplitude
    values = amplitude * torch.sin(2 * math.pi * (torch.arange(SEQUENCE + 1) / period + phase))
    return values[:, :-1], values[:, -1]


def sine_waves() -> Problem:
    """Return the forecaster, trained on new waves in every step."""
    return Problem(
        name="sine waves",
        data=f"LSTM, {HIDDEN} hidden units, on sine waves: {SEQUENCE} values, then the next one",
        loss_name="mean squared error",
        model=Forecaster,
        draw=lambda generator: waves(BATCH, generator),
        loss=lambda model, batch: mse_loss(model(batch[0]), batch[1]),
        validation=[waves(VALIDATION_WAVES, torch.Generator().manual_seed(VALIDATION_SEED))],
        lrs=powers_of_2(-5, 3),
        levels=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        steps=150,
        bar=2.0,  # losses of this problem differ by orders of magnitude
    )


def language_model(text: Text) -> Problem:
    """Return the LSTM on characters; weights and batches of a seed are the same as in ``heavy_tails``."""
    return Problem(
        name="language model",
        data=f"LSTM, 128 hidden units, on the characters of {text.source}",
        loss_name="nats a character",
        model=lambda: LSTM(text.alphabet),
        draw=lambda generator: random_windows(text.training, BATCH, generator),
        loss=next_character_loss,
        validation=list(even_windows(text.validation, VALIDATION_WINDOWS, BATCH)),
        lrs=powers_of_2(-2, 7),
        levels=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        steps=100,
        bar=1.1,
    )
