"""Format the summary of ``compare`` as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..common.tables import aligned
from .summary import best_clipped

CHANCE = 0.05  # of an interval that excludes 0 although there is no difference


def table(written: dict[str, Any]) -> str:
    """Return a line for each method, the best first, and the claims."""
    settings, methods = written["settings"], written["methods"]
    title = f"{settings['task']}, {settings['source']}: {settings['steps']} steps, {len(settings['seeds'])} seeds"
    header = ("", "lr", "level", f"test {settings['metric']}", "training loss", "clip rate", "usable lr", "against its baseline")
    ordered = sorted(methods, key=lambda one: one["test"]["mean"] if one["test"]["mean"] is not None else -1e9, reverse=True)
    trivial = (written["trivial"]["method"], "-", "-", f"{written['trivial']['test']:.4f}", "-", "-", "-", "-")
    notes = [
        "Test: mean over the seeds (lowest, highest). Usable lr: ratio of the largest to the smallest learning rate that costs",
        "at most a tenth of the gain of the best one over the trivial method (* up to an end of the grid, possibly further).",
        "Against its baseline: mean difference of the test metric from the same optimizer without clipping, with the 95 %",
        "interval over the seeds, which does not include the chance in the choice of learning rate and level.",
    ]
    ends = [f"{one['method']} ({one['lr']:g})" for one in methods if one["lr_is_an_end_of_the_grid"]]
    if ends:
        notes.append(f"The learning rate is an end of its grid; a better one may lie beyond: {', '.join(ends)}.")
    return "\n".join([title, "", *aligned([header, *map(_cells, ordered), trivial]), "", *notes, "", *claims(written)])


def claims(written: dict[str, Any]) -> list[str]:
    """Return sentences: what was shown, what was not, and the expected number of chance results."""
    compared = [one for one in written["methods"] if one["difference"] is not None]
    sentences = {
        "better": "Better than without clipping",
        "worse": "Worse than without clipping",
        "diverged": "Diverged with more seeds than without clipping",
        "too few pairs": "Not compared, because fewer than two seeds are left",
    }
    by_words = {words: [one["method"] for one in compared if one["difference"]["words"] == words] for words in sentences}
    rest = len(compared) - sum(map(len, by_words.values()))
    return [
        *(f"{sentences[words]}: {', '.join(names)}." for words, names in by_words.items() if names),
        f"No difference shown for {rest} of {len(compared)} clipped methods; by chance alone, {CHANCE * len(compared):.1f} of "
        f"{len(compared)} intervals would exclude 0.",
    ]


def _cells(one: dict[str, Any]) -> Sequence[str]:
    usable, apart = one["usable_learning_rates"], one["difference"]
    diverged = f", {one['diverged']} diverged" if one["diverged"] else ""
    return (
        one["method"],
        f"{one['lr']:g}",
        "-" if one["level"] is None else f"{one['level']:g}",
        spread(one["test"]) + diverged,
        spread(one["training_loss"]),
        "-" if one["clip_rate"] is None else f"{one['clip_rate']:.1%}",
        f"x {usable['highest'] / usable['lowest']:g}{'*' * usable['reaches_an_end']}",
        "-" if apart is None else _difference(apart),
    )


def _difference(apart: dict[str, Any]) -> str:
    if apart["mean"] is None:
        return apart["words"]
    return f"{apart['mean']:+.4f} ({apart['low']:+.4f}, {apart['high']:+.4f}), {apart['words']}"


def spread(values: dict[str, Any], digits: int = 4) -> str:
    """Return mean, lowest and highest."""
    if values["mean"] is None:
        return "-"
    return "{:.{d}f} ({:.{d}f}, {:.{d}f})".format(*(values[name] for name in ("mean", "lowest", "highest")), d=digits)


def guide_table(summaries: Sequence[dict[str, Any]]) -> str:
    """Return a row for each task, in Markdown: the trivial method, and both optimizers without and with the best clipping."""
    head = (
        "task, test metric",
        "trivial method",
        "SGD",
        "best with clipping",
        "Adam",
        "best with clipping",
        "better, worse, no difference shown",
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *map(_guide_row, summaries)))


def _guide_row(summary: dict[str, Any]) -> Sequence[str]:
    by_name = {one["method"]: one for one in summary["methods"]}
    cells = []
    for baseline in ("SGD", "Adam"):
        best = best_clipped(summary["methods"], baseline)
        cells += [
            spread(by_name[baseline]["test"], 3),
            "-" if best is None else f"`{best['method'].split()[1]}` {spread(best['test'], 3)}",
        ]
    said = [one["difference"]["words"] for one in summary["methods"] if one["difference"] is not None]
    counts = ", ".join(str(said.count(words)) for words in ("better", "worse", "no difference shown"))
    settings, trivial = summary["settings"], summary["trivial"]
    return (
        f"{settings['task']}, {settings['metric']}",
        f"{trivial['method']} {trivial['test']:.3f}",
        *cells,
        f"{counts} of {len(said)}",
    )
