"""What was expected of the toy problems and what was measured, as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.tables import aligned


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
