"""Task translation of ``compare``: a file of sentences and their translations, as in PyTorch's tutorial on translation.

``python -m experiments.common.pairs`` makes such a file from message catalogues of gettext.
"""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

from .sequences import Pair, Sequences
from .task import Task

SHORTEST, LONGEST = 3, 12  # tokens of a sentence: words and punctuation marks
FEWEST = 40  # pairs, so that there is something to split
TOKEN = re.compile(r"\w+|[^\w\s]")


def load(data: Path | None, pretrained: Path | None, seed: int, quick: bool) -> Task:
    """Return the task on the pairs in the file ``data``; raise ValueError if it is not given or invalid."""
    if data is None:
        raise ValueError("data must be named for task translation: a file of lines SENTENCE, tab, TRANSLATION")
    pairs = read_pairs(data)
    digest = sha256(data.read_bytes()).hexdigest()[:8]  # so that another file of the same name has other settings
    return Sequences(
        "translation",
        "1 - token error rate",
        pairs,
        what=f"pairs of sentences of {data.stem} (sha256 {digest})",
        trivial="translation of the next sentence in the alphabet",
        held_out=min(50 if quick else 500, len(pairs) // 8),
        rare=2,
        seed=seed,
        quick=quick,
    )


def read_pairs(path: Path) -> list[Pair]:
    """Return the pairs of 3 to 12 tokens, in lower case, the first of equal sentences; text after a second tab is ignored."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ValueError(f"data must be a file that can be read, got {str(path)!r} ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"data must be text in UTF-8, got {str(path)!r} ({error})") from None
    pairs: dict[tuple[str, ...], list[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if "\t" not in line:
            raise ValueError(
                f"data must have a tab between a sentence and its translation, got line {number} of {path.name}: {line!r}"
            )
        source, target = (TOKEN.findall(text.lower()) for text in line.split("\t")[:2])
        if all(SHORTEST <= len(words) <= LONGEST for words in (source, target)):
            pairs.setdefault(tuple(source), target)
    if len(pairs) < FEWEST:
        words = f"of {SHORTEST} to {LONGEST} tokens"
        raise ValueError(f"data must have at least {FEWEST} different sentences {words}, got {len(pairs)} in {path.name}")
    return list(pairs.items())
