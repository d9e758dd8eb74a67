"""Time optimizer steps with clipping as multiples of torch's fused step without, and measure their memory.

``python -m experiments benchmark`` times torch's optimizers, torch's clipping functions, every clipping type, clipping and not,
and other packages that are installed (extra ``benchmark``), all in turns on the same parameters, gradients and state.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from torch_clipped import ClippingWarning

from ..common.command import Plan, command, parser_of
from ..common.files import write_json
from ..common.journal import Journal, Result
from ..common.machine import machine, versions
from ..common.optimizers import OPTIMIZERS
from .contenders import our_contenders, torch_contenders
from .packages import package_contenders
from .picture import plot
from .problem import DTYPES, LEARNING_RATE, SIZES, Problem
from .rows import Row, make_rows, read_rows, write_rows
from .table import guide_table, targets, targets_table, write_targets
from .timing import peak_bytes, time_steps

# Seconds for the rounds of one optimizer in (float32, bfloat16).
BUDGETS = {
    "tiny": (5.0, 3.0),
    "policy": (5.0, 3.0),
    "many": (8.0, 5.0),
    "resnet18": (25.0, 12.0),
    "gpt2": (80.0, 35.0),
    "1b": (40.0, 20.0),
}
ACCELERATOR_SIZES = ("1b",)  # too large for most hosts
QUICK: dict[str, Any] = {"sizes": ("tiny", "resnet18"), "dtypes": ("float32",), "optimizers": ("sgd", "adamw"), "budget": 4.0}
Place = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the timings; ``budget`` is seconds for each size, dtype and optimizer, None for the defaults."""

    sizes: tuple[str, ...] = tuple(size for size in SIZES if size not in ACCELERATOR_SIZES)
    dtypes: tuple[str, ...] = tuple(DTYPES)
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    budget: float | None = None
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for argument, choices in (("sizes", SIZES), ("dtypes", DTYPES), ("optimizers", OPTIMIZERS)):
            for value in getattr(self, argument):
                if value not in choices:
                    raise ValueError(f"{argument} must be some of {', '.join(choices)}, got {value!r}")
        if self.budget is not None and not 0 < self.budget < float("inf"):
            raise ValueError(f"budget must be positive and finite, got {self.budget}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be at least 0 and below 2**63, got {self.seed}")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device 'cuda' cannot be used: torch finds none")

    def places(self) -> list[Place]:
        """Return every combination of size, dtype and optimizer."""
        return [(size, dtype, optimizer) for size in self.sizes for dtype in self.dtypes for optimizer in self.optimizers]

    def settings(self) -> dict[str, Any]:
        """Return all settings that the timings depend on, except the machine and package versions."""
        return asdict(self) | {"lr": LEARNING_RATE, "sgd_momentum": OPTIMIZERS["sgd"][2]["momentum"]}

    def budget_of(self, size: str, dtype: str) -> float:
        """Return the seconds for the rounds of each optimizer."""
        return BUDGETS[size][dtype != "float32"] if self.budget is None else self.budget


def plan(**options: Any) -> Plan:
    """Return the plan of a :class:`Config` with these options."""
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    if options.get("device") == "cuda":
        options.setdefault("sizes", tuple(SIZES))
    config = Config(**options)
    places = config.places()

    def time_all(journal: Journal) -> None:
        for place in places:
            journal.done(" ".join(place), 1, partial(_rows_of, config, *place))

    def write(results: Sequence[Result], folder: Path) -> str:
        files = [folder / f"benchmark.{kind}" for kind in ("csv", "json", "png")]
        write_rows([Row(**row) for result in results for row in result["rows"]], files[0])
        rows = read_rows(files[0])
        summary = summarize(config, rows, len(results) < len(places))
        write_targets(targets(rows), folder / "benchmark_targets.csv")
        write_json(summary, files[1])
        plot(*files)
        return "\n".join([guide_table(rows), "", targets_table(targets(rows)), *summary["skipped"]])

    settings = config.settings() | {"machine": machine(config.device)}  # times of two machines must not be mixed
    return Plan(name="benchmark", settings=settings, steps=len(places), train=time_all, write=write)


def _rows_of(config: Config, *place: str) -> Result:
    return {"rows": [row._asdict() for row in measure(config, *place)]}


def measure(config: Config, size: str, dtype: str, optimizer: str) -> list[Row]:
    """Return the rows of one size, dtype and optimizer.

    Raises:
        RuntimeError: a contender clipped although it should not, or the reverse.
    """
    problem = Problem(size, dtype, optimizer, config.device, config.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClippingWarning)  # about gradients with equal norms, which are intended here
        everyone = [*torch_contenders(problem), *package_contenders(problem), *our_contenders(problem)]
        contenders = [contender for contender in everyone if not contender.skipped]
        timings = time_steps(problem, contenders, config.budget_of(size, dtype), config.seed)
        peaks = [peak_bytes(problem, contender.step) for contender in contenders]
        for contender in contenders:
            contender.verify()
    return make_rows(problem, contenders, timings, peaks, [contender for contender in everyone if contender.skipped])


def summarize(config: Config, rows: Sequence[Row], interrupted: bool) -> dict[str, Any]:
    """Return settings, versions, machine, skipped contenders, bandwidth of a copy and the number of targets met."""
    found = targets(rows)
    places = {(row.size, row.dtype, row.optimizer): row.copy_gb_per_second for row in rows if not row.note}
    return {
        "experiment": "benchmark",
        "settings": config.settings(),
        "versions": versions(),
        "machine": machine(config.device),
        "interrupted": interrupted,
        "rows": len(rows),
        "skipped": sorted({f"{row.contender}, {row.optimizer}: {row.note}" for row in rows if row.note}),
        "copy_gb_per_second": {" ".join(place): round(bandwidth, 2) for place, bandwidth in places.items()},
        "targets": {"met": sum(target.met for target in found), "not_met": sum(not target.met for target in found)},
    }


def main(arguments: Sequence[str]) -> int:
    """Time, write benchmark.csv, .json, .png and benchmark_targets.csv, print tables; return 130 if interrupted, else 0."""
    parser = parser_of("benchmark", __doc__)
    add = parser.add_argument
    for name, choices in (("sizes", SIZES), ("dtypes", DTYPES), ("optimizers", OPTIMIZERS)):
        add(f"--{name}", nargs="+", metavar=name[:-1].upper(), help=f"some of {', '.join(choices)}")
    add("--budget", type=float, help="seconds for each size, dtype and optimizer (default: by size and dtype)")
    add("--device", help="cpu or cuda (default: cpu)")
    add("--seed", type=int, help="seed of weights, gradients and order (default: 0)")
    return command(parser, plan, QUICK, arguments)
