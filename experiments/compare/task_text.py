"""Text: BERT on CoLA, or a small transformer from scratch on the source of Python's standard library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ..common.language_models import Transformer, next_character_loss
from ..common.text import WINDOW, even_windows, load_text, random_windows
from .methods import Grids
from .task import Task
from .task_parts import device_of, evaluating, seeded
from .task_text_cola import CoLA

Windows = tuple[Tensor, Tensor]


def load(data: Path | None, pretrained: Path | None, seed: int, quick: bool) -> Task:
    """CoLA in the folder ``data`` with BERT in the folder ``pretrained``, or the standard library where both are None."""
    return Characters(quick) if data is None else CoLA(data, pretrained, quick)


class Characters:
    """The next character of each in a window of text."""

    name, metric = "text", "accuracy of the next character"

    def __init__(self, quick: bool) -> None:
        self.batch, self.steps = 16, 10 if quick else 150
        self.learning_rates: Grids = {"SGD": (0.02, 0.1, 0.5, 2.5), "Adam": (0.0004, 0.002, 0.01, 0.05)}
        self._evaluated = 16 if quick else 64
        self._text = load_text(None)
        self.source = f"transformer from scratch on the characters of {self._text.source}"

    def make_model(self, seed: int) -> nn.Module:
        """The same for the same seed."""
        return seeded(lambda: Transformer(self._text.alphabet, longest=WINDOW), seed)

    def batches(self, seed: int) -> Iterator[Windows]:
        """Windows from anywhere in the text, and what follows each character."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield random_windows(self._text.training, self.batch, generator)

    def loss(self, model: nn.Module, batch: Windows) -> Tensor:
        """Cross-entropy, in nats a character."""
        return next_character_loss(model, batch, device_of(model))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The share of the characters that are foreseen, in windows spread evenly over the text."""
        halves = {"train": self._text.training, "validation": self._text.validation}
        with evaluating(model):
            return {name: self._share_right(model, text) for name, text in halves.items()}

    def _share_right(self, model: nn.Module, text: Tensor) -> float:
        device = device_of(model)
        windows = even_windows(text, self._evaluated, self.batch)
        right = [model(characters.to(device)).argmax(-1) == following.to(device) for characters, following in windows]
        return float(torch.cat(right).double().mean())
