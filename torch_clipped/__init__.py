"""Gradient clipping inside the optimizer: replace ``torch.optim.SGD`` by ``ClippedSGD``; nothing else changes."""

from ._engine.monitor import ClippingWarning
from ._older_names import older_name
from .clipping import Clipping, ClippingType, register_clipping
from .decisions import Always, Randomly
from .functional import GradientClipper, clip_gradients_
from .groups import groups_by_module
from .levels import LevelScheduler, linear_warmup, multiple_at_start, suggest_level
from .lipschitz import estimate_lipschitz
from .optimizers import Clipped, ClippedAdam, ClippedAdamW, ClippedSGD, clip_optimizer
from .optimizers_collector import ModelProperties, OptimizerProperties, OptimizersCollector, RestartProperties
from .recorder import NormRecorder
from .restarter import Restarter
from .sstm import ClippedSSTM
from .thresholds import AdaGC, Constant, MeanStd, Quantile, RatioToWeights, ZClip

__all__ = [
    "AdaGC",
    "Always",
    "Clipped",
    "ClippedAdam",
    "ClippedAdamW",
    "ClippedSGD",
    "ClippedSSTM",
    "Clipping",
    "ClippingType",
    "ClippingWarning",
    "Constant",
    "GradientClipper",
    "LevelScheduler",
    "MeanStd",
    "ModelProperties",
    "NormRecorder",
    "OptimizerProperties",
    "OptimizersCollector",
    "Quantile",
    "Randomly",
    "RatioToWeights",
    "RestartProperties",
    "Restarter",
    "ZClip",
    "clip_gradients_",
    "clip_optimizer",
    "estimate_lipschitz",
    "groups_by_module",
    "linear_warmup",
    "multiple_at_start",
    "register_clipping",
    "suggest_level",
]
__version__ = "0.2.0"
__getattr__ = older_name(__name__)
