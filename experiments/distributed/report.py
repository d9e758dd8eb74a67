"""Compare the training of many processes with that of one process, as text and as files."""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import torch_clipped

from .training import Training

ROUNDING = 3e-5  # allowed difference of the first loss from that of one process, in nats a character
TENFOLD = 25  # steps in which the allowed difference grows tenfold


def allowed(step: int) -> float:
    """Return the largest difference of the losses of a step that counts as rounding, in nats a character.

    Many processes sum in another order than one, and training makes rounding differences grow exponentially. The bound grows a
    little faster than these differences at the default learning rates. A wrong gradient exceeds it after a few steps.
    """
    return float(ROUNDING * 10 ** (step / TENFOLD))


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Loss and gradient norm of every step, and the loss on held-out text if the training was finished."""

    losses: Sequence[float]
    grad_norms: Sequence[float]
    validation_loss: float | None

    @classmethod
    def of(cls, training: Training, finished: bool) -> Curve:
        """Return the curve of a training; all its processes call this."""
        loss = training.validation_loss() if finished else None
        return cls(losses=training.losses, grad_norms=training.grad_norms, validation_loss=loss)

    def measured(self) -> list[float]:
        """Return the losses of all steps in order, then the validation loss."""
        return [*self.losses, *([] if self.validation_loss is None else [self.validation_loss])]


def differences(together: Curve, alone: Curve) -> list[float]:
    """Return the differences of the losses of all steps, and of the validation loss if ``together`` was not interrupted."""
    steps = slice(None) if together.validation_loss is not None else slice(len(together.losses))
    return [abs(a - b) for a, b in zip(together.measured(), alone.measured()[steps], strict=True)]


def are_equal(together: Curve, alone: Curve) -> bool:
    """Return whether rounding explains all differences; it does not explain NaN."""
    return all(difference <= allowed(step) for step, difference in enumerate(differences(together, alone)))


def table(together: Curve, alone: Curve | None, processes: str) -> str:
    """Return the first and the last loss and the validation loss, beside those of one process."""
    lines = [f"{'':16}{processes:>14}" + (f"{'1 process':>14}{'difference':>14}" if alone else "")]
    places = {"first loss": 0, "last loss": len(together.losses) - 1, "validation loss": len(together.losses)}
    for name, place in places.items():
        if place < len(together.measured()):
            loss = together.measured()[place]
            beside = f"{alone.measured()[place]:14.6f}{differences(together, alone)[place]:14.1e}" if alone else ""
            lines.append(f"{name:16}{loss:14.6f}{beside}")
    return "\n".join(lines)


def verdict(together: Curve, alone: Curve) -> str:
    """Return a sentence: whether the losses are equal, with the largest difference or the first unequal step."""
    found = differences(together, alone)
    for step, difference in enumerate(found):
        if not difference <= allowed(step):
            where = f"step {step}" if step < len(together.losses) else "the validation loss"
            return (
                f"NOT EQUAL: {where} differs by {difference:.1e}; at usual learning rates rounding explains {allowed(step):.1e}."
            )
    worst = found.index(max(found))
    return f"Equal but for rounding: the largest difference of all {len(together.losses)} steps is {found[worst]:.1e}."


def write(settings: dict[str, Any], together: Curve, alone: Curve | None, folder: Path) -> None:
    """Write distributed.csv, a line for every step, and distributed.json."""
    columns: dict[str, Sequence[float]] = {"loss": together.losses, "grad_norm": together.grad_norms}
    if alone:
        columns |= {"loss_alone": alone.losses, "grad_norm_alone": alone.grad_norms}
    with (folder / "distributed.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *columns])
        rows = zip(*columns.values(), strict=False)  # the single process may have taken more steps
        writer.writerows([step, *(f"{value:.9g}" for value in row)] for step, row in enumerate(rows))
    summary = {
        "experiment": "distributed",
        "settings": settings,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torch_clipped": torch_clipped.__version__,
        },
        "interrupted": together.validation_loss is None,
        "steps": len(together.losses),
        "validation_loss": _finite(together.validation_loss),
        "validation_loss_alone": _finite(alone.validation_loss) if alone else None,
        "largest_difference": _finite(max(differences(together, alone))) if alone else None,
        "equal": are_equal(together, alone) if alone else None,
    }
    (folder / "distributed.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
