"""Gradient clipping inside the optimizer: replace ``torch.optim.SGD`` by ``ClippedSGD``, and nothing else changes."""

from .optimizers import Clipped, ClippedAdam, ClippedAdamW, ClippedSGD

__all__ = ["Clipped", "ClippedAdam", "ClippedAdamW", "ClippedSGD"]
__version__ = "0.1.0"
