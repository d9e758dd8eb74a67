"""Optimizers compared from one start: what they are made of, and the collector that trains them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from ._engine.compat import current_accelerator, fork_random_state
from ._engine.validation import integer
from .mixin import Clipped
from .properties import ModelProperties, OptimizerProperties
from .restarter import RestartProperties

__all__ = ["ModelProperties", "OptimizerProperties", "OptimizersCollector", "RestartProperties"]

Batch = TypeVar("Batch")


Contender = OptimizerProperties | tuple[OptimizerProperties, RestartProperties]


class OptimizersCollector:
    """Trains one model with several optimizers, each from the same weights and buffers, on the same batches.

    Each optimizer has a deep copy of the one model made under ``seed``. The random numbers of a step (dropout) are drawn from
    torch's generators, seeded by ``seed`` and the step count before each evaluation of the loss: every optimizer meets the same
    ones, and none notices which others there are. Afterwards the generators are put back to where they were. Random numbers of
    Python and numpy are not looked after.

    Args:
        model_properties: the model to train.
        contenders: what to train it with: :class:`OptimizerProperties`, or pairs of them and :class:`RestartProperties`.
        seed (int): seed of the model's weights and of the random numbers of each step, at least 0. Default: 0.

    Attributes:
        models (dict): the model of each label, to evaluate.
        optimizers (dict): the optimizer of each label, to schedule.
        restarters (dict): the restarter of each label that has one.
        losses (dict): for each label the losses of all steps so far, before the update (floats).

    Raises:
        ValueError: there are no contenders, or two with the same label.
        TypeError: an argument is something else.

    Example:
        >>> import torch
        >>> from torch.optim import SGD
        >>> from torch_clipped import ClippedSGD, ModelProperties, OptimizerProperties, OptimizersCollector, RestartProperties
        >>> collector = OptimizersCollector(
        ...     ModelProperties(torch.nn.Linear, 3, 1),
        ...     [OptimizerProperties(SGD, lr=0.1), (OptimizerProperties(ClippedSGD, lr=0.1), RestartProperties(2))],
        ... )
        >>> for batch in torch.ones(4, 8, 3):
        ...     losses = collector.step(batch, lambda model, batch: (model(batch) - 1).square().mean())
        >>> list(losses)
        ['SGD, lr 0.1', 'ClippedSGD, lr 0.1, restarts 2 x 1.25 to 2000']
        >>> collector.restarters["ClippedSGD, lr 0.1, restarts 2 x 1.25 to 2000"].restarts
        2
    """

    def __init__(self, model_properties: ModelProperties, contenders: Sequence[Contender], seed: int = 0) -> None:
        if not isinstance(model_properties, ModelProperties):
            raise TypeError(f"model_properties must be ModelProperties, got {type(model_properties).__name__}")
        pairs = _labelled(contenders)
        self.seed = integer("seed", seed, smallest=0)
        with fork_random_state():
            _seed(self.seed)
            model = model_properties.make()
        if not isinstance(model, Module):
            raise TypeError(f"model_class must return a torch.nn.Module, got {type(model).__name__}")
        self.models = {label: deepcopy(model) for label in pairs}
        self.optimizers = {label: optimizer.make(self.models[label].parameters()) for label, (optimizer, _) in pairs.items()}
        self.restarters = {
            label: restart.make(self.optimizers[label]) for label, (_, restart) in pairs.items() if restart is not None
        }
        self.losses: dict[str, list[float]] = {label: [] for label in pairs}
        self._steps = 0

    def step(self, batch: Batch, loss_function: Callable[[Module, Batch], Tensor]) -> dict[str, float]:
        """Let each optimizer take one step on the same batch, in their order: an exception leaves the later ones a step behind.

        Args:
            batch: whatever ``loss_function`` understands.
            loss_function: takes a model and the batch, returns the loss to minimize, a tensor with one element. LBFGS calls it
                more than once.

        Returns:
            The loss of each label, before its step.
        """
        seed_of_step = int(np.random.SeedSequence([self.seed, self._steps]).generate_state(1, np.uint64)[0])
        self._steps += 1
        for label, optimizer in self.optimizers.items():
            model, seen = self.models[label], list[Tensor]()

            def closure(optimizer: Optimizer = optimizer, model: Module = model, seen: list[Tensor] = seen) -> Tensor:
                _seed(seed_of_step)
                optimizer.zero_grad()
                loss = loss_function(model, batch)
                loss.backward()  # type: ignore[no-untyped-call]
                seen.append(loss.detach())
                return loss

            with fork_random_state():
                optimizer.step(closure)  # type: ignore[arg-type]
                if label in self.restarters:
                    self.restarters[label].step()
            self.losses[label].append(float(seen[0]))
        return {label: losses[-1] for label, losses in self.losses.items()}

    def grad_norms(self) -> dict[str, Tensor]:
        """The gradient norms before clipping of each optimizer that clips: see :meth:`torch_clipped.Clipped.grad_norms`."""
        return {label: o.grad_norms() for label, o in self.optimizers.items() if isinstance(o, Clipped)}


def _labelled(contenders: Sequence[Contender]) -> dict[str, tuple[OptimizerProperties, RestartProperties | None]]:
    pairs: dict[str, tuple[OptimizerProperties, RestartProperties | None]] = {}
    for i, contender in enumerate(contenders):
        pair = contender if isinstance(contender, tuple) else (contender, None)
        right = len(pair) == 2 and isinstance(pair[0], OptimizerProperties) and isinstance(pair[1], RestartProperties | None)
        if not right:
            wanted = "OptimizerProperties, or a pair of them and RestartProperties"
            raise TypeError(f"contender {i} must be {wanted}, got {contender!r}")
        label = pair[0].label() + (f", {pair[1].label()}" if pair[1] is not None else "")
        if label in pairs:
            raise ValueError(f"contenders {list(pairs).index(label)} and {i} must differ, but both are {label!r}")
        pairs[label] = pair
    if not pairs:
        raise ValueError("contenders must hold at least one OptimizerProperties, got none")
    return pairs


def _seed(seed: int) -> None:
    """What torch.manual_seed does, which without an accelerator spends most of its time on a stack trace."""
    if current_accelerator() is None:
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
