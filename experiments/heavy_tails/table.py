"""Format the summary of ``heavy_tails`` as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HEADER = ("", "train loss", "validation loss", "by seed", "clip rate", "median norm", "99 %", "largest")


def table(summary: dict[str, Any]) -> str:
    """Return a line for every run, the comparison, the tail of the gradient norms, and texts of the model."""
    settings = summary["settings"]
    title = f"{settings['model']} on {settings['data']}, {settings['steps']} steps, {clipping(settings)}"
    lines = [title, "", *_aligned([HEADER, *(_cells(run) for run in summary["runs"])]), ""]
    if summary["interrupted"]:
        lines += [f"Interrupted: the results cover the {summary['rows']} steps that were done."]
    return "\n".join([*lines, *_verdict(summary), *_tail(summary), *_texts(summary)])


def clipping(settings: dict[str, Any]) -> str:
    """Return the clipping type and its level in words."""
    level = settings["clipping_level"]
    return f"clipping type {settings['clipping_type']}" + ("" if level is None else f" at level {level:g}")


def label(run: dict[str, Any]) -> str:
    """Return the name of a run: its optimizer and its learning rate."""
    return f"{run['optimizer']}, lr {run['lr']:g}"


def by_lr(summary: dict[str, Any], clipped: bool, lr: float) -> dict[str, Any] | None:
    """Return the run with that learning rate; None if an interruption ended before it."""
    return next((run for run in summary["runs"] if (run["clipped"], run["lr"]) == (clipped, lr)), None)


def _cells(run: dict[str, Any]) -> tuple[str, ...]:
    quantiles = run["grad_norm"].get("quantiles", {})
    return (
        label(run),
        _number(run["train_loss"]),
        _number(run["validation_loss"]),
        " ".join("diverged" if seed["diverged"] else _number(seed["validation_loss"]) for seed in run["seeds"]),
        f"{run['clip_rate']:.1%}" if run["clipped"] and run["clip_rate"] is not None else "-",
        *(_number(quantiles.get(q)) for q in ("0.5", "0.99", "1")),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if value >= 1000 else f"{value:.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))]) for row in rows]


def _verdict(summary: dict[str, Any]) -> list[str]:
    comparison, lr = summary["comparison"], summary["settings"]["lr"]
    if comparison is None:
        return ["Nothing to compare yet: no unclipped run has finished."]
    best, tried = comparison["best_unclipped_lr"], comparison["unclipped_lrs"]
    lines = [f"Clipping at lr {lr:g} against no clipping at lr {lr:g}: {_score(comparison['same_lr'])}."]
    if all(run["diverged"] == len(run["seeds"]) for run in summary["runs"] if not run["clipped"]):
        return [*lines, f"Without clipping all of {_listed(tried)} diverged; a smaller lr may not diverge."]
    if best == lr:
        lines.append(f"That is also the best lr without clipping, of {_listed(tried)}.")
    else:
        score = _score(comparison["best_lr"])
        lines.append(f"Clipping at lr {lr:g} against no clipping at lr {best:g}, the best of {_listed(tried)}: {score}.")
    if best == min(tried):
        lines.append("No smaller lr was tried without clipping; one may be better.")
    return lines


def _texts(summary: dict[str, Any]) -> list[str]:
    """Return the texts of the model before its training and after the clipped one."""
    clipped = by_lr(summary, True, summary["settings"]["lr"])
    names = ["untrained", *([label(clipped)] if clipped else [])]
    return [f"Written by the model, {name}: {summary['texts'][name]!r}" for name in names if name in summary["texts"]]


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{lr:g}" for lr in rates)


def _score(duel: dict[str, list[int]]) -> str:
    better, worse = duel["clipped_is_better"], duel["clipped_is_not_better"]
    exceptions = f", not with seed {', '.join(map(str, worse))}" if worse else ""
    return f"lower validation loss with {len(better)} of {len(better) + len(worse)} seeds{exceptions}"


def _tail(summary: dict[str, Any]) -> list[str]:
    clipped = by_lr(summary, True, summary["settings"]["lr"])
    if clipped is None:
        return []
    after = f"without each seed's first {summary['start_steps']} steps"
    return [
        f"Gradient norms of {label(clipped)}, {words}: {tail['beyond_3_std']} of {tail['count']} exceed mean + 3 std "
        f"(normal distribution: {tail['beyond_3_std_if_normal']:.1f}), the largest by {tail['largest_in_std']:.1f} std."
        for words, tail in (("all steps", clipped["grad_norm"]), (after, clipped["grad_norm_after_start"]))
        if "std" in tail
    ]
