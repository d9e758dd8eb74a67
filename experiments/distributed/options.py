"""Command line of ``distributed``, checked before anything is trained."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..common.command import made, out_folder, parser_of
from ..common.language_models import BATCH, LARGEST_NORM
from ..common.optimizers import OPTIMIZERS
from ..common.text import WINDOW, Text, load_text
from .checkpoints import newest, read_record
from .processes import Processes
from .strategies import STRATEGIES

LEARNING_RATES = {"sgd": 0.5, "adam": 0.003, "adamw": 0.003}  # below those of heavy-tails, with which rounding grows faster
EVERY = 50
QUICK = {"steps": 20}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the training; ``batch`` is the batch of all processes together."""

    strategy: str = "ddp"
    optimizer: str = "sgd"
    lr: float = LEARNING_RATES["sgd"]
    clipping_type: str = "norm"
    level: float | None = LARGEST_NORM
    batch: int = BATCH
    steps: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name, smallest in (("batch", 1), ("steps", 1), ("seed", 0)):
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        self.make_optimizer([nn.Parameter(torch.zeros(1))])  # raises ValueError if the type or the level is invalid

    def make_optimizer(self, parameters: Sequence[nn.Parameter]) -> Optimizer:
        """Return the clipped optimizer."""
        _, clipped, arguments = OPTIMIZERS[self.optimizer]
        return clipped(parameters, lr=self.lr, clipping_type=self.clipping_type, clipping_level=self.level, **arguments)

    def settings(self, text: Text) -> dict[str, Any]:
        """Return all settings that the losses depend on: all but the strategy and the number of steps."""
        settings = asdict(self)
        del settings["strategy"], settings["steps"]
        read = {"data": text.source, "training_characters": len(text.training), "alphabet": text.alphabet}
        return settings | {"window": WINDOW} | read


@dataclass(frozen=True, kw_only=True)
class Job:
    """Checked command line."""

    config: Config
    text: Text
    reference: bool
    out: Path
    checkpoints: Path | None
    every: int
    start: Path | None  # the checkpoint to resume from


def read_job(arguments: Sequence[str], processes: Processes) -> Job:
    """Return the checked command line; exit with a message if it is invalid."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    out, quick, resume, checkpoints = (options.pop(name) for name in ("out", "quick", "resume", "checkpoints"))
    data, every, alone = (options.pop(name) for name in ("data", "checkpoint_every", "no_reference"))
    given = {name: value for name, value in options.items() if value is not None}
    changes = (
        ["--quick"] * quick
        + [f"--{name.replace('_', '-')}" for name in given]
        + ["--data"] * (data is not None)
        + ["--no-reference"] * alone
    )
    given = {**(QUICK if quick else {}), **given}
    given.setdefault("lr", LEARNING_RATES[given.get("optimizer", Config.optimizer)])
    given.setdefault("level", LARGEST_NORM if given.get("clipping_type", Config.clipping_type) == "norm" else None)
    try:
        config, text = Config(**given), load_text(data)
        _check_share(config, processes.count)
        if every < 1:
            raise ValueError(f"checkpoint-every must be at least 1, got {every}")
        if checkpoints:
            made(checkpoints, "checkpoints")
        folder = out_folder(out, changes)
        start = _start(config.settings(text), config.steps, checkpoints, resume)
    except ValueError as error:
        parser.error(str(error))
    places = {"out": folder, "checkpoints": checkpoints, "start": start}
    return Job(config=config, text=text, reference=not alone, every=every, **places)


def _check_share(config: Config, count: int) -> None:
    if STRATEGIES[config.strategy].shares_batch and config.batch % count:
        raise ValueError(f"batch must be a multiple of {count}, the number of processes, got {config.batch}")


def _start(settings: dict[str, Any], steps: int, folder: Path | None, resume: bool) -> Path | None:
    """Return the checkpoint to resume from; None for a training from the first step.

    Raises:
        ValueError: the checkpoint has other settings, or more than ``steps`` steps; there is a checkpoint and ``resume`` is not
            given; or ``resume`` is given without a folder.
    """
    if folder is None:
        if resume:
            raise ValueError("resume needs the folder of the checkpoints: --checkpoints FOLDER")
        return None
    checkpoint = newest(folder)
    if checkpoint is None:
        return None
    if not resume:
        found = f"{checkpoint.name} in {str(folder)!r}"
        raise ValueError(f"checkpoints must be a folder without any, unless --resume is given, got {found}")
    record = read_record(checkpoint)
    for name, value in record["settings"].items():
        if settings[name] != value:
            raise ValueError(f"{name} must be {value!r} as in {checkpoint.name} to go on from there, got {settings[name]!r}")
    if steps < len(record["losses"]):
        raise ValueError(f"steps must be at least {len(record['losses'])}, where {checkpoint.name} is, got {steps}")
    return checkpoint


def _parser() -> argparse.ArgumentParser:
    words = (
        "Train a small language model on N processes with clipping, and compare it with the same training on one.\n\n"
        "It runs on GPUs with nccl if there are any, else on the CPU with gloo. Without torchrun one process trains.\n"
        "--resume continues from the newest checkpoint, if there is one, with any strategy. It needs --checkpoints."
    )
    parser = parser_of("distributed", words, start="torchrun --nproc-per-node N")
    add = parser.add_argument
    add("--strategy", choices=STRATEGIES, help=f"default: {Config.strategy}")
    add("--optimizer", choices=OPTIMIZERS, help=f"default: {Config.optimizer}")
    add("--lr", type=float, help=f"learning rate (default: {LEARNING_RATES['sgd']} with sgd, else {LEARNING_RATES['adamw']})")
    add("--clipping-type", metavar="TYPE", help=f"default: {Config.clipping_type}")
    add("--level", type=float, help=f"clipping_level (default: {LARGEST_NORM} for type norm, else the type's default)")
    add("--batch", type=int, help=f"windows in a step, over all processes (default: {BATCH})")
    add("--steps", type=int, help=f"default: {Config.steps}")
    add("--seed", type=int, help=f"default: {Config.seed}")
    add("--data", type=Path, metavar="FILE", help="a text of your own (default: Python's standard library)")
    add("--checkpoints", type=Path, metavar="FOLDER", help="write checkpoints there (default: none)")
    add("--checkpoint-every", type=int, default=EVERY, metavar="STEPS", help="default: %(default)s")
    add("--no-reference", action="store_true", help="skip the training on one process, which takes as long as the other one")
    return parser
