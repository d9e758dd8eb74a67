"""What was expected of the toy problems and what was measured, as lines of text and as files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Expectation:
    """A range in which a number was expected; ``setting`` and ``method`` say of which runs."""

    setting: str
    method: str
    quantity: str
    low: float
    high: float

    def against(self, values: Sequence[float]) -> dict[str, Any]:
        """The median over the runs, whether it is in the range, and how many runs are."""
        median = float(np.median(values))
        return {
            "setting": self.setting,
            "method": self.method,
            "quantity": self.quantity,
            "expected_low": self.low,
            "expected_high": self.high,
            "measured": median,
            "lowest": float(min(values)),
            "highest": float(max(values)),
            "inside": self.low <= median <= self.high,
            "runs_inside": sum(bool(self.low <= value <= self.high) for value in values),
            "runs": len(values),
        }


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of :meth:`Expectation.against` as text."""
    header = ("", "", "", "expected", "measured (runs from, to)", "inside", "runs inside")
    cells = [
        (
            row["setting"],
            row["method"],
            row["quantity"],
            f"{row['expected_low']:.3g} to {row['expected_high']:.3g}",
            f"{row['measured']:.3g} ({row['lowest']:.3g}, {row['highest']:.3g})",
            "yes" if row["inside"] else "NO",
            f"{row['runs_inside']} of {row['runs']}",
        )
        for row in rows
    ]
    return "\n".join([title, "", *aligned([header, *cells])])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The cells in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path, digits: int = 6) -> None:
    """The rows with a header; floats keep so many digits: six are more than the noise leaves of most."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.{digits}g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows, all as text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_json(content: Any, path: Path) -> None:
    """Readable; numbers that are not finite become null."""
    path.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
