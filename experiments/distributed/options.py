"""What ``distributed`` was asked for: its command line, checked before anything is trained."""

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

from ..common.language_models import BATCH, LARGEST_NORM
from ..common.optimizers import OPTIMIZERS
from ..common.text import WINDOW, Text, load_text
from .checkpoints import newest, read_record
from .processes import Processes
from .strategies import STRATEGIES

LEARNING_RATES = {"sgd": 0.5, "adam": 0.003, "adamw": 0.003}  # below those of heavy-tails, where rounding grows faster
EVERY = 50


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is trained, and how; the batch is that of all processes together."""

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
        self.make_optimizer([nn.Parameter(torch.zeros(1))])  # raises where the type or the level is nonsense

    def make_optimizer(self, parameters: Sequence[nn.Parameter]) -> Optimizer:
        """The clipped optimizer."""
        _, clipped, arguments = OPTIMIZERS[self.optimizer]
        return clipped(parameters, lr=self.lr, clipping_type=self.clipping_type, clipping_level=self.level, **arguments)

    def settings(self, text: Text) -> dict[str, Any]:
        """All that the losses depend on; not who computes them, and not how many of them."""
        settings = asdict(self)
        del settings["strategy"], settings["steps"]
        read = {"data": text.source, "training_characters": len(text.training), "alphabet": text.alphabet}
        return settings | {"window": WINDOW} | read


@dataclass(frozen=True, kw_only=True)
class Job:
    """A checked command line."""

    config: Config
    text: Text
    reference: bool
    out: Path | None
    checkpoints: Path | None
    every: int
    start: Path | None  # the checkpoint to go on from


def read_job(arguments: Sequence[str], processes: Processes) -> Job:
    """The command line, checked; SystemExit with a message where it is wrong."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    places = {name: options.pop(name) for name in ("out", "checkpoints")}
    data, every, resume, alone = (options.pop(name) for name in ("data", "checkpoint_every", "resume", "no_reference"))
    if options["lr"] is None:
        options["lr"] = LEARNING_RATES[options["optimizer"]]
    if options["level"] is None and options["clipping_type"] == "norm":
        options["level"] = LARGEST_NORM
    try:
        config, text = Config(**options), load_text(data)
        _check_share(config, processes.count)
        if every < 1:
            raise ValueError(f"checkpoint-every must be at least 1, got {every}")
        _make_folders(places)
        start = _start(config.settings(text), config.steps, places["checkpoints"], resume)
    except ValueError as error:
        parser.error(str(error))
    return Job(config=config, text=text, reference=not alone, every=every, start=start, **places)


def _check_share(config: Config, count: int) -> None:
    if STRATEGIES[config.strategy].shares_batch and config.batch % count:
        raise ValueError(f"batch must be a multiple of {count}, the number of processes, got {config.batch}")


def _make_folders(places: dict[str, Path | None]) -> None:
    for name, folder in places.items():
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{name} must be a folder that can be written, got {str(folder)!r} ({error.strerror})") from None


def _start(settings: dict[str, Any], steps: int, folder: Path | None, resume: bool) -> Path | None:
    """The checkpoint to go on from, which must be one of this very training; None for a training from the first step."""
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
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node N -m experiments distributed",
        description="Train a small language model on N processes with clipping, and compare it with the same training on one.",
        epilog="GPUs are used by nccl where there are any, else the CPU by gloo. Without torchrun one process trains.",
    )
    add = parser.add_argument
    add("--strategy", choices=STRATEGIES, default=Config.strategy, help="default: %(default)s")
    add("--optimizer", choices=OPTIMIZERS, default=Config.optimizer, help="default: %(default)s")
    add("--lr", type=float, help=f"learning rate (default: {LEARNING_RATES['sgd']} with sgd, else {LEARNING_RATES['adamw']})")
    add("--clipping-type", default=Config.clipping_type, metavar="TYPE", help="default: %(default)s")
    add("--level", type=float, help=f"clipping_level (default: {LARGEST_NORM} for type norm, else that of the type)")
    add("--batch", type=int, default=BATCH, help="windows in a step of all processes together (default: %(default)s)")
    add("--steps", type=int, default=Config.steps, help="default: %(default)s")
    add("--seed", type=int, default=Config.seed, help="default: %(default)s")
    add("--data", type=Path, metavar="FILE", help="a text of your own (default: Python's standard library)")
    add("--out", type=Path, metavar="FOLDER", help="write distributed.csv and .json there (default: write nothing)")
    add("--checkpoints", type=Path, metavar="FOLDER", help="write checkpoints there (default: none)")
    add("--checkpoint-every", type=int, default=EVERY, metavar="STEPS", help="default: %(default)s")
    add("--resume", action="store_true", help="go on from the newest checkpoint, if there is one; by any strategy")
    add("--no-reference", action="store_true", help="do not train on one process too, which takes the time of a second training")
    return parser
