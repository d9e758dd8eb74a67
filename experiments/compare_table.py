"""The summary of ``compare`` as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .toy_table import aligned


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


def spread(values: dict[str, Any]) -> str:
    """Mean, lowest and highest."""
    if values["mean"] is None:
        return "-"
    return f"{values['mean']:.4f} ({values['lowest']:.4f}, {values['highest']:.4f})"
