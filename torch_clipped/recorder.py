"""Recorder of the gradient norms of a whole run, in memory or in a growing file."""

from __future__ import annotations

import math
import weakref
from array import array
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import cast

import torch
from torch import Tensor

from ._engine.arrays import as_tensor
from ._engine.monitor import warn
from ._norm_log import COLUMNS, NormLog, Row
from .mixin import Clipped

__all__ = ["NormRecorder"]


class NormRecorder:
    """Record the norm, threshold and coefficient of every step of an optimizer that clips.

    The optimizer itself keeps the last ``clipping_window`` norms, the recorder the norms of the whole run. The values are those
    of :meth:`torch_clipped.Clipped.clipping_stats` after each step. If a step evaluates its closure several times (LBFGS), they
    are those of the last evaluation. The values are collected on the optimizer's device and written every 100 steps. Training
    does not wait for an accelerator: the written values were copied 100 steps before. ``optimizer.state_dict()`` writes all
    values, so that the file of a killed run has all steps up to its last checkpoint. If each rank has an optimizer, record on one
    rank only.

    Args:
        optimizer: an optimizer that clips.
        path: a new csv file in an existing folder. Default: None, in memory only.
        resume (bool): whether to continue an existing file. The next step removes the steps in the file that are later than the
            optimizer's checkpoint, because they are taken again. Default: False, the file must be new.

    Raises:
        TypeError: the optimizer does not clip.
        ValueError: the file exists and ``resume`` is False, or it is not a recorder's file; after the first step, if an optimizer
            without earlier steps continues a file with steps.

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

    def __init__(self, optimizer: Clipped, path: str | Path | None = None, *, resume: bool = False) -> None:
        if not isinstance(optimizer, Clipped):
            raise TypeError(f"optimizer must be one that clips, got {type(optimizer).__name__}")
        self._log = None if path is None else NormLog(path, resume)
        self._is_waiting = self._log is not None and bool(self._log.read())  # for the first step, to know where the file goes on
        self._optimizer = optimizer
        self._rows = _Rows(self._log, self._counts())
        self._hooks = [
            optimizer.register_step_post_hook(self._observe),
            optimizer.register_state_dict_pre_hook(self._write_collected),
            optimizer.register_load_state_dict_post_hook(self._start_from_loaded),
        ]
        weakref.finalize(self, self._rows.flush)  # also at the end of the program

    def history(self) -> list[dict[str, float]]:
        """Return the recorded steps, each as a dict like that of ``clipping_stats``.

        :func:`torch_clipped.plots.plot_norms` draws the result. Norm, threshold and coefficient are NaN for a step that was
        skipped because its gradient is not finite.
        """
        self.flush()
        rows = self._rows.in_memory() if self._log is None else self._log.read()
        return [dict(zip(COLUMNS, row, strict=True)) for row in rows]

    def grad_norms(self) -> Tensor:
        """Return the known norms of the whole run before clipping, oldest first: float64 of shape (steps,)."""
        norms = [row["grad_norm"] for row in self.history()]
        return torch.tensor([norm for norm in norms if math.isfinite(norm)], dtype=torch.float64, device="cpu")

    def flush(self) -> None:
        """Write all values collected so far; this waits for an accelerator.

        Raises:
            OSError: the file could not be written, now or at an earlier step.
        """
        self._rows.flush()
        if self._rows.error is not None:
            raise self._rows.error

    def close(self) -> None:
        """Stop recording, after a last :meth:`flush`."""
        for hook in self._hooks:
            hook.remove()
        self.flush()

    def __enter__(self) -> NormRecorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _counts(self) -> Row:
        return tuple(as_tensor(self._optimizer._clip_sets()[1].counts).tolist())

    @torch.no_grad()
    def _observe(self, *_: object) -> None:
        if self._rows.is_stopped:
            return
        totals = self._optimizer._clip_sets()[1]
        totals.write_down()
        counts, last = as_tensor(totals.counts), as_tensor(totals.last)
        if self._is_waiting:
            if tuple(counts.tolist()) == self._rows.newest:
                return  # a step without a gradient: torch.distributed.checkpoint takes one before it loads
            self._is_waiting = False
            self._continue_file()
        self._rows.collect(counts, last)

    def _continue_file(self) -> None:
        """Remove the steps from the file that this run records again."""
        assert self._log is not None
        log, before = self._log, self._rows.newest
        if not (before[0] or before[2]):
            self._rows.is_stopped = True
            raise ValueError(
                f"path must be the file of this run, but {str(log.path)!r} has {len(log.read())} steps and the "
                "optimizer starts anew: load its checkpoint before the first step, or record into another file"
            )
        self._rows.attempt(lambda: log.cut(before))

    def _write_collected(self, _: object) -> None:
        """Write all values before a checkpoint, because a resumed run does not record them again."""
        self._rows.flush()

    def _start_from_loaded(self, _: object) -> None:
        self._rows.flush()
        self._rows.newest = self._counts()


class _Rows:
    """Rows on their way from the optimizer's device into memory or a file. A file error does not stop training."""

    EVERY = 100  # steps

    def __init__(self, log: NormLog | None, newest: Row) -> None:
        self._log = log
        self._values = array("d")  # of the rows, if there is no file
        self.newest = newest  # the last row, or the counts before the first
        self.is_stopped = False
        self.error: OSError | None = None
        self._collected: Tensor | None = None
        self._count = 0
        self._arriving: list[tuple[Tensor, torch.cuda.Event | None]] = []

    def in_memory(self) -> list[Row]:
        return [*zip(*[iter(self._values)] * len(COLUMNS), strict=True)]

    def collect(self, counts: Tensor, last: Tensor) -> None:
        """Collect the values of a step without reading them."""
        if self._collected is None or self._collected.device != last.device:
            self._send()
            self._collected = torch.zeros(self.EVERY, len(COLUMNS), dtype=last.dtype, device=last.device)
        torch.cat([counts.to(last.dtype), last], out=self._collected[self._count])
        self._count += 1
        if self._count == self.EVERY:
            self._send()
            self._receive(wait=False)

    def flush(self) -> None:
        """Write all rows."""
        self._send()
        self._receive(wait=True)

    def attempt(self, write: Callable[[], None]) -> None:
        """Write to the file, or warn that recording has ended."""
        try:
            write()
        except OSError as error:
            self.is_stopped, self.error = True, error
            warn(f"gradient norms are no longer recorded: {error}")

    def _send(self) -> None:
        """Copy the collected values to the host, in the background if the device supports it."""
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
        self._arriving.append((copy, arrival))
        self._count = 0

    def _receive(self, wait: bool) -> None:
        """Write the values that have arrived on the host, or all values with ``wait``."""
        new: list[Row] = []
        while self._arriving:
            rows, arrival = self._arriving[0]
            if arrival is not None and not wait and not arrival.query():  # type: ignore[no-untyped-call]
                break
            if arrival is not None:
                arrival.synchronize()
            del self._arriving[0]
            for row in cast(list[list[float]], rows.tolist()):
                steps, _, skipped = row[:3]
                if (steps, skipped) == (self.newest[0], self.newest[2]):
                    continue  # a step without a gradient
                is_finite = steps != self.newest[0]
                self.newest = (*row,) if is_finite else (*row[:3], *[math.nan] * 4)
                new.append(self.newest)
        if self._log is None:
            self._values.extend(chain.from_iterable(new))
        elif new and not self.is_stopped:
            log = self._log
            self.attempt(lambda: log.append(new))
