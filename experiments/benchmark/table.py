"""Format the rows of ``benchmark`` as the table of docs/speed.md, and compare them with the targets."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch_clipped.clipping import CLIPPING_TYPES

from .contenders import FLOOR
from .rows import Row, find

BEGIN, END = "<!-- table of the benchmark -->", "<!-- end of the table of the benchmark -->"
COLUMNS = (("resnet18", "sgd"), ("resnet18", "adamw"), ("gpt2", "sgd"), ("gpt2", "adamw"))
NAMES = {"tiny": "tiny", "policy": "policy", "many": "many", "resnet18": "ResNet-18", "gpt2": "GPT-2", "1b": "1B"}
OPTIMIZER_NAMES = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
FOOTNOTE = (
    "float32. In bfloat16 on the CPU the rows of SGD compare unlike things: torch's fused SGD leaves most entries of the\n"
    "weights as they are there, so torch_clipped takes torch's default implementation."
)


class Target(NamedTuple):
    """Target for speed or memory: ``reached`` should be at most ``bound``."""

    target: str
    size: str
    dtype: str
    optimizer: str
    contender: str
    clipped: str
    bound: float
    reached: float

    @property
    def met(self) -> bool:
        return self.reached <= self.bound


def guide_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of ratios to torch's fused step: "step not clipped / step clipped", between markers."""
    columns = [(size, optimizer) for size, dtype, optimizer in shown(rows) if dtype == "float32"]
    head = ["", *(f"{NAMES[size]}, {OPTIMIZER_NAMES[optimizer]}" for size, optimizer in columns)]
    lines = [_line(head), "|---" * len(head) + "|"]
    for name in dict.fromkeys(row.contender for row in rows if row.dtype == "float32" and row.contender != FLOOR):
        cells = [_cell(rows, size, optimizer, name) for size, optimizer in columns]
        lines.append(_line([f"`{name}`" if name in CLIPPING_TYPES else name, *cells]))
    return "\n".join([BEGIN, *lines, "", FOOTNOTE, END])


def shown(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Return the sizes, dtypes and optimizers to show: two models in float32, or the first four of a smaller run."""
    places = list(dict.fromkeys((row.size, row.dtype, row.optimizer) for row in rows))
    wanted = [(size, "float32", optimizer) for size, optimizer in COLUMNS]
    return [place for place in wanted if place in places] or places[:4]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(rows: Sequence[Row], size: str, optimizer: str, contender: str) -> str:
    wanted = {"size": size, "optimizer": optimizer, "contender": contender, "dtype": "float32"}
    found = [find(rows, **wanted, clipped=clipped) for clipped in ("no", "yes")]
    if found == [None, None]:
        found = [find(rows, **wanted, clipped="-")]
    if found == [None]:
        return "-"
    if found[0] is None:
        return f"- / {found[1].ratio_to_floor:.2f}" if found[1] else "-"
    return " / ".join(f"{row.ratio_to_floor:.2f}" for row in found if row)


def targets(rows: Sequence[Row]) -> list[Target]:
    """Return every target that these rows cover, with the value reached."""
    by_place: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        by_place.setdefault((row.size, row.dtype, row.optimizer), []).append(row)
    return [target for place in by_place.values() for target in _targets_of(place) if not math.isnan(target.reached)]


# Bounds for types that measure the whole gradient, tensors or entries, and units
AGAINST_NORM_FUSED = {"tiny": (0.6, 0.9, 1.2), "policy": (0.6, 0.9, 1.2), "many": (0.75, 0.9, 1.3)}
AGAINST_FLOOR = {"sgd": {"no": (1.40, 1.70, 2.0), "yes": (1.60, 1.70, 2.0)}}  # clipped or not
OTHERS_AGAINST_FLOOR = {"no": (1.30, 1.70, 2.0), "yes": (1.45, 1.70, 2.0)}  # Adam and AdamW
KINDS = {"global": 0, "layer": 1, "coordinate": 1, "unit": 2}


def _targets_of(rows: Sequence[Row]) -> Iterator[Target]:
    """Yield the targets of one size, dtype and optimizer."""
    size, _, optimizer = rows[0][:3]
    for row in rows:
        rule = CLIPPING_TYPES.get(row.contender)
        if rule is None or row.clipped not in ("yes", "no") or row.note:
            continue
        kind = KINDS[rule.measure]
        if size in AGAINST_NORM_FUSED:
            words = f"{size}: time against clip_grad_norm_ + torch fused"
            yield _target(words, row, AGAINST_NORM_FUSED[size][kind], row.ratio_to_norm_fused)
        if size not in ("resnet18", "gpt2"):
            continue
        bounds = AGAINST_FLOOR.get(optimizer, OTHERS_AGAINST_FLOOR)[row.clipped]
        yield _target("time against torch fused without clipping", row, bounds[kind], row.ratio_to_floor)
        if kind == 0:
            yield _target("time against clip_grad_norm_ + torch fused", row, 0.85, row.ratio_to_norm_fused)
        if row.contender == "norm" and optimizer == "adamw":
            yield _target("norm: time against clip_grad_norm_ + torch default", row, 0.35, row.ratio_to_norm_default)
        yield _target("memory of a step, in copies of the gradients", row, 0.5, row.peak_mb / row.gradient_mb)


def _target(words: str, row: Row, bound: float, reached: float) -> Target:
    return Target(words, row.size, row.dtype, row.optimizer, row.contender, row.clipped, bound, reached)


def write_targets(found: Sequence[Target], path: Path) -> None:
    """Write a csv file with a line for every target, and whether it is met."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*Target._fields, "met"))
        for target in found:
            writer.writerow((*target[:-1], f"{target.reached:.4g}", "yes" if target.met else "no"))


def targets_table(found: Sequence[Target]) -> str:
    """Return how many targets of each kind, dtype and optimizer are met, and the worst of each; the file has all."""
    lines = []
    for kind in dict.fromkeys((target.target, target.dtype, target.optimizer) for target in found):
        alike = [target for target in found if (target.target, target.dtype, target.optimizer) == kind]
        met, worst = sum(target.met for target in alike), max(alike, key=lambda target: target.reached / target.bound)
        verdict = "met" if met == len(alike) else "not met"
        lines.append(f"{verdict}: {kind[1]} {kind[2]}, {kind[0]}: {met} of {len(alike)}, worst {_described(worst)}")
    return "\n".join(lines)


def _described(target: Target) -> str:
    clipped = "clipped" if target.clipped == "yes" else "not clipped"
    return f"{target.reached:.3g} of at most {target.bound:g} ({target.size} {target.contender}, {clipped})"
