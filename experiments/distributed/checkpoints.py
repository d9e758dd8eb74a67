"""Write and read checkpoints of a training on many processes, with ``torch.distributed.checkpoint``.

Every process writes its part of the tensors. A folder is renamed to ``step-00000050`` once it is complete, so a run that is
killed while it writes leaves earlier checkpoints valid, and an unfinished folder that is ignored. Tensors are found by the names
of the parameters and resharded, so the number of processes and the strategy may change.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from .training import Training

COMPLETE = re.compile(r"step-\d{8,}")
UNFINISHED = ".unfinished"
RECORD = "record.json"  # settings, losses and gradient norms, beside torch's files


def newest(folder: Path) -> Path | None:
    """Return the complete checkpoint of the latest step; None if there is none."""
    found = [path for path in folder.glob("step-*") if COMPLETE.fullmatch(path.name)]
    return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def clear(folder: Path) -> None:
    """Remove unfinished folders of killed runs."""
    for path in folder.glob(f"*{UNFINISHED}"):
        shutil.rmtree(path)


def save(folder: Path, training: Training, settings: dict[str, Any]) -> None:
    """Write a checkpoint of the step that the training has reached; all processes call this."""
    complete = folder / f"step-{training.steps:08d}"
    unfinished = complete.with_name(complete.name + UNFINISHED)
    dcp.save(_state(training), checkpoint_id=unfinished)
    if training.processes.first:
        record = {"settings": settings, "losses": training.losses, "grad_norms": training.grad_norms}
        (unfinished / RECORD).write_text(json.dumps(record), encoding="utf-8")
        unfinished.rename(complete)


def load(checkpoint: Path, training: Training) -> None:
    """Restore a training from a checkpoint; all processes call this."""
    state = _state(training)
    dcp.load(state, checkpoint_id=checkpoint)
    set_state_dict(training.model, training.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    training.batches.set_state(state["batches"])
    record = read_record(checkpoint)
    training.losses, training.grad_norms = record["losses"], record["grad_norms"]


def read_record(checkpoint: Path) -> dict[str, Any]:
    """Return the settings of the training that wrote a checkpoint, with its losses and gradient norms up to there."""
    record: dict[str, Any] = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))
    return record


def _state(training: Training) -> dict[str, Any]:
    model, optimizer = get_state_dict(training.model, training.optimizer)
    return {"model": model, "optimizer": optimizer, "batches": training.batches.get_state()}
