"""Reader of gradient norms from files: csv tables, event files of TensorBoard, and files of a recorder."""

from __future__ import annotations

import csv
import math
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["RecordedNorms", "read_norms"]

SMALLEST = 20  # number of norms needed for statistics
LARGEST = 1e300  # norm that can be drawn
_UNWANTED = ("__min", "__max")  # columns that Weights & Biases exports beside those of a run
_OWN = ("steps", "clipped_steps", "skipped_steps", "grad_norm")  # the first columns of a recorder's file


class RecordedNorms(NamedTuple):
    """Positive and finite norms of a run, oldest first."""

    name: str  # of the column
    norms: npt.NDArray[np.float64]
    left_out: int  # entries that are zero, not finite, or empty


def read_norms(path: Path, column: str | None = None) -> RecordedNorms:
    """Return the gradient norms in a file.

    Args:
        path: a csv file (numbers only, or with a line of names), an event file of TensorBoard, or the folder of a run's event
            files.
        column: the column or tag with the norms. Default: None, the one with "norm" in its name.

    Raises:
        ValueError: the file has another format, several such columns, or too few norms.
        OSError: the file cannot be read.
        ImportError: TensorBoard is missing.
    """
    is_of_tensorboard = path.is_dir() or "tfevents" in path.name
    name, values = _from_tensorboard(path, column) if is_of_tensorboard else _from_csv(path, column)
    found = np.array(values, dtype=np.float64)
    if (found < 0).any():
        raise ValueError(f"{path} must hold norms, which are at least 0, got {found[found < 0][0]} in {name!r}")
    norms = found[np.isfinite(found) & (found > 0)]
    if (norms > LARGEST).any():
        raise ValueError(f"{path} must hold norms of at most {LARGEST:g}, got {norms.max():g} in {name!r}")
    if len(norms) < SMALLEST:
        raise ValueError(f"{path} must hold at least {SMALLEST} norms that are positive and finite, got {len(norms)} in {name!r}")
    return RecordedNorms(name, norms, len(found) - len(norms))


def _from_csv(path: Path, column: str | None) -> tuple[str, list[float]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # exports may begin with a byte order mark
    except UnicodeDecodeError:
        raise ValueError(f"{path} must be a csv file in UTF-8 or a TensorBoard event file, but is neither") from None
    try:
        rows = [(number, row) for number, row in enumerate(csv.reader(text.splitlines()), 1) if row]
    except csv.Error as error:
        raise ValueError(f"{path} must be a csv file: {error}") from None
    if not rows:
        raise ValueError(f"{path} must hold norms, but is empty")
    first = rows[0][1]
    if len(first) == 1 and any(mark in first[0] for mark in ";\t"):
        raise ValueError(f"{path} must have commas between its columns and points in its numbers, but begins with {first[0]!r}")
    has_names = not all(map(_is_number, first))
    if not has_names:
        names = [str(i) for i in range(1, len(first) + 1)]
    else:
        names, rows = [name.strip() for name in first], rows[1:]
    if rows and len(rows[-1][1]) < len(names) and not text.endswith("\n"):
        del rows[-1]  # cut off by a kill
    chosen = _chosen(path, names, column)
    place, values = names.index(chosen), []
    for number, row in rows:
        if len(row) > len(names):
            raise ValueError(f"{path}, line {number}: {len(names)} values are named, got {len(row)} (decimal commas?)")
        cell = row[place].strip() if place < len(row) else ""
        if cell and not _is_number(cell):
            raise ValueError(f"{path}, line {number}: {chosen!r} must be a number, got {cell!r}")
        values.append(float(cell) if cell else math.nan)
    return chosen if has_names else f"column {chosen}", values


def _from_tensorboard(path: Path, column: str | None) -> tuple[str, list[float]]:
    try:
        accumulator = import_module("tensorboard.backend.event_processing.event_accumulator")
    except ImportError as error:
        raise ImportError(f"TensorBoard's files need TensorBoard: pip install tensorboard ({error})") from error
    events = accumulator.EventAccumulator(str(path), size_guidance={accumulator.SCALARS: 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    if not tags:
        raise ValueError(f"{path} must hold norms, but has no scalars")
    chosen = _chosen(path, tags, column)
    return chosen, [event.value for event in events.Scalars(chosen)]


def _chosen(path: Path, names: list[str], column: str | None) -> str:
    """Return the name of the column with the norms."""
    if column is not None:
        if column not in names:
            raise ValueError(f"--column must be one of {', '.join(names)}, got {column!r}")
        return column
    if tuple(names[: len(_OWN)]) == _OWN:
        return "grad_norm"
    plausible = [name for name in names if "norm" in name.lower() and not name.lower().endswith(_UNWANTED)]
    plausible = [name for name in plausible if "clipped" not in name.lower()] or plausible
    if len(plausible) == 1 or (not plausible and len(names) == 1):
        return (plausible or names)[0]
    what = f"several that may be norms: {', '.join(plausible)}" if plausible else f"the columns {', '.join(names)}"
    raise ValueError(f"{path} has {what}; name the one to take by --column")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
