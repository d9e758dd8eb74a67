"""Time all contenders of ``benchmark`` in each round, in an order that changes from round to round."""

from __future__ import annotations

import ctypes
import gc
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns

import torch

from ..common.machine import resident
from .contenders import Contender
from .levels import LONGEST_RUN
from .problem import Problem

FEWEST_ROUNDS = 7
CACHE_BYTES = 1 << 24  # larger gradients do not stay in the caches between two steps
COPY_BYTES = 1 << 28


@dataclass
class Timings:
    """Seconds of each step, by contender, seconds of each copy, and the bytes that one copy moves."""

    steps: list[list[float]]
    copies: list[float] = field(default_factory=list)
    copied_bytes: int = 0


def time_steps(problem: Problem, contenders: Sequence[Contender], budget: float, seed: int) -> Timings:
    """Time rounds of one step of each contender, shuffled, as many as the budget allows; gradients are restored before each.

    In each round a tensor is copied once too, to measure the bandwidth.

    Args:
        problem: problem whose gradients the contenders clip.
        contenders: at least one contender.
        budget: seconds for all rounds; at least 7 and at most 400 rounds are run.
        seed: seed of the order in each round.
    """
    synchronize = synchronizer(problem)
    large = problem.gradient_bytes > CACHE_BYTES
    source = torch.zeros(COPY_BYTES if large else problem.gradient_bytes, dtype=torch.uint8, device=problem.parameters[0].device)
    target = torch.zeros_like(source)
    tasks: list[Callable[[], object]] = [*(contender.step for contender in contenders), lambda: target.copy_(source)]
    seconds: list[list[float]] = [[] for _ in tasks]
    order, shuffle = list(range(len(tasks))), random.Random(seed).shuffle
    gc.collect()
    gc.disable()  # as timeit does
    try:
        for task in tasks:
            _timed(problem, task, synchronize)
        begin = perf_counter_ns()
        for turn in range(LONGEST_RUN):
            if turn >= FEWEST_ROUNDS and (perf_counter_ns() - begin) / 1e9 * (turn + 1) / turn > budget:
                break
            shuffle(order)
            for place in order:
                seconds[place].append(_timed(problem, tasks[place], synchronize))
    finally:
        gc.enable()
    return Timings(seconds[:-1], seconds[-1], 2 * source.numel())


def _timed(problem: Problem, task: Callable[[], object], synchronize: Callable[[], None]) -> float:
    problem.restore_gradients()
    synchronize()
    start = perf_counter_ns()
    task()
    synchronize()  # the time of the host counts too: on small sizes it is nearly all
    return (perf_counter_ns() - start) / 1e9


def synchronizer(problem: Problem) -> Callable[[], None]:
    """Return a function that waits for the device of the problem."""
    return torch.cuda.synchronize if problem.parameters[0].is_cuda else lambda: None


def peak_bytes(problem: Problem, step: Callable[[], object]) -> float:
    """Return the peak memory of one step above the memory before it, in bytes; NaN if the system does not report it."""
    problem.restore_gradients()
    synchronize = synchronizer(problem)
    if problem.parameters[0].is_cuda:
        synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        synchronize()
        return float(torch.cuda.max_memory_allocated() - before)
    try:
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # freed memory that the process keeps would hide the peak
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
    except (OSError, TypeError):  # not Linux
        step()
        return math.nan
    before = resident("VmRSS")
    step()
    return max(0.0, resident("VmHWM") - before)
