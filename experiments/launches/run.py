"""Count the torch operations and the function calls of a step.

``python -m experiments launches`` counts, for every clipping type, the operations that a step on an accelerator dispatches. The
host launches each of them, which takes some microseconds, however small the operation is. They are counted on the CPU, with the
arithmetic for accelerators and by the rules of CUDA: an operation on lists without a kernel counts once for each tensor. The
calls of functions of this package are those of a step on the CPU. Nothing is timed, so the numbers are the same on every
machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import SGD, AdamW

from torch_clipped import ClippedAdamW, ClippedSGD, mixin
from torch_clipped._engine.current_sets import CurrentSets
from torch_clipped.clipping import CLIPPING_TYPES

from ..common.command import Plan, command, parser_of
from ..common.files import write_csv, write_json
from ..common.journal import Journal, Result
from ..common.machine import versions
from ..common.tables import aligned
from .counting import CountedOperations, called_modules

OPTIMIZERS: dict[str, tuple[Any, Any, dict[str, float]]] = {
    "SGD": (SGD, ClippedSGD, {"lr": 1e-3, "momentum": 0.9}),
    "AdamW": (AdamW, ClippedAdamW, {"lr": 1e-3}),
}
TORCHS_WAY = {"clip_grad_norm_": clip_grad_norm_, "clip_grad_value_": clip_grad_value_}
SHAPE = (16, 16)  # of each tensor
QUICK = {"tensors": (10,)}
WARM_UP = 3  # steps before the counted one


@dataclass(frozen=True, kw_only=True)
class Config:
    """Tensor counts of the models."""

    tensors: tuple[int, ...] = (10, 148, 1000)

    def __post_init__(self) -> None:
        if min(self.tensors) < 1:
            raise ValueError(f"tensors must be integers >= 1, got {min(self.tensors)}")

    def settings(self) -> dict[str, Any]:
        """Return all settings that the numbers depend on, except package versions."""
        optimizers = {name: options for name, (_, _, options) in OPTIMIZERS.items()}
        return asdict(self) | {"shape": SHAPE, "warm_up": WARM_UP, "optimizers": optimizers}


class Row(NamedTuple):
    """Counts of one step."""

    optimizer: str
    clipping_type: str  # or torch's function
    tensors: int
    small_operations: int  # that launch a kernel, with those on lists that CUDA takes tensor by tensor
    foreach_kernels: int  # fused updates, and operations of one kernel for all tensors
    python_calls: int  # of functions of this package, comprehensions not counted, in a step on the CPU
    module_changes: int  # among these calls


def plan(tensors: Sequence[int] = Config.tensors) -> Plan:
    """Return the plan that counts a step of every type, with both optimizers and all numbers of tensors."""
    config = Config(tensors=tuple(tensors))
    types = [*TORCHS_WAY, *(name for name in CLIPPING_TYPES if name != "none")]
    places = [(optimizer, name, number) for optimizer in OPTIMIZERS for number in config.tensors for name in types]

    def count_all(journal: Journal) -> None:
        for optimizer, name, number in places:
            journal.done(f"{optimizer} {name} {number}", 1, partial(_counted, optimizer, name, number))

    def write(results: Sequence[Result], folder: Path) -> str:
        summary = {"experiment": "launches", "settings": config.settings(), "versions": versions()}
        write_csv(results, folder / "launches.csv")
        write_json(summary, folder / "launches.json")
        return table([Row(**result) for result in results])

    settings = config.settings()
    return Plan(name="launches", settings=settings, steps=len(places), train=count_all, write=write, writes_parts=False)


def _counted(optimizer: str, clipping_type: str, tensors: int) -> Result:
    return count(optimizer, clipping_type, tensors)._asdict()


def count(optimizer: str, clipping_type: str, tensors: int, **arguments: Any) -> Row:
    """Count a step of one clipping type, or of one of torch's functions before a fused step."""
    with _accelerated():
        step = _prepared(optimizer, clipping_type, tensors, arguments)
        with CountedOperations() as counted:
            step()
    calls = called_modules(_prepared(optimizer, clipping_type, tensors, arguments))
    changes = sum(one != other for one, other in pairwise(calls))
    return Row(optimizer, clipping_type, tensors, counted.small, counted.foreach, len(calls), changes)


@contextmanager
def _accelerated() -> Iterator[None]:
    """Give optimizers that are made inside this context the arithmetic for accelerators."""
    with patch.object(mixin, "CurrentSets", partial(CurrentSets, is_accelerated=True)):
        yield


def _prepared(optimizer: str, clipping_type: str, tensors: int, arguments: dict[str, Any]) -> Callable[[], Any]:
    """Return a step with gradients, after some warm-up steps."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(SHAPE, generator=generator)) for _ in range(tensors)]
    plain, clipped, options = OPTIMIZERS[optimizer]
    if clipping_type in TORCHS_WAY:
        made, clip = plain(params, **options, fused=True), partial(TORCHS_WAY[clipping_type], params, 1.0)
    else:
        made, clip = clipped(params, **options, clipping_type=clipping_type, **arguments), lambda: None

    def step() -> None:
        clip()
        made.step()

    for number in range(WARM_UP + 1):
        for p in params:
            p.grad = torch.randn(SHAPE, generator=generator)
        if number < WARM_UP:
            step()
    return step


def aim(clipping_type: str, tensors: int) -> int | None:
    """Return the target for the small operations of a type; None if there is none."""
    if clipping_type in TORCHS_WAY:
        return None
    rule = CLIPPING_TYPES[clipping_type]
    assert rule is not None
    if rule.measure == "global":
        return 25 if clipping_type == "norm" else 60 if "rand" in clipping_type else 45
    return {"layer": 60 + tensors, "coordinate": 40 + tensors, "unit": 60 + 3 * tensors}[rule.measure]


def misses(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that launch more small operations than their target."""
    aims = [aim(row.clipping_type, row.tensors) for row in rows]
    return [row for row, most in zip(rows, aims, strict=True) if most is not None and row.small_operations > most]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text, with the targets beside the counts."""
    header = ("optimizer", "clipping_type", "tensors", "small", "target", "foreach", "calls", "changes")
    cells = [(*map(str, row[:4]), str(aim(row.clipping_type, row.tensors) or "-"), *map(str, row[4:])) for row in rows]
    return "\n".join(aligned([header, *cells]))


def guide_table(rows: Sequence[Row]) -> str:
    """Return the table of docs/speed.md: SGD, small operations by the number of tensors, and Python calls."""
    chosen = [row for row in rows if row.optimizer == "SGD"]
    counts = sorted({row.tensors for row in chosen})
    header = ["SGD with momentum", *(f"{n} tensors" for n in counts), "Python calls"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for name in dict.fromkeys(row.clipping_type for row in chosen):
        own = {row.tensors: row for row in chosen if row.clipping_type == name}
        cells = [str(own[n].small_operations) for n in counts]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {own[counts[0]].python_calls or '-'} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Count, write launches.csv and launches.json, print the table; return 130 after an interruption, else 0."""
    parser = parser_of("launches", __doc__)
    parser.add_argument("--tensors", type=int, nargs="+", help="numbers of tensors (default: 10 148 1000)")
    return command(parser, plan, QUICK, arguments)
