"""The gradient norms of a whole run, in memory or in a file that grows with it."""

from __future__ import annotations

import math
import os
from array import array
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import cast

import torch
from torch import Tensor

from ._engine.arrays import as_tensor
from ._engine.monitor import warn
from .mixin import Clipped

__all__ = ["NormRecorder"]

COLUMNS = ("steps", "clipped_steps", "skipped_steps", "grad_norm", "clipped_norm", "threshold", "coefficient")
Row = tuple[float, ...]


class NormRecorder:
    """Records norm, threshold and coefficient of every step of an optimizer that clips, from now on.

    The optimizer itself remembers the last ``clipping_window`` norms; this keeps those of the whole run. The values are those of
    :meth:`torch_clipped.Clipped.clipping_stats`. They are collected where the optimizer's numbers are, and read every 100 steps
    by a thread: training does not wait for an accelerator. ``optimizer.state_dict()`` flushes, so that the file of a killed run
    has all steps up to the checkpoint. Where each rank has an optimizer, record on one of them only.

    Args:
        optimizer: an optimizer that clips.
        path: a csv file, written every 100 steps: a killed run loses no more than those. Default: None, in memory only.
        resume (bool): continue a file that is there. Steps in it that the optimizer is about to take again, from a checkpoint,
            are replaced. Default: False, the file must be new.

    Raises:
        TypeError: the optimizer does not clip.
        ValueError: there is such a file and ``resume`` is False, or it is none of this class; after the first step, if a file is
            continued by an optimizer that starts anew.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedSGD, NormRecorder
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = ClippedSGD([weight], clipping_level=2.0)
        >>> with NormRecorder(optimizer) as recorder:
        ...     for length in (3.0, 1.0):
        ...         weight.grad = torch.tensor([0.0, length])
        ...         optimizer.step()
        >>> recorder.grad_norms().tolist()
        [3.0, 1.0]
        >>> [row["threshold"] for row in recorder.history()]
        [2.0, 2.0]
    """

    EVERY = 100  # steps

    def __init__(self, optimizer: Clipped, path: str | Path | None = None, *, resume: bool = False) -> None:
        if not isinstance(optimizer, Clipped):
            raise TypeError(f"optimizer must be one that clips, got {type(optimizer).__name__}")
        self._path = None if path is None else Path(path)
        self._values = array("d")  # of the rows, where there is no file
        if self._path is not None and self._path.exists():
            if not resume:
                raise ValueError(f"path must be a new file unless resume=True, but there is {str(self._path)!r}")
            read(self._path)
        self._optimizer = optimizer
        self._collected: Tensor | None = None
        self._count = 0
        self._last: Row = self._counts()
        self._is_begun = False
        self._worker = ThreadPoolExecutor(1, "norms")
        self._written: Future[None] | None = None
        self._hooks = [
            optimizer.register_step_post_hook(self._observe),
            optimizer.register_state_dict_pre_hook(self._before_checkpoint),
        ]

    def history(self) -> list[dict[str, float]]:
        """The recorded steps, each as a dict like that of ``clipping_stats``, for :func:`torch_clipped.plots.plot_norms`.

        A step that was skipped because its gradient is not finite has NaN for norm, threshold and coefficient.
        """
        self.flush()
        if self._path is not None:
            rows = read(self._path) if self._path.exists() else []
        else:
            rows = [*zip(*[iter(self._values)] * len(COLUMNS), strict=True)]
        return [dict(zip(COLUMNS, row, strict=True)) for row in rows]

    def grad_norms(self) -> Tensor:
        """The norms of the whole run before clipping, oldest first, without those that are not known: float64 (steps,)."""
        norms = [row["grad_norm"] for row in self.history()]
        return torch.tensor([norm for norm in norms if math.isfinite(norm)], dtype=torch.float64, device="cpu")

    def flush(self) -> None:
        """Read and write what was collected so far; this waits."""
        self._hand_over()
        if self._written is not None:
            self._written.result()

    def close(self) -> None:
        """Stop recording, after a last :meth:`flush`."""
        self._stop()
        self.flush()
        self._worker.shutdown()

    def _stop(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> NormRecorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _counts(self) -> Row:
        return tuple(as_tensor(self._optimizer._clip_sets()[1].counts).tolist())

    @torch.no_grad()
    def _observe(self, *_: object) -> None:
        totals = self._optimizer._clip_sets()[1]
        totals.write_down()
        counts, last = as_tensor(totals.counts), as_tensor(totals.last)
        if not self._is_begun:
            self._begin(counts)
        if self._collected is None or self._collected.device != last.device:
            self._hand_over()
            self._collected = torch.zeros(self.EVERY, len(COLUMNS), dtype=last.dtype, device=last.device)
        self._collected[self._count].copy_(torch.cat([counts.to(last.dtype), last]))
        self._count += 1
        if self._count == self.EVERY:
            self._hand_over()

    def _begin(self, counts: Tensor) -> None:
        """Take out of a file that is continued what is recorded anew."""
        self._is_begun = True
        if self._path is None or not self._path.exists():
            return
        rows, now = read(self._path), tuple(counts.tolist())
        if rows and now[0] + now[2] <= 1:
            self._stop()
            raise ValueError(
                f"path must be the file of this run, but {str(self._path)!r} has {len(rows)} steps and the optimizer starts "
                "anew: load its checkpoint before the first step, or record into another file"
            )
        unfinished = self._path.with_name(f"{self._path.name}.part")
        unfinished.unlink(missing_ok=True)
        _append(unfinished, [row for row in rows if row[0] <= now[0] and row[2] <= now[2] and row[:3] != now])
        os.replace(unfinished, self._path)

    def _before_checkpoint(self, _: object) -> None:
        """Write what a run that is resumed from this checkpoint will not record again; an error must not cost the checkpoint."""
        self._hand_over()
        self._stop_if_failed(wait=True)

    def _stop_if_failed(self, wait: bool = False) -> bool:
        """Return whether the thread has failed; then warn and record no longer."""
        if self._written is None or not (wait or self._written.done()) or not (error := self._written.exception()):
            return False
        self._stop()
        warn(f"gradient norms are no longer recorded: {error}")
        return True

    def _hand_over(self) -> None:
        """Let the thread read what was collected."""
        if not self._count:
            return
        assert self._collected is not None
        seen, arrival = self._collected[: self._count], None
        if seen.is_cuda:
            copy = torch.empty(seen.shape, dtype=seen.dtype, device="cpu", pin_memory=True).copy_(seen, non_blocking=True)
            arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrival.record(torch.cuda.current_stream(seen.device))
        else:
            copy = seen.to("cpu", copy=True)
        self._count = 0
        if not self._stop_if_failed():
            self._written = self._worker.submit(self._take, copy, arrival)

    def _take(self, rows: Tensor, arrival: torch.cuda.Event | None) -> None:
        if arrival is not None:
            arrival.synchronize()
        new: list[Row] = []
        for row in cast(list[list[float]], rows.tolist()):
            steps, _, skipped = row[:3]
            if (steps, skipped) == (self._last[0], self._last[2]):
                continue  # a step without a gradient
            is_finite = steps != self._last[0]  # fewer, too, after a checkpoint was loaded
            new.append((*row,) if is_finite else (*row[:3], *[math.nan] * 4))
            self._last = new[-1]
        if self._path is not None:
            _append(self._path, new)
        else:
            self._values.extend(chain.from_iterable(new))


def read(path: Path) -> list[Row]:
    """Return the rows of a file of a :class:`NormRecorder`; a last line that was cut off is left out.

    Raises:
        ValueError: it is no such file.
    """
    import csv

    text = path.read_text()
    lines = [*csv.reader(text.splitlines())]
    if not lines or tuple(lines[0]) != COLUMNS:
        raise ValueError(f"path must be a file of a NormRecorder, but {str(path)!r} does not begin with {','.join(COLUMNS)}")
    if not text.endswith("\n"):
        del lines[-1]
    try:
        rows = [tuple(map(float, line)) for line in lines[1:]]
    except ValueError as error:
        raise ValueError(f"path must be a file of a NormRecorder, but {str(path)!r} holds something else: {error}") from None
    if wrong := next((i for i, row in enumerate(rows, 2) if len(row) != len(COLUMNS)), None):
        raise ValueError(f"path must be a file of a NormRecorder, but line {wrong} of {str(path)!r} has another number of values")
    return rows


def _append(path: Path, rows: list[Row]) -> None:
    import csv

    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerows([[int(value) if i < 3 else value for i, value in enumerate(row)] for row in rows])
