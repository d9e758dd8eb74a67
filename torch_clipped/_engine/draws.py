"""Random numbers of the next steps on an accelerator, where the host does not know the step."""

from __future__ import annotations

import torch
from torch import Tensor

from ..decisions import uniform

__all__ = ["DrawTable", "is_capturing"]


class DrawTable:
    """Draws of ``decisions.uniform`` for the next steps, made at once. Made one by one, each would take some fifty operations."""

    LENGTH = 1000  # steps

    def __init__(self, seed: int, stream: int) -> None:
        self._seed, self._stream = seed, stream
        self._first: Tensor | None = None
        self._draws: Tensor | None = None
        self._left = 0
        self._was_captured = False  # a CUDA graph takes steps that the host does not count

    def draw(self, step: Tensor) -> Tensor:
        """Return the number for a step; the count of steps grows by at most one from call to call."""
        self._was_captured = self._was_captured or (step.is_cuda and is_capturing())
        if self._was_captured:
            found: Tensor = uniform(self._seed, self._stream, step)
            return found
        if not self._left:
            self._first = step.clone()
            steps = self._first + torch.arange(self.LENGTH, device=step.device)
            self._draws, self._left = uniform(self._seed, self._stream, steps), self.LENGTH
        assert self._first is not None
        assert self._draws is not None
        self._left -= 1
        return self._draws.gather(0, (step - self._first)[None])[0]


def is_capturing() -> bool:
    """Return whether a CUDA graph is being captured; False for builds without CUDA, which cannot be queried."""
    return bool(torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())  # type: ignore[no-untyped-call]
