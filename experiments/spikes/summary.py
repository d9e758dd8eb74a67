"""Summarize ``spikes``: the loss at the end, the time to recover, and a spike score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..common.tables import aligned

SMOOTHING = 10  # losses in the means before and after a corrupted batch
DEVIATIONS = 7.0
SCORE_WINDOW = 128
Summary = dict[str, Any]


def spike_score(losses: ArrayLike, window: int = SCORE_WINDOW, deviations: float = DEVIATIONS) -> float | None:
    r"""Return the share of losses that lie far above or below the ones before them.

        score = #{t >= window : |loss_t - mean_t| > deviations * std_t} / #{t >= window}

    where mean_t and std_t are those of the ``window`` losses before step t.

    Args:
        losses: losses of all steps, shape (steps,).
        window: number of losses before a step that it is compared with. Walsh et al. take 1000; trainings of a few hundred
            steps need a shorter window, and Karpathy's outlier detector uses 128.
        deviations: number of standard deviations that count as far.

    Returns:
        A share from 0 to 1; None if there are at most ``window`` losses. Losses that are not finite count as far.

    Example:
        >>> spike_score([1.0, 1.1, 0.9, 1.0, 9.0, 1.0], window=4)
        0.5

    References:
        P. Walsh et al., 2 OLMo 2 Furious, 2025, https://arxiv.org/abs/2501.00656 (the score);
        A. Karpathy, llm.c, 2024, https://github.com/karpathy/llm.c (llmc/outlier_detector.h: the window).
    """
    values = np.asarray(losses, dtype=float)
    if len(values) <= window:
        return None
    before = np.lib.stride_tricks.sliding_window_view(values, window)[:-1]
    inside = np.abs(values[window:] - before.mean(axis=1)) <= deviations * before.std(axis=1)  # constant losses: 0 <= 0
    return float(np.mean(~inside))


def recovery(losses: Sequence[float], corrupted: int, end: int) -> int | None:
    """Return the number of steps after a corrupted batch until the smoothed loss is back at its value before it.

    Args:
        losses: losses of all steps, each measured before its step.
        corrupted: step whose batch was corrupted; the next loss is the first one that it can change.
        end: step of the next corrupted batch; later losses are ignored.

    Returns:
        The smallest n >= 1 such that the mean of the losses of steps corrupted + n, ..., corrupted + n + SMOOTHING - 1 is no
        higher than that of the SMOOTHING losses up to and with step ``corrupted``; None if there is none before ``end``.
    """
    if corrupted >= len(losses):  # the training ended before this step
        return None
    level = np.mean(losses[corrupted + 1 - SMOOTHING : corrupted + 1])
    for first in range(corrupted + 1, min(end + 1, len(losses)) - SMOOTHING + 1):
        if np.mean(losses[first : first + SMOOTHING]) <= level:
            return first - corrupted
    return None


def summarize(results: Sequence[dict[str, Any]], corrupted: Sequence[int]) -> Summary:
    """Return the numbers of each training, and of each contender over its seeds."""
    trainings = [_of_training(result, corrupted) for result in results]
    contenders = []
    for kind, name in dict.fromkeys((one["batches"], one["contender"]) for one in trainings):
        mine = [one for one in trainings if (one["batches"], one["contender"]) == (kind, name)]
        times = [steps for one in mine for steps in one["recovery_steps"]]
        contenders.append(
            {"batches": kind, "contender": name, "seeds": len(mine)}
            | {key: _median([one[key] for one in mine]) for key in ("final_loss", "spike_score", "median_norm", "corrupted_norm")}
            | {"recovery_steps": _median(times), "not_recovered": sum(t is None for t in times), "corrupted_batches": len(times)}
        )
    return {"contenders": contenders, "trainings": trainings}


def _of_training(result: dict[str, Any], corrupted: Sequence[int]) -> dict[str, Any]:
    losses, norms = result["losses"], np.array(result["norms"])
    hit = [step for step in corrupted if step < len(norms)]
    steps = len(losses)
    return {
        "batches": result["kind"],
        "contender": result["contender"],
        "seed": result["seed"],
        "final_loss": _finite(float(np.mean(losses[-max(1, steps // 10) :]))),
        "spike_score": spike_score(losses),
        "recovery_steps": [recovery(losses, step, end) for step, end in zip(corrupted, [*corrupted[1:], steps], strict=True)],
        "median_norm": _finite(float(np.median(norms[np.isfinite(norms)]))) if np.isfinite(norms).any() else None,
        "corrupted_norm": _finite(float(np.median(norms[hit]))) if hit else None,
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _median(values: Sequence[float | None]) -> float | None:
    """Return the median; None counts as larger than all values. Without values, return None."""
    median = float(np.median([np.inf if value is None else value for value in values])) if values else np.inf
    return median if np.isfinite(median) else None


HEADER = ("corrupted batches", "contender", "final loss", "recovery", "not recovered", "spike score", "norm, corrupted", "usual")


def table(summary: Summary) -> str:
    """Return a line for each contender."""
    config = summary["config"]
    title = (
        f"{config['data']}, Adam, lr {config['lr']:g}: {config['steps']} steps, corrupted batches at {_list(config['corrupted'])}"
    )
    rows = [
        (
            one["batches"],
            one["contender"],
            _number(one["final_loss"], ".3f"),
            _number(one["recovery_steps"], "g"),
            f"{one['not_recovered']} of {one['corrupted_batches']}",
            _number(one["spike_score"], ".2%"),
            _number(one["corrupted_norm"], ".3g"),
            _number(one["median_norm"], ".3g"),
        )
        for one in summary["contenders"]
    ]
    note = (
        f"Medians over the seeds. Final loss: mean of the last tenth. Recovery: steps until the mean of {SMOOTHING} losses\n"
        "is no higher than before the corrupted batch (-: half or more did not recover before the next). Spike score: share of\n"
        f"losses more than {DEVIATIONS:g} standard deviations from the mean of the {SCORE_WINDOW} before. Norms: before clipping."
    )
    return "\n".join([title, "", *aligned([HEADER, *rows]), "", note])


def _list(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def guide_table(written: Summary) -> str:
    """Return a row for each contender, in Markdown: the final loss, and the number of batches it did not recover from."""
    kinds = list(written["config"]["weights"])
    head = " | ".join(f"{kind}: final loss | not recovered" for kind in kinds)
    lines = [f"| | {head} |", "|---" * (1 + 2 * len(kinds)) + "|"]
    found = {(one["batches"], one["contender"]): one for one in written["contenders"]}
    for name in written["config"]["contenders"]:
        cells = []
        for kind in kinds:
            one = found[kind, name]
            cells.append("diverged" if one["final_loss"] is None else f"{one['final_loss']:.3f}")
            cells.append(f"{one['not_recovered']} of {one['corrupted_batches']}")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)
