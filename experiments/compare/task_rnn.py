"""Task rnn of ``compare``: the next character of Python's standard library, with a plain recurrent network."""

from __future__ import annotations

from pathlib import Path

from ..common.language_models import RNN
from .task import Task
from .task_parts import refuse_data
from .task_text import Characters


def load(data: Path | None, pretrained: Path | None, seed: int, quick: bool) -> Task:
    """Return the task; raise ValueError if ``data`` is given."""
    refuse_data(data, "rnn", "whose text is that of the standard library")
    learning_rates = {"SGD": (0.125, 0.25, 0.5, 1.0), "Adam": (0.0025, 0.005, 0.01, 0.02)}
    return Characters("rnn", RNN, 10 if quick else 500, learning_rates, quick)
