"""Record gradient norms and losses of a small language model, with and without clipping.

``python -m experiments heavy-tails`` trains the model on real text with torch's optimizer and with the clipped one, from the
same start and on the same batches. The unclipped optimizer also gets lower learning rates: clipping is compared with the
best unclipped run too, and not only with a learning rate that is too high without clipping.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from tqdm import tqdm

from torch_clipped import Clipped

from ..common.command import Plan, check_at_least, command, parser_of
from ..common.files import write_json
from ..common.journal import Journal, Result
from ..common.language_models import BATCH, LARGEST_NORM, MODELS, VALIDATION_WINDOWS, continuation, next_character_loss
from ..common.machine import check_device
from ..common.optimizers import OPTIMIZERS
from ..common.text import WINDOW, Text, even_windows, load_text, random_windows
from .picture import plot
from .summary import Outcome, Row, Run, read_rows, summarize, write_rows
from .table import table

DRAWN = 200  # characters that a model writes before and after its training
NO_CLIPPING = {"clipped_steps": 0.0, "threshold": math.nan, "clip_rate": 0.0}
UNCLIPPED_SHARES = (1, 0.7, 0.5, 0.35, 0.15)  # the unclipped learning rates, as shares of the clipped one
QUICK: dict[str, Any] = {"seeds": 1, "unclipped_shares": (1, 0.5)}

LEARNING_RATES = {  # of the clipped runs
    ("lstm", "sgd"): 5.0,
    ("lstm", "adam"): 0.04,
    ("lstm", "adamw"): 0.04,
    ("transformer", "sgd"): 2.0,
    ("transformer", "adam"): 0.02,
    ("transformer", "adamw"): 0.02,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the trainings; ``lr`` is the learning rate of the clipped run and the largest one of the unclipped runs."""

    model: str = "lstm"
    optimizer: str = "sgd"
    lr: float = 5.0
    clipping_type: str = "norm"
    level: float | None = 0.25
    steps: int = 200
    seed: int = 0
    seeds: int = 3
    device: str = "cpu"
    unclipped_shares: tuple[float, ...] = UNCLIPPED_SHARES

    def __post_init__(self) -> None:
        check_at_least(self, {"steps": 1, "seed": 0, "seeds": 1})
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        check_device(self.device)
        self.clipping()  # raises ValueError if the type or the level is invalid

    def runs(self) -> list[Run]:
        """Return the clipped run, then the unclipped ones from the largest learning rate down."""
        plain, clipped, _ = OPTIMIZERS[self.optimizer]
        rates = [float(f"{self.lr * share:.4g}") for share in self.unclipped_shares[1:]]
        return [Run(clipped.__name__, True, self.lr), *(Run(plain.__name__, False, lr) for lr in (self.lr, *rates))]

    def make_optimizer(self, run: Run, parameters: Sequence[nn.Parameter]) -> Optimizer:
        """Return the optimizer of a run."""
        plain, clipped, arguments = OPTIMIZERS[self.optimizer]
        if run.clipped:
            arguments = arguments | {"clipping_type": self.clipping_type, "clipping_level": self.level}
        return (clipped if run.clipped else plain)(parameters, lr=run.lr, **arguments)

    def clipping(self) -> dict[str, Any]:
        """Return the clipping type and level as the optimizer reads them; raise its ValueError if one is invalid."""
        group = self.make_optimizer(self.runs()[0], [nn.Parameter(torch.zeros(1))]).param_groups[0]
        return {name: group[name] for name in ("clipping_type", "clipping_level")}

    def settings(self, text: Text) -> dict[str, Any]:
        """Return all settings that the numbers depend on, for the summary."""
        settings = asdict(self) | self.clipping() | OPTIMIZERS[self.optimizer][2]
        del settings["level"], settings["seed"], settings["unclipped_shares"]
        return settings | {
            "seeds": list(range(self.seed, self.seed + self.seeds)),
            "unclipped_lrs": [run.lr for run in self.runs() if not run.clipped],
            "batch": BATCH,
            "window": WINDOW,
            "data": text.source,
            "training_characters": len(text.training),
            "validation_characters": len(text.validation),
            "alphabet": text.alphabet,
            "loss_of_guessing": math.log(text.alphabet),
        }


def plan(**options: Any) -> Plan:
    """Return the plan of a :class:`Config` with these options on the text ``data``."""
    data, (model, optimizer) = options.pop("data", None), (options.get("model", "lstm"), options.get("optimizer", "sgd"))
    options.setdefault("lr", LEARNING_RATES.get((model, optimizer)))
    options.setdefault("level", LARGEST_NORM if options.get("clipping_type", "norm") == "norm" else None)
    config, text = Config(**options), load_text(data)
    settings, runs = config.settings(text), config.runs()

    def train_all(journal: Journal) -> None:
        for seed in settings["seeds"]:
            for one in runs:
                journal.done(f"seed {seed}, {one.label}", config.steps, partial(train, config, text, one, seed, journal.progress))

    def write(results: Sequence[Result], folder: Path) -> str:
        files = [folder / f"heavy_tails.{kind}" for kind in ("csv", "json", "png")]
        write_rows([Row(*row) for result in results for row in result["rows"]], files[0])
        outcomes = [
            Outcome(result["seed"], Run(*result["run"]), result["validation_loss"], result["texts"]) for result in results
        ]
        summary = summarize(settings, runs, read_rows(files[0]), outcomes)
        write_json(summary, files[1])
        plot(*files)
        return table(summary)

    steps = config.seeds * len(runs) * config.steps
    return Plan(name="heavy_tails", settings=settings, steps=steps, train=train_all, write=write)


def train(config: Config, text: Text, one: Run, seed: int, progress: tqdm[Any]) -> Result:
    """Train one model; return a row for every step, the validation loss (NaN if a loss was not finite), and texts it wrote."""
    rows: list[Row] = []
    model = _model(config, text, seed)
    optimizer = config.make_optimizer(one, list(model.parameters()))
    batches = torch.Generator().manual_seed(seed)
    clipped_steps, is_first = 0.0, seed == config.seed
    texts = [_drawn(model, text, seed)] if is_first else []
    for step in range(config.steps):
        loss = next_character_loss(model, random_windows(text.training, BATCH, batches), config.device)
        optimizer.zero_grad()
        loss.backward()
        # The norm of the whole gradient, measured here so that it is the same for all runs and clipping types.
        norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        optimizer.step()
        stats = optimizer.clipping_stats() if isinstance(optimizer, Clipped) else NO_CLIPPING
        clipped = int(stats["clipped_steps"] > clipped_steps)
        clipped_steps = stats["clipped_steps"]
        rows.append(Row(seed, one.optimizer, one.lr, step, loss.item(), norm.item(), stats["threshold"], clipped))
        progress.set_postfix_str(f"loss {loss:.4g}, gradient norm {norm:.3g}, clip rate {stats['clip_rate']:.1%}", refresh=False)
        progress.update()
        if not loss.isfinite():
            break
    validation_loss = _validation_loss(model, text, config.device) if loss.isfinite() else math.nan
    texts += [_drawn(model, text, seed)] if is_first and math.isfinite(validation_loss) else []
    return {"seed": seed, "run": one, "rows": rows, "validation_loss": validation_loss, "texts": texts}


def _model(config: Config, text: Text, seed: int) -> nn.Module:
    """Return a new model, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[config.model](text.alphabet).to(config.device)


def _drawn(model: nn.Module, text: Text, seed: int) -> str:
    """Return the model's continuation of the first characters of the validation text."""
    return text.spell(continuation(model, text.validation[:WINDOW], DRAWN, seed))


@torch.no_grad()
def _validation_loss(model: nn.Module, text: Text, device: str) -> float:
    windows = even_windows(text.validation, VALIDATION_WINDOWS, BATCH)
    return float(torch.stack([next_character_loss(model, some, device) for some in windows]).mean())


def main(arguments: Sequence[str]) -> int:
    """Train, write heavy_tails.csv, .json and .png, print the table; return 130 after an interruption, else 0."""
    parser = parser_of("heavy-tails", __doc__)
    add = parser.add_argument
    add("--model", choices=MODELS, help="default: lstm")
    add("--optimizer", choices=OPTIMIZERS, help="default: sgd")
    add(
        "--lr",
        type=float,
        help="learning rate; the largest one of the unclipped runs (default: by model and optimizer, 5 for lstm with sgd)",
    )
    add("--clipping-type", metavar="TYPE", help="default: norm")
    add("--level", type=float, help=f"clipping_level (default: {LARGEST_NORM} for type norm, else the type's default)")
    add("--steps", type=int, help="steps of each training (default: 200)")
    add("--seed", type=int, help="the first seed (default: 0)")
    add("--seeds", type=int, help="how many seeds (default: 3)")
    add("--device", help="default: cpu")
    add("--data", type=Path, metavar="FILE", help="a text of your own (default: Python's standard library)")
    return command(parser, plan, QUICK, arguments)
