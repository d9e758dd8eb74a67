"""A training run that may be killed at any moment and started again: what test_checkpoints kills.

Called as ``python -m tests.support.resumable_run FOLDER``. Every clipping type trains a tiny model of its own, all in step; every
few steps everything is saved, to a file of another name that takes the place of the former one. Each step prints a line.
"""

import os
import sys
import warnings
from pathlib import Path

import torch

from torch_clipped import ClippedAdamW, ClippedSGD

from .reference import CLIPPING_TYPES

TYPES = list(CLIPPING_TYPES)
STEPS, SAVE_EVERY, WINDOW = 112, 5, 7  # the warm-up of adagc takes 100 steps


class Run:
    """A model of one clipping type, its optimizer and its learning rate scheduler."""

    def __init__(self, clipping_type, number):
        torch.manual_seed(number)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        groups = [
            {"params": list(self.model[0].parameters())},
            {"params": list(self.model[2].parameters()), "clipping_window": WINDOW + number % 2},  # a set of its own, or not
        ]
        options = {"clipping_type": clipping_type, "clipping_beta": 0.5, "clipping_window": WINDOW, "clipping_seed": number}
        if number % 2:
            self.optimizer = ClippedAdamW(groups, lr=0.02, **options)
        else:
            self.optimizer = ClippedSGD(groups, lr=0.02, momentum=0.9, **options)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 10, gamma=0.9)

    def step(self, number):
        """One step, on data of heavy-tailed noise that depends on the number of the step only; some steps are bad."""
        generator = torch.Generator().manual_seed(number)
        inputs, noise = torch.randn(6, 3, generator=generator), torch.randn(6, 1, generator=generator)
        self.optimizer.zero_grad()
        loss = (self.model(inputs) - noise**3).square().mean()
        loss.backward()
        if number % 13 == 12 and self.optimizer.param_groups[0]["clipping_type"] != "none":
            next(self.model.parameters()).grad[0, 0] = float("inf")
        self.optimizer.step()
        self.scheduler.step()

    def parts(self):
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def state_dict(self):
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, state):
        for name, part in self.parts().items():
            part.load_state_dict(state[name])

    def result(self):
        """All that must not depend on whether the run was broken."""
        return {
            "weights": list(self.model.state_dict().values()),
            "state": self.optimizer.state_dict(),
            "norms": self.optimizer.grad_norms(),
            "stats": [self.optimizer.clipping_stats(), *self.optimizer.clipping_stats(per_set=True)],
        }


def save(content, path):
    """Put the file there whole or not at all."""
    temporary = path.with_suffix(".new")
    with open(temporary, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def main(folder):
    """Start where the last checkpoint is, or at the beginning."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    runs = [Run(clipping_type, number) for number, clipping_type in enumerate(TYPES)]
    checkpoint, first = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        loaded = torch.load(checkpoint, weights_only=True)
        first = loaded["steps"]
        for run, state in zip(runs, loaded["runs"], strict=True):
            run.load_state_dict(state)
    print("start", first, flush=True)
    for number in range(first, STEPS):
        for run in runs:
            run.step(number)
        if (number + 1) % SAVE_EVERY == 0:
            save({"steps": number + 1, "runs": [run.state_dict() for run in runs]}, checkpoint)
        print("step", number, flush=True)
    save([run.result() for run in runs], folder / "result.pt")
    print("done", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
