"""Task text of ``compare``: BERT on CoLA, or a recurrent network from scratch on Python's standard library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ..common.language_models import BATCH, LSTM, Recurrent, next_character_loss
from ..common.text import even_windows, load_text, random_windows
from .task import Grids, Task
from .task_parts import device_of, evaluating, seeded
from .task_text_cola import CoLA

Windows = tuple[Tensor, Tensor]
LSTM_RATES: Grids = {"SGD": (0.5, 1.0, 2.0, 4.0), "Adam": (0.005, 0.01, 0.02, 0.04)}


def load(data: Path | None, pretrained: Path | None, seed: int, quick: bool) -> Task:
    """Return CoLA in the folder ``data`` with BERT in the folder ``pretrained``, or the standard library if both are None."""
    return Characters("text", LSTM, 10 if quick else 250, LSTM_RATES, quick) if data is None else CoLA(data, pretrained, quick)


class Characters:
    """Task to predict the next character at each place in a window of text."""

    metric, batch, decays = "accuracy of the next character", BATCH, False

    def __init__(self, name: str, model: type[Recurrent], steps: int, learning_rates: Grids, quick: bool) -> None:
        self.name, self._model, self.steps, self.learning_rates = name, model, steps, learning_rates
        self._evaluated = 16 if quick else 128
        self._text = load_text(None)
        validation, test = self._text.validation.chunk(2)
        self._parts = {"train": self._text.training, "validation": validation, "test": test}
        self.source = f"{model.__name__} from scratch on the characters of {self._text.source}"
        self.trivial = ("table of trigrams", trigram_share(self._text.training, test))

    def make_model(self, seed: int) -> nn.Module:
        """Return a model, the same for the same seed."""
        return seeded(lambda: self._model(self._text.alphabet), seed)

    def batches(self, seed: int) -> Iterator[Windows]:
        """Yield random windows of the text, and the next character of each entry."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield random_windows(self._text.training, self.batch, generator)

    def loss(self, model: nn.Module, batch: Windows) -> Tensor:
        """Return the cross-entropy, in nats a character."""
        return next_character_loss(model, batch, device_of(model))

    def evaluate(self, model: nn.Module, part: str) -> float:
        """Return the share of correctly predicted characters, in windows spread evenly over the text."""
        device, windows = device_of(model), even_windows(self._parts[part], self._evaluated, self.batch)
        with evaluating(model):
            right = [model(characters.to(device)).argmax(-1) == following.to(device) for characters, following in windows]
        return float(torch.cat(right).double().mean())


def trigram_share(training: Tensor, test: Tensor) -> float:
    """Return the share of test characters predicted by trigrams: the commonest character after the two before it.

    After a pair that is not in the training text, the prediction is the commonest character of that text.
    """
    size = int(max(training.max(), test.max())) + 1
    pairs, following = training[:-2] * size + training[1:-1], training[2:]
    counts = torch.bincount(pairs * size + following, minlength=size**3).view(-1, size)
    best = torch.where(counts.sum(1) > 0, counts.argmax(1), training.mode().values)
    return float((best[test[:-2] * size + test[1:-1]] == test[2:]).double().mean())
