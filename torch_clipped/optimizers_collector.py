"""Comparison of optimizers from one start: a collector that trains them side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from ._engine.compat import fork_random_state
from ._engine.validation import integer
from ._metrics import Batch, Metrics, checked_metrics, seed_generators, values_of
from ._older_names import older_name
from .mixin import Clipped
from .properties import ModelProperties, OptimizerProperties
from .restarter import RestartProperties

__all__ = ["ModelProperties", "OptimizerProperties", "OptimizersCollector", "Point", "RestartProperties"]
__getattr__ = older_name(__name__)

Contender = OptimizerProperties | tuple[OptimizerProperties, RestartProperties]


class Point(NamedTuple):
    """Value of a curve."""

    label: str  # of the optimizer
    phase: str  # "train" or "validation"
    step: int  # number of earlier steps
    name: str  # "loss", "grad_norm", "restart", or the name of a metric
    value: float


class OptimizersCollector:
    """Train one model with several optimizers, each from the same weights and buffers, on the same batches.

    Each optimizer has a deep copy of one model made under ``seed``. The random numbers of a step (dropout) are drawn from torch's
    generators, seeded by ``seed`` and the step count before each evaluation of the loss: every optimizer gets the same numbers,
    with any other optimizers beside it. Afterwards the state of the generators is restored. Random numbers of Python and numpy
    are not controlled.

    Args:
        model_properties: the model to train.
        contenders: the optimizers: :class:`OptimizerProperties`, or pairs of them and :class:`RestartProperties`.
        seed (int): seed of the model's weights and of the random numbers of each step, at least 0. Default: 0.

    Attributes:
        models (dict): the model of each label, for evaluation.
        optimizers (dict): the optimizer of each label, for schedulers.
        restarters (dict): the restarter of each label that has one.
        losses (dict): for each label the losses of all steps so far, before the update (floats).
        history (list): all losses, metrics, restarts, and gradient norms before clipping (of the last evaluation in a step) so
            far, each a :class:`torch_clipped.optimizers_collector.Point`. :mod:`torch_clipped.plots` draws the history,
            :meth:`to_csv` writes it to a file.

    Raises:
        ValueError: there are no contenders, or two with the same label.
        TypeError: an argument has the wrong type.

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
            seed_generators(self.seed)
            model = model_properties.make()
        if not isinstance(model, Module):
            raise TypeError(f"model_class must return a torch.nn.Module, got {type(model).__name__}")
        self.models = {label: deepcopy(model) for label in pairs}
        self.optimizers = {label: optimizer.make(self.models[label].parameters()) for label, (optimizer, _) in pairs.items()}
        self.restarters = {
            label: restart.make(self.optimizers[label]) for label, (_, restart) in pairs.items() if restart is not None
        }
        self.losses: dict[str, list[float]] = {label: [] for label in pairs}
        self.history: list[Point] = []
        self._steps = 0

    def __getattr__(self, name: str) -> Any:
        message = {
            "nets": "the models are collector.models, a dict by label",
            "get_optimizer_objects": "the optimizers are collector.optimizers, a dict by label",
            "get_names_optimizers": "the labels are list(collector.optimizers)",
        }.get(name, "")
        raise AttributeError(f"OptimizersCollector has no {name!r}{message and ': '}{message}")

    def step(
        self, batch: Batch, loss_function: Callable[[Module, Batch], Tensor], metrics: Metrics[Batch] | None = None
    ) -> dict[str, float]:
        """Let each optimizer take one step on the same batch, in their order.

        After an exception the later optimizers are one step behind.

        Args:
            batch: a batch for ``loss_function``.
            loss_function: function of a model and the batch that returns the loss to minimize, a tensor with one element. LBFGS
                calls it more than once.
            metrics: functions of a model and the batch by name; their values are kept in ``history``. They are evaluated before
                the step, in evaluation mode and without gradients. Default: None, no metrics.

        Returns:
            The loss of each label, before its step.

        Raises:
            ValueError: a metric has the name of another curve, or its value has several elements.
            TypeError: ``metrics`` is not a mapping from names to functions.
        """
        chosen = checked_metrics(metrics)
        seed_of_step = int(np.random.SeedSequence([self.seed, self._steps]).generate_state(1, np.uint64)[0])
        for label, optimizer in self.optimizers.items():
            model, seen = self.models[label], list[Tensor]()

            def closure(optimizer: Optimizer = optimizer, model: Module = model, seen: list[Tensor] = seen) -> Tensor:
                seed_generators(seed_of_step)
                optimizer.zero_grad()
                loss = loss_function(model, batch)
                loss.backward()  # type: ignore[no-untyped-call]
                seen.append(loss.detach())
                return loss

            restarter = self.restarters.get(label)
            with fork_random_state():
                values = values_of(model, batch, chosen, seed_of_step)
                restarts = restarter.restarts if restarter else 0
                counts = _norm_and_counts(optimizer)[1:]
                optimizer.step(closure)  # type: ignore[arg-type]
                if restarter:
                    restarter.step()
            values = {"loss": float(seen[0]), **values}
            norm, *now = _norm_and_counts(optimizer)
            if now != counts:
                values["grad_norm"] = norm if now[0] != counts[0] else math.nan
            self.history += [Point(label, "train", len(self.losses[label]), name, value) for name, value in values.items()]
            self.losses[label].append(values["loss"])
            if restarter and restarter.restarts > restarts:
                self.history.append(Point(label, "train", len(self.losses[label]), "restart", restarter.restarts))
        self._steps += 1
        return {label: losses[-1] for label, losses in self.losses.items()}

    def evaluate(
        self, loader: Iterable[Batch], loss_function: Callable[[Module, Batch], Tensor], metrics: Metrics[Batch] | None = None
    ) -> dict[str, dict[str, float]]:
        """Evaluate each model on the batches of a loader, in evaluation mode and without gradients.

        Args:
            loader: the batches, iterated once.
            loss_function: function of a model and a batch that returns the loss.
            metrics: functions of a model and a batch by name. Default: None, the loss alone.

        Returns:
            For each label the loss and the metrics by name, as means over the batches. They are also kept in ``history``.

        Raises:
            ValueError: there is no batch, a metric has the name of another curve, or its value has several elements.
            TypeError: ``metrics`` is not a mapping from names to functions.
        """
        chosen = {"loss": loss_function, **checked_metrics(metrics)}
        sums = {label: dict.fromkeys(chosen, 0.0) for label in self.models}
        count = 0
        for batch in loader:  # the loader may draw from torch's generators
            count += 1
            with fork_random_state():
                for label, model in self.models.items():
                    for name, value in values_of(model, batch, chosen, self.seed).items():
                        sums[label][name] += value
        if not count:
            raise ValueError("loader must hold at least one batch, got none")
        means = {label: {name: total / count for name, total in own.items()} for label, own in sums.items()}
        self.history += [
            Point(label, "validation", self._steps, name, value) for label, own in means.items() for name, value in own.items()
        ]
        return means

    def to_csv(self, path: str | Path) -> None:
        """Write ``history`` to a new csv file with the columns label, phase, step, name, value.

        Raises:
            ValueError: the file exists already.
        """
        import csv

        if Path(path).exists():
            raise ValueError(f"path must be a new file, but there is {str(path)!r}")
        with open(path, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Point._fields)
            writer.writerows(self.history)

    def grad_norms(self) -> dict[str, Tensor]:
        """Return the recorded norms of each optimizer that clips: see :meth:`torch_clipped.Clipped.grad_norms`."""
        return {label: o.grad_norms() for label, o in self.optimizers.items() if isinstance(o, Clipped)}


def _norm_and_counts(optimizer: Optimizer) -> list[float]:
    """Return the norm of the last gradient, and the numbers of counted and skipped steps."""
    if not isinstance(optimizer, Clipped):
        return [math.nan, 0, 0]
    found = optimizer.clipping_stats()
    return [found["grad_norm"], found["steps"], found["skipped_steps"]]


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
