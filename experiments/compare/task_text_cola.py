"""BERT on CoLA: is this English sentence acceptable?

References:
    Warstadt, Singh, Bowman: Neural Network Acceptability Judgments, 2019, https://arxiv.org/abs/1805.12471
    Devlin, Chang, Lee, Toutanova: BERT, 2019, https://arxiv.org/abs/1810.04805
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..common.packages import needed
from .task import Grids
from .task_parts import device_of, evaluating, evenly, halves, seeded, shuffled

LAYOUTS = {"in_domain_train.tsv": "in_domain_dev.tsv", "train.tsv": "dev.tsv"}  # the layouts of CoLA and of GLUE
COLUMNS = "source, label 0 or 1, the author's mark, sentence"
WEIGHTS = "the config.json, the weights and the tokenizer files that transformers saves"
LONGEST = 128  # tokens of a sentence; longer sentences are cut
EVALUATED = 512  # training sentences for the metric
Sentences = list[tuple[str, int]]


class CoLA:
    """Task to classify sentences as acceptable (1) or not (0), with a BERT on disk; raises ValueError if files are invalid."""

    name, metric, decays = "text", "Matthews correlation", False

    def __init__(self, data: Path, pretrained: Path | None, quick: bool) -> None:
        if pretrained is None:
            raise ValueError(f"pretrained must be a folder with {WEIGHTS} where task text has data, got none")
        corpus = read_corpus(data)
        self._training, self._validation = ([half[i] for i in evenly(len(half), 16 if quick else len(half))] for half in corpus)
        self._transformers = needed("transformers", "transformers", "task text with data")
        self._transformers.logging.set_verbosity_error()  # no warning that the last layer is new
        self._transformers.logging.disable_progress_bar()  # it would disturb the bar of the trainings
        self._matthews = needed("sklearn.metrics", "scikit-learn", "task text with data").matthews_corrcoef
        self._pretrained = pretrained
        self._tokenizer = self._load("AutoTokenizer")
        self._check()
        self.batch, self.steps = min(4 if quick else 32, len(self._training)), 2 if quick else 800  # three epochs
        self.learning_rates: Grids = {"SGD": (0.0025, 0.005, 0.01, 0.02), "Adam": (0.00001, 0.00002, 0.00004, 0.00008)}
        validation, test = halves(len(self._validation))  # the labels of the test sentences are not public
        self._parts = {
            "train": [self._training[i] for i in evenly(len(self._training), EVALUATED)],
            "validation": [self._validation[i] for i in validation],
            "test": [self._validation[i] for i in test],
        }
        self.trivial = ("one answer to all", 0.0)
        self.source = (
            f"{pretrained.resolve().name} on CoLA, {len(self._training)} sentences for training, {len(self._validation)} held out"
        )

    def _load(self, kind: str, **arguments: Any) -> Any:
        try:
            return getattr(self._transformers, kind).from_pretrained(str(self._pretrained), local_files_only=True, **arguments)
        except Exception as error:  # transformers, tokenizers and safetensors raise their own errors
            raise self._error((str(error).splitlines() or [type(error).__name__])[0]) from None

    def _error(self, reason: str) -> ValueError:
        return ValueError(f"pretrained must be a folder with {WEIGHTS}, got {str(self._pretrained)!r} ({reason})")

    def _check(self) -> None:
        """Raise ValueError if weights or words are missing, which transformers would initialize at random."""
        model, found = self._load("AutoModelForSequenceClassification", num_labels=2, output_loading_info=True)
        body = f"{model.base_model_prefix}."  # the head is new, and so is the pooler of some masked language models
        missing = sorted(name for name in found["missing_keys"] if name.startswith(body) and "pooler" not in name)
        if missing:
            raise self._error(f"the file of weights has no {missing[0]}{' and others' if len(missing) > 1 else ''}")
        words, rows = len(self._tokenizer), model.get_input_embeddings().num_embeddings
        if words == len(self._tokenizer.all_special_ids):
            raise self._error("its tokenizer has no words")
        if words > rows:
            raise self._error(f"its tokenizer has {words} words, its weights {rows}")

    def make_model(self, seed: int) -> nn.Module:
        """Return a model with the weights on disk; the last layer is drawn from the seed."""
        return seeded(lambda: self._load("AutoModelForSequenceClassification", num_labels=2), seed)

    def batches(self, seed: int) -> Iterator[Sentences]:
        """Return batches of sentences with labels."""
        return ([self._training[i] for i in some.tolist()] for some in shuffled(len(self._training), self.batch, seed))

    def loss(self, model: nn.Module, batch: Sentences) -> Tensor:
        """Return the cross-entropy, in nats."""
        return cross_entropy(self._logits(model, batch), torch.tensor([label for _, label in batch], device=device_of(model)))

    def evaluate(self, model: nn.Module, part: str) -> float:
        """Return the Matthews correlation of the answers and the labels; 0 if all answers are the same."""
        sentences = self._parts[part]
        batches = [sentences[i : i + self.batch] for i in range(0, len(sentences), self.batch)]
        with evaluating(model):
            answers = torch.cat([self._logits(model, batch).argmax(1) for batch in batches])
        return float(self._matthews([label for _, label in sentences], answers.tolist()))

    def _logits(self, model: nn.Module, sentences: Sentences) -> Tensor:
        tokens = self._tokenizer(
            [sentence for sentence, _ in sentences], padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
        )
        logits: Tensor = model(**{name: tensor.to(device_of(model)) for name, tensor in tokens.items()}).logits
        return logits


def read_corpus(data: Path) -> tuple[Sentences, Sentences]:
    """Return the sentences for training and for validation, from either layout."""
    for training, validation in LAYOUTS.items():
        if (data / training).is_file():
            return _read(data / training), _read(data / validation)
    names = " or ".join(f"{training} and {validation}" for training, validation in LAYOUTS.items())
    raise ValueError(f"data must be a folder with {names}, got {str(data)!r} without")


def _read(path: Path) -> Sentences:
    """Read four columns with tabs between them and no header; quotation marks are parts of the sentences."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data must hold {path.name}, lines of {COLUMNS} in UTF-8, got {str(path)!r} ({error})") from None
    sentences = []
    for number, line in enumerate(lines, start=1):
        cells = line.split("\t")
        if line and (len(cells) != 4 or cells[1] not in ("0", "1") or not cells[3].strip()):
            raise ValueError(
                f"data must have lines of {COLUMNS} with tabs between, got {line!r} in line {number} of {str(path)!r}"
            )
        if line:
            sentences.append((cells[3], int(cells[1])))
    if not sentences:
        raise ValueError(f"data must have lines of {COLUMNS}, got {str(path)!r} without any")
    return sentences
