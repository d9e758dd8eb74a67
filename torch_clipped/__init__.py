"""Gradient clipping inside the optimizer: replace ``torch.optim.SGD`` by ``ClippedSGD``, and nothing else changes."""

from .clipping import Clipping, register_clipping
from .decisions import Always, Randomly
from .optimizers import Clipped, ClippedAdam, ClippedAdamW, ClippedSGD
from .thresholds import AdaGC, Constant, MeanStd, Quantile, RatioToWeights, ZClip

__all__ = [
    "AdaGC",
    "Always",
    "Clipped",
    "ClippedAdam",
    "ClippedAdamW",
    "ClippedSGD",
    "Clipping",
    "Constant",
    "MeanStd",
    "Quantile",
    "Randomly",
    "RatioToWeights",
    "ZClip",
    "register_clipping",
]
__version__ = "0.1.0"
