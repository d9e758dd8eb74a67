"""Compare the final losses of the contenders of ``restarts`` over the seeds, as numbers and as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..common.tables import aligned

LAST = ("training_loss", "validation_loss")  # of the last iterate
MEAN = ("mean_training_loss", "mean_validation_loss")  # of the mean of the iterates of the last quarter
HEADER = (
    "",
    "lr",
    "restarts",
    "training loss",
    "validation loss",
    "training, mean",
    "validation, mean",
    "lr is an end of its grid",
)
NOTE = "Median over the seeds (lowest, highest); mean: of the iterates of the last quarter, from which no training continues."
End = dict[str, Any]


def summarize(ends: Sequence[End]) -> list[dict[str, Any]]:
    """Return the losses of each contender over the seeds, and seed by seed against the first one, which has no restarts."""
    by_contender = {
        name: [end for end in ends if end["contender"] == name] for name in dict.fromkeys(e["contender"] for e in ends)
    }
    plain = next(iter(by_contender.values()))
    return [
        {"contender": name, "lr": mine[0]["lr"], "seeds": len(mine), "restarts": mine[0]["restarts"]}
        | {loss: _spread([end[loss] for end in mine]) for loss in LAST + MEAN}
        | {f"{loss}_against_no_restart": _duel(mine, loss, plain, last) for loss, last in zip(LAST + MEAN, LAST * 2, strict=True)}
        | {f"{loss}_against_mean_of_no_restart": _duel(mine, loss, plain, mean) for loss, mean in zip(LAST, MEAN, strict=True)}
        for name, mine in by_contender.items()
    ]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "lowest": min(values), "highest": max(values)}


def _duel(mine: Sequence[End], loss: str, others: Sequence[End], other_loss: str) -> dict[str, Any]:
    """Return the number of seeds with a lower loss of ``mine``, and the median of the ratios."""
    theirs = {end["seed"]: end[other_loss] for end in others}
    pairs = [(end[loss], theirs[end["seed"]]) for end in mine]
    return {"lower": sum(a < b for a, b in pairs), "ratio": float(np.median([a / b for a, b in pairs]))}


def sentences(summary: Sequence[dict[str, Any]], grid: Sequence[dict[str, Any]]) -> list[str]:
    """Return sentences on each contender, on those that beat no restart, and on each learning rate."""
    plain, *restarted = summary
    words = [_sentence("no restart, mean of the last quarter in place of the last iterate", plain, MEAN, "no_restart")]
    words += [_sentence(one["contender"], one, LAST, "no_restart") for one in restarted]
    words.append(_verdict("Lower than no restart", restarted, "no_restart"))
    words.append(_verdict("Lower than the mean of the last quarter of no restart", restarted, "mean_of_no_restart"))
    return words + [_at_lr(grid, lr) for lr in dict.fromkeys(row["lr"] for row in grid)]


def _at_lr(grid: Sequence[dict[str, Any]], lr: float) -> str:
    """Return which restarts have a lower training loss than no restart at this learning rate, with the tuning seed."""
    plain, *restarted = [row for row in grid if row["lr"] == lr]
    better = [
        f"{row['contender']} ({row['training_loss']:.4g})" for row in restarted if row["training_loss"] < plain["training_loss"]
    ]
    words = f"With the one seed of the grid, all at lr {lr:g}: lower training loss than no restart ({plain['training_loss']:.4g})"
    return f"{words}: {'; '.join(better) or 'none of the restarts'}"


def _sentence(name: str, one: dict[str, Any], losses: Sequence[str], other: str) -> str:
    training, validation = (one[f"{loss}_against_{other}"] for loss in losses)
    return (
        f"{name}: lower than no restart in {training['lower']} of {one['seeds']} seeds by training loss "
        f"(median ratio {training['ratio']:.3f}), in {validation['lower']} by validation loss ({validation['ratio']:.3f})"
    )


def _verdict(words: str, restarted: Sequence[dict[str, Any]], other: str) -> str:
    better = [one["contender"] for one in restarted if all(2 * one[f"{x}_against_{other}"]["lower"] > one["seeds"] for x in LAST)]
    return f"{words} in most seeds, by both losses: {'; '.join(better) or 'none of the restarts'}"


def table(result: dict[str, Any]) -> str:
    """Return a line for each contender, and the sentences."""
    config, seeds = result["config"], result["contenders"][0]["seeds"]  # after an interruption fewer than in the config
    title = f"{result['problem']} ({config['data']}): {config['steps']} steps, {seeds} seeds, {config['loss']}"
    lines = aligned([HEADER, *(_cells(one, config["lrs"]) for one in result["contenders"])])
    return "\n".join([title, "", *lines, "", NOTE, "", *(f"- {words}" for words in result["sentences"])])


def _cells(one: dict[str, Any], lrs: Sequence[float]) -> tuple[str, ...]:
    losses = [one[loss] for loss in LAST + MEAN]
    spreads = [f"{x['median']:.4g} ({x['lowest']:.4g}, {x['highest']:.4g})" for x in losses]
    return (
        one["contender"],
        f"{one['lr']:g}",
        str(len(one["restarts"])),
        *spreads,
        "yes" if one["lr"] in (min(lrs), max(lrs)) else "no",
    )
