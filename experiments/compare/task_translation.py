"""Short sentences to translate: lines of a sentence, a tab and its translation, as in PyTorch's tutorial on translation.

``python -m experiments.common.pairs`` makes such a file from message catalogues of gettext.
"""

from __future__ import annotations

import re
from pathlib import Path

from .sequences import Pair, Sequences, neighbours_share
from .task import Task

SHORTEST, LONGEST = 3, 12  # words of a sentence, marks included
FEWEST = 40  # pairs, without which there is nothing to split
WORD = re.compile(r"\w+|[^\w\s]")


def load(data: Path | None, pretrained: Path | None, seed: int, quick: bool) -> Task:
    """Return the task on the pairs in the file ``data``; raise ValueError where it is not named or cannot be used."""
    if data is None:
        raise ValueError("data must be named for task translation: a file of lines SENTENCE, tab, TRANSLATION")
    pairs = read_pairs(data)
    held_out = min(50 if quick else 500, len(pairs) // 8)
    task = Sequences(
        "translation",
        "1 - word error rate",
        pairs,
        steps=10 if quick else 300,
        learning_rates={"SGD": (0.2, 0.4, 0.8, 1.6), "Adam": (0.001, 0.002, 0.004, 0.008)},
        held_out=held_out,
        evaluated=min(held_out, 300),
        rare=2,
        seed=seed,
    )
    task.batch = min(task.batch, len(task.pairs["train"]))
    task.source = f"encoder and decoder of GRUs with attention on {len(task.pairs['train'])} pairs of sentences of {data.stem}"
    task.trivial = ("translation of the next sentence in the alphabet", neighbours_share(task.pairs["train"], task.pairs["test"]))
    return task


def read_pairs(path: Path) -> list[Pair]:
    """Return the pairs of 3 to 12 words, in lower case; of equal sentences the first. What follows a second tab is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"data must be a file that can be read, got {str(path)!r} ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"data must be text in UTF-8, got {str(path)!r} ({error})") from None
    pairs: dict[tuple[str, ...], list[str]] = {}
    for number, line in enumerate(lines, 1):
        if "\t" not in line:
            raise ValueError(
                f"data must have a tab between a sentence and its translation, got line {number} of {path.name}: {line!r}"
            )
        source, target = (WORD.findall(text.lower()) for text in line.split("\t")[:2])
        if all(SHORTEST <= len(words) <= LONGEST for words in (source, target)):
            pairs.setdefault(tuple(source), target)
    if len(pairs) < FEWEST:
        words = f"of {SHORTEST} to {LONGEST} words"
        raise ValueError(f"data must have at least {FEWEST} different sentences {words}, got {len(pairs)} in {path.name}")
    return list(pairs.items())
