"""Processes of one training: their group, devices, communication, and Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import timedelta
from traceback import clear_frames
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """Number of processes that train together, and rank and device of this one; by default a single process."""

    count: int = 1
    rank: int = 0
    device: torch.device = field(default=torch.device("cpu"))
    patient: dist.ProcessGroup | None = None  # group without the usual timeout of minutes

    @property
    def first(self) -> bool:
        """Return whether this is the first process, which prints."""
        return self.rank == 0

    def alone(self) -> Processes:
        """Return a group of this process only, on the same device."""
        return Processes(device=self.device)

    def share(self, windows: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this process' part of a batch, whose size is a multiple of the number of processes."""
        characters, following = (tensor.chunk(self.count)[self.rank] for tensor in windows)
        return characters, following

    def mean(self, *values: float) -> list[float]:
        """Return the mean over the processes of each value, the same on all."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        means: list[float] = (sums / self.count).tolist()
        return means

    def from_first(self, value: T) -> T:
        """Return the value of the first process; wait for it however long that takes."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.patient)
        return box[0]


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun started, by nccl if there are GPUs, else by gloo; without torchrun only this one."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    options: dict[str, Any] = {} if "WORLD_SIZE" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None, **options)
    try:
        patient = dist.new_group(backend="gloo", timeout=timedelta(days=30))
        yield Processes(dist.get_world_size(), dist.get_rank(), device, patient)
    except BaseException as error:
        clear_frames(error.__traceback__)  # free the model before its group; otherwise torch may hang
        raise
    finally:
        dist.destroy_process_group()


def enough_gpus() -> None:
    """Raise SystemExit if there are more processes than GPUs, for which nccl would fail with an unclear message."""
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if torch.cuda.is_available() and here > gpus:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            advice = "start as many processes as GPUs, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on the CPU"
            print(f"nproc-per-node must be at most {gpus}, the GPUs of this machine, got {here}: {advice}", file=sys.stderr)
        raise SystemExit(2)


def agreed(processes: Processes, read: Callable[[], T]) -> T:
    """Return the result of ``read``; if it exits in any process, exit in all, and print the first message in the first one."""
    said, result, code = io.StringIO(), None, 0
    try:
        with redirect_stdout(said), redirect_stderr(said):
            result = read()
    except SystemExit as end:
        code = int(end.code or 0)
    ends: list[Any] = [None] * processes.count
    dist.all_gather_object(ends, (result is None, code, said.getvalue()), group=processes.patient)
    for ended, code, words in ends:
        if ended:
            if processes.first:
                print(words, end="", file=sys.stderr if code else sys.stdout, flush=True)
            dist.barrier(group=processes.patient)  # torchrun kills the other processes once one has failed
            raise SystemExit(code)
    assert result is not None
    return result


class Interruption:
    """Remember Ctrl-C until all processes can stop after the same step."""

    def __init__(self) -> None:
        self.happened = False

    def __enter__(self) -> Interruption:
        self._before = signal.signal(signal.SIGINT, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.happened = True
