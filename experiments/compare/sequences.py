"""Sequences to sequences: an encoder and a decoder with attention, and the tasks of ``compare`` that train them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from torch_clipped import groups_by_module

from .task import Grids
from .task_parts import Grouped, device_of, evaluating, seeded, shuffled

PADDING, END, UNKNOWN, FIRST = range(4)  # numbers of symbols; a target begins and ends with END
WIDTH = 64
EVALUATED = 300  # largest number of training and validation pairs to evaluate
Symbols = Sequence[Hashable]
Pair = tuple[Symbols, Symbols]  # source and target
Numbers = list[tuple[list[int], list[int]]]  # of pairs


class Encoder(nn.Module):
    """Source symbols -> a state for each symbol, and the last state, in both directions."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, WIDTH, padding_idx=PADDING)
        self.gru = nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)

    def forward(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(self.embedding(source), lengths, batch_first=True, enforce_sorted=False)
        states, last = self.gru(packed)
        return pad_packed_sequence(states, batch_first=True)[0], last.transpose(0, 1).flatten(1)[None]


class Decoder(nn.Module):
    """Target symbols so far -> logits of the next ones, with attention to the states of the encoder (Luong et al. 2015)."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, WIDTH, padding_idx=PADDING)
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.logits = nn.Linear(2 * WIDTH, symbols)

    def forward(self, target: Tensor, states: Tensor, mask: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        own, last = self.gru(self.embedding(target), last)
        scores = (own @ states.transpose(1, 2)).masked_fill(~mask[:, None], -torch.inf)
        return self.logits(torch.cat([own, scores.softmax(-1) @ states], dim=-1)), last


class EncoderDecoder(Grouped):
    """Encoder and decoder, which are clipped separately."""

    def __init__(self, sources: int, targets: int) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(sources), Decoder(targets)

    def groups(self) -> list[dict[str, Any]]:
        """Return a group for each half, with a ``clipping_set`` of its own."""
        return groups_by_module(self, {name: {"clipping_set": name} for name in ("encoder", "decoder")})

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        states, last = self.encoder(source, lengths)
        logits: Tensor = self.decoder(target, states, source != PADDING, last)[0]
        return logits

    def answer(self, source: Tensor, lengths: Tensor, longest: int) -> Tensor:
        """Return the likeliest target symbols, chosen one after another, shape (pairs, longest)."""
        states, last = self.encoder(source, lengths)
        said = torch.full((len(source), 1), END, device=source.device)
        for _ in range(longest):
            logits, last = self.decoder(said[:, -1:], states, source != PADDING, last)
            said = torch.cat([said, logits.argmax(-1)], dim=1)
        return said[:, 1:]


class Sequences:
    """Task of a target sequence for each source sequence; see :class:`experiments.compare.task.Task`.

    Args:
        name, metric: those of the task.
        pairs: different sources, and their targets.
        what: name of the pairs in the attribute ``source``.
        trivial: name of the method that answers with the target of the next source in the alphabet.
        held_out: number of pairs for validation, and for tests.
        rare: symbols that occur less often in the training data count as unknown.
        seed: seed of the split.
        quick: take few steps.
    """

    decays = False
    learning_rates: Grids = {"SGD": (0.2, 0.4, 0.8, 1.6), "Adam": (0.001, 0.002, 0.004, 0.008)}  # noqa: RUF012 (not changed)

    def __init__(
        self,
        name: str,
        metric: str,
        pairs: Sequence[Pair],
        what: str,
        trivial: str,
        held_out: int,
        rare: int,
        seed: int,
        quick: bool,
    ) -> None:
        self.name, self.metric, self.steps = name, metric, 10 if quick else 300
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
        drawn = [pairs[i] for i in order]
        training, validation, test = drawn[2 * held_out :], drawn[:held_out], drawn[held_out : 2 * held_out]
        self.pairs = {"train": training, "validation": validation, "test": test}
        self.sources, self.targets = (numbered(side, rare) for side in zip(*training, strict=True))
        self._training = self._in_numbers(training)
        evaluated = min(held_out, EVALUATED)
        self._parts = {part: self._in_numbers(some if part == "test" else some[:evaluated]) for part, some in self.pairs.items()}
        self.batch = min(32, len(training))
        self.source = f"encoder and decoder of GRUs with attention on {len(training)} {what}"
        self.trivial = (trivial, neighbours_share(training, test))

    def _in_numbers(self, pairs: Iterable[Pair]) -> Numbers:
        return [
            ([self.sources.get(one, UNKNOWN) for one in source], [self.targets.get(one, UNKNOWN) for one in target])
            for source, target in pairs
        ]

    def make_model(self, seed: int) -> nn.Module:
        """Return a model, the same for the same seed."""
        return seeded(lambda: EncoderDecoder(FIRST + len(self.sources), FIRST + len(self.targets)), seed)

    def batches(self, seed: int) -> Iterator[Numbers]:
        """Return batches of sources and targets."""
        return ([self._training[i] for i in some.tolist()] for some in shuffled(len(self._training), self.batch, seed))

    def loss(self, model: nn.Module, batch: Numbers) -> Tensor:
        """Return the cross-entropy of the target symbols and of the end, in nats a symbol."""
        source, lengths, target = padded(batch, device_of(model))
        logits = model(source, lengths, torch.cat([torch.full_like(target[:, :1], END), target[:, :-1]], dim=1))
        return cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PADDING)

    def evaluate(self, model: nn.Module, part: str) -> float:
        """Return 1 - edits / target symbols, with the edits from answers to targets; an unknown symbol is never right."""
        assert isinstance(model, EncoderDecoder)
        pairs = self._parts[part]
        source, lengths, _ = padded(pairs, device_of(model))
        with evaluating(model):
            said = model.answer(source, lengths, max(len(target) for _, target in pairs) + 2).tolist()
        answers = [row[: row.index(END)] if END in row else row for row in said]
        return share_right(answers, [[number if number != UNKNOWN else None for number in target] for _, target in pairs])


def numbered(sequences: Iterable[Symbols], rare: int) -> Mapping[Hashable, int]:
    """Return the numbers of the symbols that occur at least ``rare`` times in the sequences, in sorted order."""
    counts = Counter(symbol for sequence in sequences for symbol in sequence)
    return {symbol: number for number, symbol in enumerate(sorted(one for one in counts if counts[one] >= rare), FIRST)}


def padded(pairs: Numbers, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return sources, their lengths (on the CPU), and targets followed by END; shorter ones are padded."""
    lengths = torch.tensor([len(source) for source, _ in pairs])
    sources = pad_sequence([torch.tensor(source) for source, _ in pairs], batch_first=True, padding_value=PADDING)
    targets = pad_sequence([torch.tensor([*target, END]) for _, target in pairs], batch_first=True, padding_value=PADDING)
    return sources.to(device), lengths, targets.to(device)


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
    """Return 1 - error rate, where the error rate is edits / target symbols."""
    return 1 - sum(map(edits, answers, right)) / sum(map(len, right))


def neighbours_share(training: Sequence[Pair], test: Sequence[Pair]) -> float:
    """Return the metric if each test source gets the target of the next training source in the alphabet."""
    known, asked = {tuple(source): target for source, target in training}, {tuple(source): target for source, target in test}
    answers: dict[Symbols, Symbols] = {}
    following: Symbols = ()
    for source in sorted({*known, *asked}, reverse=True):
        if source in known:
            following = known[source]
        else:
            answers[source] = following
    return share_right([answers[source] for source in asked], list(asked.values()))
