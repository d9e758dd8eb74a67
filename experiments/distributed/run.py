"""Train a small language model on many processes, with clipping, and compare with the same training on one process.

``torchrun --nproc-per-node 2 -m experiments distributed --strategy fsdp2`` trains it on GPUs with nccl, or on the CPU with
gloo. The batches are the same for every strategy and number of processes. First the first process trains alone, without a
wrapper. The losses of both trainings must be equal up to rounding, else the exit code is 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from ..common.command import INTERRUPTED, publishing
from . import checkpoints
from .options import Job, read_job
from .processes import Interruption, Processes, agreed, enough_gpus, joined
from .report import Curve, are_equal, table, verdict, write
from .strategies import ALONE, STRATEGIES, Strategy
from .training import Training


def run(job: Job, processes: Processes, interruption: Interruption) -> int:
    """Train alone, then together, print and write the results; return the exit code."""
    alone = _train_alone(job, processes, interruption) if job.reference and processes.first else None
    if processes.first and job.checkpoints:
        checkpoints.clear(job.checkpoints)
    if processes.from_first(interruption.happened):  # all other processes wait for this
        if processes.first:
            print("Interrupted before the first common step: nothing was written.", file=sys.stderr)
        return INTERRUPTED
    together = _train_together(job, processes, interruption)
    if processes.first:
        _tell(job, processes, together, alone)
    if together.validation_loss is None:
        return INTERRUPTED
    return 0 if alone is None or are_equal(together, alone) else 1


def _train_alone(job: Job, processes: Processes, interruption: Interruption) -> Curve:
    training = _training(job, ALONE, processes.alone())
    with _progress(job.config.steps, "1 process") as progress:
        return Curve.of(training, training.take_steps(job.config.steps, interruption, progress))


def _train_together(job: Job, processes: Processes, interruption: Interruption) -> Curve:
    """Train to the last step, with a checkpoint every ``job.every`` steps if ``job.checkpoints`` is set."""
    training = _training(job, STRATEGIES[job.config.strategy], processes)
    if job.start:
        checkpoints.load(job.start, training)
    steps, finished = job.config.steps, True
    with _progress(steps, _name(job, processes), training.steps, processes.first) as progress:
        while finished and training.steps < steps:
            finished = training.take_steps(min(steps, training.steps + job.every), interruption, progress)
            if job.checkpoints:
                checkpoints.save(job.checkpoints, training, job.config.settings(job.text))
    return Curve.of(training, finished)


def _training(job: Job, strategy: Strategy, processes: Processes) -> Training:
    config = job.config
    return Training(strategy, processes, config.make_optimizer, text=job.text, batch=config.batch, seed=config.seed)


def _progress(steps: int, name: str, taken: int = 0, shown: bool = True) -> tqdm[Any]:
    return tqdm(total=steps, initial=taken, desc=name, unit="step", mininterval=0.5, disable=None if shown else True)


def _name(job: Job, processes: Processes) -> str:
    return f"{processes.count} processes" if processes.count > 1 else f"{job.config.strategy} on 1"


def _tell(job: Job, processes: Processes, together: Curve, alone: Curve | None) -> None:
    """Print the results, and write them."""
    if together.validation_loss is None:
        print(f"Interrupted: these are the {len(together.losses)} steps that were done.")
    print(table(together, alone, _name(job, processes)))
    if alone:
        print(verdict(together, alone))
    if job.checkpoints:
        print(f"Newest checkpoint: {checkpoints.newest(job.checkpoints)}")
    settings = job.config.settings(job.text) | {"strategy": job.config.strategy, "processes": processes.count}
    with publishing(job.out, partial=together.validation_loss is None) as new:
        write(settings | {"device": processes.device.type}, together, alone, new)


def main(arguments: Sequence[str]) -> int:
    """Join the other processes and train; return 1 if the losses differ from those of one process, 130 after Ctrl-C, else 0."""
    enough_gpus()
    with Interruption() as interruption, joined() as processes:
        return run(agreed(processes, lambda: read_job(arguments, processes)), processes, interruption)
