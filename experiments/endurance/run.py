"""Measure the cost of a step with clipping over a long training: time, memory, objects and state.

``python -m experiments endurance`` takes a million steps with heavy-tailed gradient norms and ten clipping types in one
optimizer, each in a parameter group of its own, and writes one row for every hundredth of the steps.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from torch_clipped import ClippedSGD

from ..common.command import Plan, check_at_least, command, parser_of
from ..common.files import read_csv, write_csv, write_json
from ..common.journal import Journal, Result
from ..common.machine import cpu_model, resident, versions
from ..common.style import BLUE, VERMILION

TYPES = (
    *("norm", "layer_wise", "auto", "layer_wise_auto", "linear_rand_auto"),
    *("zscore", "zclip", "adagc", "coord_wise", "adaptive"),
)
SHAPES = ((8, 8), (8,))  # of each group: a layer of a tiny model
BLOCKS = 100
QUICK = {"steps": 20_000}
PARETO_EXPONENT = 1.5  # of the gradient norms: their mean is finite and their variance is not


@dataclass(frozen=True, kw_only=True)
class Config:
    """Number of steps, clipping window, and seed of the random gradient norms."""

    steps: int = 1_000_000
    window: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, {"steps": BLOCKS, "window": 2, "seed": 0})

    def settings(self) -> dict[str, Any]:
        """Return all settings that the numbers depend on, except the machine and package versions."""
        return asdict(self) | {"types": TYPES, "pareto_exponent": PARETO_EXPONENT, "sgd_momentum": 0.9}


class Row(NamedTuple):
    """Measurements of one hundredth of the steps; memory, objects and state are counted after the last of them."""

    block: int
    steps: int  # in this block
    median_seconds: float
    p90_seconds: float
    resident_bytes: float
    objects: int  # tracked by the garbage collector
    state_bytes: int
    clip_rate: float  # over all steps so far, mean over the types


class Training:
    """Tiny model under all ``TYPES``, and gradients of one direction whose norm is drawn anew in each step."""

    def __init__(self, config: Config) -> None:
        generator = torch.Generator().manual_seed(config.seed)
        groups: list[dict[str, Any]] = [
            {"params": [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES], "clipping_type": name}
            for name in TYPES
        ]
        self.parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        self.directions = [torch.randn(p.shape, generator=generator) for p in self.parameters]
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.gradients: list[Tensor] = [p.grad for p in self.parameters if p.grad is not None]
        self.lengths = np.random.default_rng(config.seed)
        self.optimizer = ClippedSGD(groups, lr=1e-9, momentum=0.9, clipping_window=config.window)

    def step(self) -> float:
        """Take one step of the optimizer; return its seconds."""
        torch._foreach_copy_(self.gradients, self.directions)
        torch._foreach_mul_(self.gradients, 1 + self.lengths.pareto(PARETO_EXPONENT))
        start = perf_counter_ns()
        self.optimizer.step()
        return (perf_counter_ns() - start) / 1e9

    def state_bytes(self) -> int:
        """Return the bytes of all tensors in the optimizer's state and parameter groups, weights excluded."""
        entries = [*self.optimizer.state.values(), *self.optimizer.param_groups]
        tensors = [value for entry in entries for value in entry.values() if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def plan(**options: Any) -> Plan:
    """Return the plan of a :class:`Config` with these options."""
    config = Config(**options)
    ends = [config.steps * (block + 1) // BLOCKS for block in range(BLOCKS)]

    def take_all(journal: Journal) -> None:
        training = Training(config)
        for block, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            take = partial(take_block, training, block, end - start)
            journal.done(f"block {block}", end - start, lambda take=take: take()._asdict())  # type: ignore[misc]

    def write(results: Sequence[Result], folder: Path) -> str:
        rows = [Row(**result) for result in results]
        summary = {
            "experiment": "endurance",
            "settings": config.settings(),
            "versions": versions(),
            "machine": {"cpu": cpu_model(), "threads": torch.get_num_threads()},
            "interrupted": len(rows) < BLOCKS,
            "last_to_first": ratios(rows),
        }
        write_csv(results, folder / "endurance.csv", digits=9)
        write_json(summary, folder / "endurance.json")
        plot(folder / "endurance.csv", folder / "endurance.png")
        return "\n".join(
            f"{name}: {'unknown' if value is None else f'{value:.3f}'}" for name, value in summary["last_to_first"].items()
        )

    return Plan(name="endurance", settings=config.settings(), steps=config.steps, train=take_all, write=write, resumes=False)


def take_block(training: Training, block: int, steps: int) -> Row:
    """Take some steps; return their times, and the memory, objects and state after them."""
    seconds = [training.step() for _ in range(steps)]
    median, p90 = (float(np.quantile(seconds, q)) for q in (0.5, 0.9))
    del seconds
    gc.collect()
    clip_rate = float(np.mean([stats["clip_rate"] for stats in training.optimizer.clipping_stats(per_set=True)]))
    return Row(block, steps, median, p90, resident("VmRSS"), len(gc.get_objects()), training.state_bytes(), clip_rate)


def ratios(rows: Sequence[Row]) -> dict[str, float | None]:
    """Return the last block as a multiple of the first, and of the second, which has full windows by default."""
    found: dict[str, float | None] = {}
    for name in ("median_seconds", "p90_seconds", "resident_bytes", "objects", "state_bytes"):
        last = getattr(rows[-1], name)
        for words, place in (("first", 0), ("second", min(1, len(rows) - 1))):
            value = last / getattr(rows[place], name)
            found[f"{name}_last_to_{words}"] = value if math.isfinite(value) else None
    return found


def plot(rows_file: Path, picture: Path) -> None:
    """Draw time, resident memory, objects and state over the steps."""
    rows = [{name: float(value) for name, value in row.items()} for row in read_csv(rows_file)]
    steps = np.cumsum([row["steps"] for row in rows])
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    figure.suptitle(
        f"Cost of an optimizer step with {len(TYPES)} clipping types over {steps[-1]:,.0f} steps (SGD, tiny model, CPU)"
    )
    panels = figure.subplots(2, 2, sharex=True)
    curves = (
        ("median_seconds", 1e6, "median", "time of a step (us)"),
        ("resident_bytes", 1e-6, "", "resident memory (MB)"),
        ("objects", 1.0, "", "objects tracked by the garbage collector"),
        ("state_bytes", 1e-3, "", "state of the optimizer (kB)"),
    )
    for axes, (name, unit, label, words) in zip(panels.flat, curves, strict=True):
        axes.plot(steps, [unit * row[name] for row in rows], color=BLUE, label=label)
        if name == "median_seconds":
            axes.plot(steps, [unit * row["p90_seconds"] for row in rows], "--", color=VERMILION, label="90th percentile")
            axes.legend(frameon=False)
        axes.set(ylabel=words, ylim=(0, 1.25 * max([unit * row[name] for row in rows], default=1.0) or 1.0))
        axes.ticklabel_format(useOffset=False, style="plain")
        axes.grid(alpha=0.3)
    panels[0, 0].set_ylim(0, 1.25 * 1e6 * max(row["p90_seconds"] for row in rows))
    for axes in panels[1]:
        axes.set_xlabel("step")
    figure.savefig(picture, dpi=150)


def main(arguments: Sequence[str]) -> int:
    """Take the steps, write endurance.csv, .json and .png, print the ratios; return 130 after an interruption, else 0."""
    torch.set_num_threads(1)  # the model is too small for a second one to help
    parser = parser_of("endurance", __doc__)
    for name, words in (("steps", "number of steps"), ("window", "clipping_window"), ("seed", "seed of gradients and norms")):
        parser.add_argument(f"--{name}", type=int, help=f"{words} (default: {getattr(Config, name)})")
    return command(parser, plan, QUICK, arguments)
