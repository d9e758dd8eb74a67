"""Text to train on, as character numbers: the source of Python's standard library, or the user's own file."""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

WINDOW = 64  # characters that a model sees at once
LIBRARY_BYTES = 1_000_000  # enough for a few hundred steps
HELD_OUT = 10  # every tenth file, or the last tenth of the user's text, is for validation
UNKNOWN = 0


@dataclass(frozen=True, kw_only=True)
class Text:
    """Training and validation text as character numbers, shape (characters,); those not seen in training are ``UNKNOWN``."""

    source: str
    characters: str  # by their numbers
    training: Tensor
    validation: Tensor

    @property
    def alphabet(self) -> int:
        """Return the number of different characters."""
        return len(self.characters)

    def spell(self, numbers: Tensor) -> str:
        """Return the characters with these numbers."""
        return "".join(self.characters[number] for number in numbers.tolist())


def load_text(data: Path | None) -> Text:
    """Return the file ``data``, or the standard library's first files for None; raise ValueError if it cannot be used."""
    if data is None:
        return _encode(*_standard_library())
    try:
        characters = data.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise ValueError(f"data must be a text file that can be read, got {str(data)!r} ({error.strerror})") from None
    cut = len(characters) - len(characters) // HELD_OUT
    return _encode(data.name, characters[:cut], characters[cut:])


def _standard_library() -> tuple[str, str, str]:
    """Return a name, the training text and the validation text: files in the order of their names, the last one cut.

    Names that start with an underscore are skipped: some of these modules are generated and differ from machine to machine.
    """
    left, texts = LIBRARY_BYTES, []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[!_]*.py"), key=lambda path: path.name):
        if left <= 0:
            break
        content = path.read_bytes()[:left]
        left -= len(content)
        texts.append(content.decode("utf-8", errors="replace"))
    held_out = texts[HELD_OUT - 1 :: HELD_OUT]
    del texts[HELD_OUT - 1 :: HELD_OUT]
    files = len(texts) + len(held_out)
    name = f"Python {platform.python_version()} standard library, first {files} files"
    return name, "".join(texts), "".join(held_out)


def _encode(source: str, training: str, validation: str) -> Text:
    if len(validation) <= WINDOW:
        raise ValueError(
            f"data must hold at least {HELD_OUT * (WINDOW + 1)} characters, got {len(training) + len(validation)} in {source!r}"
        )
    codes = [np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32) for text in (training, validation)]
    known = np.unique(codes[0])
    places = [np.minimum(np.searchsorted(known, code), len(known) - 1) for code in codes]
    numbers = [np.where(known[place] == code, place + 1, UNKNOWN) for place, code in zip(places, codes, strict=True)]
    return Text(
        source=source,
        characters="\N{REPLACEMENT CHARACTER}" + "".join(map(chr, known)),
        training=torch.from_numpy(numbers[0]),
        validation=torch.from_numpy(numbers[1]),
    )


def random_windows(text: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return ``count`` random windows of the text, and the next character of each entry; shapes (count, WINDOW)."""
    return _windows(text, torch.randint(len(text) - WINDOW, (count,), generator=generator))


def even_windows(text: Tensor, count: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``count`` windows spread evenly over the text, ``batch`` at a time: the same in every run."""
    starts = torch.linspace(0, len(text) - WINDOW - 1, count, dtype=torch.float64).long()
    return (_windows(text, some) for some in starts.split(batch))


def _windows(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    characters = text[starts[:, None] + torch.arange(WINDOW + 1)]
    return characters[:, :-1], characters[:, 1:]
