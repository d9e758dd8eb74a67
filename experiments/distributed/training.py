"""Train the small language model on one process or on many: every step takes the same global batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from tqdm import tqdm

from torch_clipped import Clipped

from ..common.language_models import VALIDATION_WINDOWS, Transformer
from ..common.text import Text, even_windows, random_windows
from .processes import Interruption, Processes
from .strategies import Strategy


class Training:
    """Model with its optimizer, its batches, and the loss and gradient norm of every step so far."""

    def __init__(
        self,
        strategy: Strategy,
        processes: Processes,
        make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        *,
        text: Text,
        batch: int,
        seed: int,
    ) -> None:
        self.processes, self.shares_batch, self.text, self.batch = processes, strategy.shares_batch, text, batch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Transformer(text.alphabet)
        self.model = strategy.wrap(model.to(processes.device), processes)
        self.optimizer = make_optimizer(list(self.model.parameters()))  # after wrapping, which makes new parameters
        self.batches = torch.Generator().manual_seed(seed)
        self.losses: list[float] = []
        self.grad_norms: list[float] = []

    @property
    def steps(self) -> int:
        """Return how many steps were taken."""
        return len(self.losses)

    def take_steps(self, until: int, interruption: Interruption, progress: tqdm[Any]) -> bool:
        """Take steps up to step ``until``; return False if one of the processes was interrupted."""
        while self.steps < until:
            interrupted = self.step(interruption.happened)
            words = f"loss {self.losses[-1]:.4g}, gradient norm {self.grad_norms[-1]:.3g}"
            progress.set_postfix_str(words, refresh=False)
            progress.update()
            if interrupted:
                return False
        return True

    def step(self, interrupted: bool = False) -> bool:
        """Take a step, record its loss and gradient norm, and return whether any process was interrupted."""
        loss = self._loss(random_windows(self.text.training, self.batch, self.batches))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        mean, stopping = self.processes.mean(loss.item(), float(interrupted))
        assert isinstance(self.optimizer, Clipped)
        self.losses.append(mean)
        self.grad_norms.append(self.optimizer.clipping_stats()["grad_norm"])
        return stopping > 0

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Return the loss on the held-out text, in nats a character; the model has no dropout and stays in training mode."""
        count = max(1, VALIDATION_WINDOWS // self.batch) * self.batch  # so that every batch can be split
        windows = even_windows(self.text.validation, count, self.batch)
        loss = torch.stack([self._loss(some) for some in windows]).mean()
        return self.processes.mean(loss.item())[0]

    def _loss(self, windows: tuple[Tensor, Tensor]) -> Tensor:
        """Return the cross-entropy of the next characters of this process' part of the windows, in nats a character."""
        characters, following = self.processes.share(windows) if self.shares_batch else windows
        logits = self.model(characters.to(self.processes.device))
        return cross_entropy(logits.flatten(0, 1), following.to(self.processes.device).flatten())
