"""The summary of ``compare`` as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..common.tables import aligned


def table(written: dict[str, Any]) -> str:
    """A line for each method, and what is to be known about the learning rates."""
    settings, methods = written["settings"], written["methods"]
    title = f"{settings['task']}, {settings['source']}: {settings['steps']} steps, {len(settings['seeds'])} seeds"
    metric, others = settings["metric"], methods[0]["other_metrics"]
    header = ("", "lr", f"validation {metric}", f"training {metric}", *others, "training loss", "clip rate", "against baseline")
    notes = ["Mean over the seeds (lowest, highest). Against baseline: seeds with a higher, with a lower validation metric."]
    ends = [f"{one['method']} ({one['lr']:g})" for one in methods if one["lr_is_an_end_of_the_grid"]]
    if ends:
        notes.append(f"* The learning rate is an end of its grid, a better one may lie beyond: {', '.join(ends)}.")
    return "\n".join([title, "", *aligned([header, *map(_cells, methods)]), "", *notes])


def _cells(one: dict[str, Any]) -> Sequence[str]:
    diverged = f", {one['diverged']} diverged" if one["diverged"] else ""
    return (
        one["method"],
        f"{one['lr']:g}{'*' if one['lr_is_an_end_of_the_grid'] else ''}",
        spread(one["validation"]) + diverged,
        spread(one["train"]),
        *map(spread, one["other_metrics"].values()),
        spread(one["training_loss"]),
        "-" if one["clip_rate"] is None else f"{one['clip_rate']:.1%}",
        "-" if one["baseline"] is None else f"{one['seeds_above_baseline']} up, {one['seeds_below_baseline']} down",
    )


def spread(values: dict[str, Any], digits: int = 4) -> str:
    """Mean, lowest and highest."""
    if values["mean"] is None:
        return "-"
    return "{:.{d}f} ({:.{d}f}, {:.{d}f})".format(*(values[name] for name in ("mean", "lowest", "highest")), d=digits)


def readme_table(summaries: Sequence[dict[str, Any]]) -> str:
    """A row for each task, in Markdown: the baselines, and the clipping types of SGD together."""
    head = (
        "task, metric",
        "SGD",
        "ClippedSGD, lowest to highest mean",
        "above, below SGD with all seeds",
        "Adam",
        "ClippedAdam `norm`",
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *map(_readme_row, summaries)))


def _readme_row(summary: dict[str, Any]) -> Sequence[str]:
    by_name = {one["method"]: one for one in summary["methods"]}
    clipped = [one for one in summary["methods"] if one["baseline"] == "SGD"]
    known = [one for one in clipped if one["validation"]["mean"] is not None]  # with no seed did it diverge
    means = [(one["validation"]["mean"], one["method"].removeprefix("ClippedSGD ")) for one in known]
    seeds = len(summary["settings"]["seeds"])
    counts = [sum(one[f"seeds_{side}_baseline"] == seeds for one in clipped) for side in ("above", "below")]
    baseline, adam, clipped_adam = (spread(by_name[name]["validation"], 3) for name in ("SGD", "Adam", "ClippedAdam norm"))
    (low, lowest), (high, highest) = min(means), max(means)
    return (
        f"{summary['settings']['task']}, {summary['settings']['metric']}",
        baseline,
        f"{low:.3f} (`{lowest}`) to {high:.3f} (`{highest}`)",
        f"{counts[0]}, {counts[1]} of {len(clipped)}",
        adam,
        clipped_adam,
    )
