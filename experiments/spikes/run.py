"""Measure what a few corrupted batches do to a language model, with and without clipping.

``python -m experiments spikes`` trains an LSTM on characters with Adam and replaces some batches by corrupted ones at
known steps. There are two kinds. "wrong targets": random characters instead of the next ones, as from a damaged file. "wrong
targets, summed": the same, with the loss summed over the 64 characters of a window instead of averaged. This raises the
gradient norm to several hundred times the usual; up to a thousand times are reported from large language models (Huang et al.
2025). All contenders have the same start, batches, corrupted batches of a seed, and learning rate. Each clipping type has its
default level. "zclip, cap" adds the cap of its authors. "skip" is the rule of OLMo-core: zscore at level 6 skips steps whose
gradient norm is too far above the usual. "left out" is the best possible outcome: the corrupted loss is infinite, as after an
overflow, nonfinite="skip" skips the step, and nothing is clipped.

The loss is always that of the uncorrupted batch, measured before the step, even if a corrupted batch replaces it for the
step.

References:
    T. Huang, Z. Zhu, G. Jin, L. Liu, Z. Wang, S. Liu, SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training, 2025,
    https://arxiv.org/abs/2501.06842.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import get_total_norm

from torch_clipped import ClippedAdam, ClippingWarning

from ..common.command import Plan, check_at_least, command, parser_of
from ..common.files import write_csv, write_json
from ..common.journal import Journal, Result
from ..common.language_models import BATCH, LSTM, next_character_loss
from ..common.text import UNKNOWN, WINDOW, Text, load_text, random_windows
from .picture import plot
from .summary import DEVIATIONS, SCORE_WINDOW, SMOOTHING, summarize, table

CONTENDERS: dict[str, dict[str, Any]] = {
    **{name: {"clipping_type": name} for name in ("none", "norm", "auto", "zscore", "zclip", "adagc")},
    "zclip, cap": {"clipping_type": "zclip", "clipping_cap": 1.0},  # as published
    "skip": {  # the rule of OLMo-core for gradient norms
        "clipping_type": "zscore",
        "clipping_level": 6.0,
        "clipping_window": 128,
        "clipping_warmup": 63,
        "clipping_action": "skip",
    },
    "left out": {"clipping_type": "norm", "clipping_level": math.inf, "nonfinite": "skip"},  # the best possible outcome
}
WEIGHTS = {"wrong targets": 1.0, "wrong targets, summed": float(WINDOW)}  # of the corrupted losses
UNHARMED = "no corrupted batch"  # without clipping: the loss to recover


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the trainings, and the steps with a corrupted batch."""

    lr: float = 0.01
    steps: int = 450
    corrupted: tuple[int, ...] = (150, 250, 350)
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    seed: int = 0
    seeds: int = 6

    def __post_init__(self) -> None:
        check_at_least(self, {"seed": 0, "seeds": 1})

    def settings(self, text: Text) -> dict[str, Any]:
        """Return all settings that the numbers depend on."""
        levels = {name: group_of(name)["clipping_level"] for name in self.contenders}
        return asdict(self) | {
            "optimizer": "adam",
            "clipping_levels": {name: None if level == math.inf else level for name, level in levels.items()},
            "weights": WEIGHTS,
            "batch": BATCH,
            "window": WINDOW,
            "data": f"LSTM on the characters of {text.source}",
            "smoothing": SMOOTHING,
            "score_window": SCORE_WINDOW,
            "score_deviations": DEVIATIONS,
        }


QUICK = {"steps": 160, "corrupted": (140,), "contenders": ("none", "zclip", "skip"), "seeds": 1}


def group_of(contender: str) -> dict[str, Any]:
    """Return the clipping arguments of a contender in a parameter group, with the default level if it sets none."""
    return dict(ClippedAdam([nn.Parameter(torch.zeros(1))], **CONTENDERS[contender]).param_groups[0])


def plan(**options: Any) -> Plan:
    """Return the plan of a :class:`Config` with these options."""
    config, text = Config(**options), load_text(None)
    settings, trainings = config.settings(text), _trainings(config)

    def train_all(journal: Journal) -> None:
        for kind, name, seed in trainings:
            journal.done(f"seed {seed}, {kind}, {name}", config.steps, partial(train, config, text, kind, name, seed))

    def write(results: Sequence[Result], folder: Path) -> str:
        interrupted = len(results) < len(trainings)
        summary = {"experiment": "spikes", "config": settings, "interrupted": interrupted}
        summary |= summarize(results, config.corrupted)
        files = [folder / f"spikes.{kind}" for kind in ("csv", "json", "png")]
        write_csv(_rows(results, config), files[0])
        write_json(summary, files[1])
        plot(*files)
        return table(summary)

    return Plan(name="spikes", settings=settings, steps=len(trainings) * config.steps, train=train_all, write=write)


def _trainings(config: Config) -> list[tuple[str, str, int]]:
    """Return kind, contender and seed of each training, seed by seed, so that an interruption leaves something to compare."""
    kinds = [(UNHARMED, "none"), *product(WEIGHTS, config.contenders)]
    return [(*kind, seed) for seed in range(config.seed, config.seed + config.seeds) for kind in kinds]


def train(config: Config, text: Text, kind: str, contender: str, seed: int) -> Result:
    """Train once; return the losses, up to the first that is not finite, and the gradient norms before clipping."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LSTM(text.alphabet)
    # One implementation for all: for "none" torch would choose another one, which rounds differently.
    optimizer = ClippedAdam(model.parameters(), lr=config.lr, fused=True, **CONTENDERS[contender])
    batches, noise = (torch.Generator().manual_seed(number) for number in (seed, 1000 + seed))
    weight = math.inf if contender == "left out" else WEIGHTS.get(kind)
    losses, norms = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClippingWarning)  # about skipped steps, which are intended here
        for step in range(config.steps):
            characters, following = random_windows(text.training, BATCH, batches)
            loss = next_character_loss(model, (characters, following))
            losses.append(loss.item())
            if not loss.isfinite():
                break
            if step in config.corrupted and weight is not None:
                wrong = torch.randint(UNKNOWN + 1, text.alphabet, following.shape, generator=noise)
                loss = weight * next_character_loss(model, (characters, wrong))
            optimizer.zero_grad()
            loss.backward()
            norms.append(get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item())
            optimizer.step()
    return {"kind": kind, "contender": contender, "seed": seed, "losses": losses, "norms": norms}


def _rows(results: Sequence[Result], config: Config) -> list[dict[str, Any]]:
    """Return a row for every step, with a loss for each contender, NaN if there is none."""
    columns = {(r["kind"], r["seed"], r["contender"]): r["losses"] for r in results}
    return [
        {"batches": kind, "seed": seed, "step": step}
        | {name: dict(enumerate(columns.get((kind, seed, name), ()))).get(step, math.nan) for name in config.contenders}
        for kind, seed in dict.fromkeys((r["kind"], r["seed"]) for r in results)
        for step in range(config.steps)
    ]


def main(arguments: Sequence[str]) -> int:
    """Train, write spikes.csv, .json and .png, print the table; return 130 after an interruption, else 0."""
    torch.set_num_threads(1)  # the model is too small for a second one to help
    parser = parser_of("spikes", __doc__)
    parser.add_argument("--seeds", type=int, help="number of seeds (default: 6)")
    parser.add_argument("--seed", type=int, help="the first seed (default: 0)")
    return command(parser, plan, QUICK, arguments)
