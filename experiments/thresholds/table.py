"""Format the summary of ``thresholds`` as text: a line for every level, and the claims."""

from __future__ import annotations

from typing import Any

from ..common.tables import aligned

Summary = dict[str, Any]
HEADER = ("level", "best lr", "its loss", "usable around it", "usable of all", "normalized cells")
NAMES = {"clipped": "clipping of less than 99 % of the steps", "normalized": "normalized steps"}


def table(summary: Summary) -> str:
    """Return a table and the claims of each problem."""
    return "\n\n".join(_of_problem(problem) for problem in summary["problems"])


def _of_problem(problem: Summary) -> str:
    rows = [
        (
            f"{row['level']}",
            "-" if row["best_lr"] is None else f"{row['best_lr']:g}{' (end)' if row['best_at_an_end'] else ''}",
            number(row["best_loss"]),
            range_words(row["usable_of_row"]),
            range_words(row["usable_of_all"]),
            "-" if row["level"] == "none" else f"{row['normalized_cells']} of {row['cells']}",
        )
        for row in problem["rows"]
    ]
    title = (
        f"{problem['data']}: {problem['steps']} steps of SGD, {problem['loss_name']}\n"
        f"usable: median loss at most {problem['bar']:g} times the best of the row, or of all ({number(problem['usable_up_to'])})"
    )
    return "\n".join([title, "", *aligned([HEADER, *rows]), "", *claims(problem)])


def number(value: float | None) -> str:
    """Return four digits, or a dash for an unknown number."""
    return "-" if value is None else f"{value:.4g}"


def range_words(usable: Summary | None) -> str:
    """Return a range of learning rates as a factor and its ends."""
    if usable is None:
        return "none"
    at_least = "at least " if usable["reaches_an_end"] else ""
    return f"{at_least}{usable['factor']:g}x ({usable['lowest']:g} to {usable['highest']:g})"


def claims(problem: Summary) -> list[str]:
    """Return sentences: what was shown and what was not, the usable learning rates, and the baseline."""
    shown = [one for one in problem["comparisons"] if one["words"] in ("better", "worse")]
    open_ones = [one for one in problem["comparisons"] if one not in shown]
    occasional, normalized = problem["comparisons"]
    others = "anything about other schedules, more steps or larger models"
    return [
        f"Shown: {'; '.join(map(_of_comparison, shown)) or 'nothing'}.",
        f"Not shown: {'; '.join([*map(_of_comparison, open_ones), others])}.",
        f"Usable of all: {_of_ranges(problem)}.",
        f"Baseline: the same SGD unclipped at the best of {occasional['unclipped_candidates']} learning rates, seed by seed. "
        f"Clipping chose among more: {occasional['candidates']} cells clipped at times, {normalized['candidates']} normalized. "
        f"All were chosen on {len(occasional['chosen_on'])} seeds and are reported on {len(occasional['reported_on'])} others.",
    ]


def _of_comparison(one: Summary) -> str:
    if one["difference"] is None:
        return f"{NAMES[one['kind']]}, not known: too few seeds, no such cell, or a loss that is not finite"
    where = f"lr {one['lr']:g}, level {one['level']:g}, {number(one['loss'])}"
    against = f"against lr {one['unclipped_lr']:g}, {number(one['unclipped_loss'])}"
    interval = f"difference {one['difference']:+.2g}, 95 % interval {one['low']:+.2g} to {one['high']:+.2g}"
    return f"{NAMES[one['kind']]}, {one['words']}: {where}, {against}; {interval}"


def _of_ranges(problem: Summary) -> str:
    """Return the usable range unclipped and the widest with clipping, and with how many seeds the latter is wider."""
    rows = {row["level"]: row for row in problem["rows"]}
    plain = rows.pop("none", None)
    if plain is None or not any(row["usable_of_all"] for row in rows.values()):
        return "not known, or none with clipping"
    widest = max((row for row in rows.values() if row["usable_of_all"]), key=lambda row: row["usable_of_all"]["factor"])
    wider = [one > other for one, other in zip(widest["factors_by_seed"], plain["factors_by_seed"], strict=True)]
    return (
        f"{range_words(plain['usable_of_all'])} unclipped, {range_words(widest['usable_of_all'])} at level {widest['level']:g}, "
        f"the widest (chosen on the same seeds); there wider than unclipped with {sum(wider)} of {len(wider)} seeds"
    )
