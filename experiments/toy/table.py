"""Compare expected and measured numbers of the toy problems, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.tables import aligned

PICTURE, THEORY, ORDER = "read off the picture", "theory", "order only"  # sources of the ranges


@dataclass(frozen=True)
class Expectation:
    """Expected range of a number; ``setting`` and ``method`` name the runs, ``source`` the source of the range."""

    setting: str
    method: str
    quantity: str
    low: float
    high: float
    source: str = PICTURE

    def against(self, values: Sequence[float]) -> dict[str, Any]:
        """Return the median over the runs, their 10 % and 90 % quantiles, and the share of the runs in the range."""
        low, median, high = np.quantile(values, [0.1, 0.5, 0.9], method="nearest")
        return {
            "setting": self.setting,
            "method": self.method,
            "quantity": self.quantity,
            "expected_low": self.low,
            "expected_high": self.high,
            "source": self.source,
            "p10": float(low),
            "median": float(median),
            "p90": float(high),
            "share_inside": float(np.mean([self.low <= value <= self.high for value in values])),
            "runs": len(values),
        }


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of :meth:`Expectation.against` as text."""
    header = ("", "", "", "expected", "", "median (10 %, 90 % of the runs)", "runs inside")
    cells = [
        (
            row["setting"],
            row["method"],
            row["quantity"],
            f"{row['expected_low']:.3g} to {row['expected_high']:.3g}",
            row["source"],
            f"{row['median']:.3g} ({row['p10']:.3g}, {row['p90']:.3g})",
            f"{row['share_inside']:.0%} of {row['runs']}",
        )
        for row in rows
    ]
    return "\n".join([title, "", *aligned([header, *cells])])


def guide_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of :meth:`Expectation.against` in Markdown."""
    lines = ["| setting | method | quantity | expected | median | runs inside |", "|---|---|---|---|---|---|"]
    for row in rows:
        expected = f"{row['expected_low']:.3g} to {row['expected_high']:.3g} ({row['source']})"
        inside = f"{row['share_inside']:.0%} of {row['runs']}"
        cells = (row["setting"], row["method"], row["quantity"], expected, f"{row['median']:.3g}", inside)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
