"""Restarts of an optimizer from the average of its last iterates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import chain, islice

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.swa_utils import update_bn

from ._engine.compat import clear_state
from ._engine.types import StateDict
from ._engine.validation import check_keys, integer
from ._running_means import RunningMeans
from .properties import OptimizerProperties, RestartSchedule

__all__ = ["RestartProperties", "Restarter"]

COUNTS = {"steps": 0, "restarts": 0, "window": 1, "window_steps": 0}  # counts, with the smallest value of each


class Restarter:
    """Restart an optimizer from the average of its iterates, in windows of growing length.

        mean_k = mean_(k-1) + (x_k - mean_(k-1)) / k          x_k: the weights after step k of the window

    After the last step of a window the weights become that mean, and the optimizer's state (momentum, moments, step counts) is
    cleared, as in a new optimizer. The next window has ``int(window * restart_coeff)`` steps. Once a window is longer than
    ``max_steps_cnt`` there are no more restarts. Parameters and optimizer stay the same objects, so schedulers, gradient scalers
    and hooks continue to work. All entries of ``param_groups`` keep their values, such as learning rates and the state of
    clipping.

    Call :meth:`step` after each ``optimizer.step()``. The restarter counts these calls: after a step that a gradient scaler has
    skipped, the unchanged weights count once more.

    Args:
        optimizer: any torch optimizer, at any point of its training, that makes missing state in its ``step``. (An optimizer
            that makes its state only in the constructor is not supported.)
        first_restart_steps_cnt (int): length of the first window in steps, at least 1. Default: 50.
        restart_coeff (float): growth of the windows, at least 1. If ``int(window * restart_coeff)`` equals the window, as for 1
            to 3 steps and 1.25, all later windows have the same length. Default: 1.25.
        max_steps_cnt (int): the largest length of a window in steps, at least 1. If the first window is longer, there are no
            restarts. Default: 2000.
        average (str): ``"mean"`` restarts from the mean of the window's iterates. ``"last"`` restarts from the last iterate: only
            the optimizer's state is cleared, and no copy of the weights is kept. Default: ``"mean"``.
        on_restart: a function of the restarter, called at the end of each restart, when weights, state and the attributes below
            are set for the next step. Default: None.
        model: the module whose batch normalization :meth:`recalibrate` updates. Default: None.
        optimizer_properties: given instead of ``optimizer`` by older code that passes the optimizer to :meth:`make_restart`. No
            optimizer is made from them. Default: None.

    Attributes:
        steps (int): number of calls of :meth:`step`.
        restarts (int): number of restarts.
        window (int): length of the present window in steps.
        window_steps (int): number of steps taken in the present window.

    The mean takes one copy of the weights, in float32 for weights of lower precision, however long the window is. The copy is
    freed at the last restart. In float32 the relative error of the mean is below 1e-6 after 2,000 iterates of ordinary noise; a
    drift without noise is noticed above 1e-4 of the weight. Each entry is averaged separately: an entry whose mean is not finite,
    because an iterate was not, keeps its last iterate. Parameters that do not require gradients, or are no longer in the
    optimizer, are not changed. A parameter that is added, unfrozen or reshaped within a window is averaged from then on. To copy
    a restarter, copy its model and optimizer with it: ``deepcopy((model, optimizer, restarter))``.

    Raises:
        TypeError: ``optimizer``, ``optimizer_properties``, ``on_restart`` or ``model`` has the wrong type.
        ValueError: another argument is invalid, or not exactly one of ``optimizer`` and ``optimizer_properties`` is given.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedSGD, Restarter
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = ClippedSGD(model.parameters(), lr=5e-2, momentum=0.9)
        >>> restarter = Restarter(optimizer, first_restart_steps_cnt=4, restart_coeff=1.5, max_steps_cnt=6)
        >>> for _ in range(20):
        ...     model(torch.ones(2, 3)).square().sum().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     restarter.step()
        >>> restarter.restarts, restarter.window, restarter.finished  # after steps 4 and 10; 9 is longer than 6
        (2, 9, True)

    References:
        Eduard Gorbunov, Marina Danilova, Alexander Gasnikov, "Stochastic Optimization with Heavy-Tailed Noise via Accelerated
        Gradient Clipping", 2020 (R-clipped-SGD), https://arxiv.org/abs/2005.10785
    """

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        first_restart_steps_cnt: int = 50,
        restart_coeff: float = 1.25,
        max_steps_cnt: int = 2000,
        *,
        average: str = "mean",
        on_restart: Callable[[Restarter], object] | None = None,
        model: Module | None = None,
        optimizer_properties: OptimizerProperties | None = None,
    ) -> None:
        if (optimizer is None) == (optimizer_properties is None):
            given = "neither" if optimizer is None else "both"
            raise ValueError(f"Restarter needs one of optimizer and optimizer_properties, got {given}")
        if optimizer is not None:
            _check_optimizer(optimizer)
        elif not isinstance(optimizer_properties, OptimizerProperties):
            raise TypeError(f"optimizer_properties must be OptimizerProperties, got {type(optimizer_properties).__name__}")
        if on_restart is not None and not callable(on_restart):
            raise TypeError(f"on_restart must be a function of the restarter or None, got {on_restart!r}")
        if model is not None and not isinstance(model, Module):
            raise TypeError(f"model must be a torch.nn.Module or None, got {type(model).__name__}")
        schedule = RestartSchedule(first_restart_steps_cnt, restart_coeff, max_steps_cnt, average)
        self.restart_coeff, self.max_steps_cnt = schedule.restart_coeff, schedule.max_steps_cnt
        self.window, self.average = schedule.first_restart_steps_cnt, schedule.average
        self.optimizer = optimizer
        self.on_restart = on_restart
        self.model = model
        self.steps = self.restarts = self.window_steps = 0
        self._means = RunningMeans()

    @property
    def finished(self) -> bool:
        """Return whether the window is longer than ``max_steps_cnt``; then there are no more restarts."""
        return self.window > self.max_steps_cnt

    def step(self) -> None:
        """Count a step of the optimizer, and restart if it was the last one of the window.

        Raises:
            ValueError: there is no optimizer yet.
        """
        self.add_coords(self._parameters("step()"))
        self._restart_if_due()

    def add_coords(self, parameters: Iterable[Tensor]) -> None:
        """Count a step and add the weights to the mean: the first half of :meth:`step`, for older code.

        Args:
            parameters: all weights, such as ``model.parameters()``; the means of other parameters are dropped.

        Raises:
            TypeError: ``parameters`` is not an iterable of tensors.
        """
        if isinstance(parameters, Tensor) or not isinstance(parameters, Iterable):
            raise TypeError(f"parameters must be an iterable of tensors, got a {type(parameters).__name__}")
        params = list(dict.fromkeys(parameters))
        if wrong := [p for p in params if not isinstance(p, Tensor)]:
            raise TypeError(f"parameters must be an iterable of tensors, got a {type(wrong[0]).__name__} in it")
        if not self.finished:
            if self.average == "mean":
                self._means.add(params)
            self.window_steps += 1
        self.steps += 1

    def make_restart(self, model: Module, optimizer: Optimizer) -> Optimizer:
        """Restart if the window is over: the second half of :meth:`step`, for older code.

        Args:
            model: the trained module, for :meth:`recalibrate`.
            optimizer: the optimizer of the module.

        Returns:
            The same optimizer.

        Raises:
            TypeError: ``model`` is not a module, or ``optimizer`` is not an optimizer.
        """
        if not isinstance(model, Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        _check_optimizer(optimizer)
        self.model, self.optimizer = model, optimizer
        self._restart_if_due()
        return optimizer

    def recalibrate(self, loader: Iterable[object], device: torch.device | str | int | None = None) -> None:
        """Measure the running statistics of the model's batch normalization again, with one pass over ``loader``.

        After a restart from a mean these statistics belong to earlier weights. To update them at each restart:
        ``Restarter(optimizer, model=model, on_restart=lambda restarter: restarter.recalibrate(loader))``.

        Args:
            loader: batches as :func:`torch.optim.swa_utils.update_bn` takes them: tensors, or tuples that begin with a tensor.
            device: the device to which batches are moved. Default: None, they are not moved.

        Raises:
            ValueError: the restarter has no model, or there are no batches.
        """
        if self.model is None:
            raise ValueError("recalibrate() needs the model: make the restarter with Restarter(optimizer, model=model)")
        batches = iter(loader)
        first = list(islice(batches, 1))
        if not first:  # such as an exhausted generator: update_bn would leave statistics of no batch
            raise ValueError("loader must give at least one batch each time, got none")
        update_bn(chain(first, batches), self.model, device)  # type: ignore[arg-type]

    def state_dict(self) -> StateDict:
        """Return the state: numbers, and the means as tensors by the position of the parameter in the optimizer.

        Of the constructor's arguments only ``average`` is saved. The tensors are copies, which later steps do not change.
        """
        params = self._parameters("state_dict()")
        numbers = {key: getattr(self, key) for key in COUNTS}
        return {"average": self.average} | numbers | self._means.state_dict(params)

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load the state of another restarter; the optimizer's own state is loaded by the optimizer.

        Raises:
            ValueError: the state is not that of a restarter, or belongs to other parameters; the restarter has not changed.
        """
        params = self._parameters("load_state_dict()")
        check_keys("state_dict", state_dict, ("average", *COUNTS, "counts", "means"), "Restarter")
        average = state_dict["average"]
        if not isinstance(average, str) or average != self.average:
            raise ValueError(f"state_dict must be of a Restarter with average={self.average!r}, got {average!r}")
        numbers = {key: integer(key, state_dict[key], smallest) for key, smallest in COUNTS.items()}
        steps, window_steps = numbers["steps"], numbers["window_steps"]
        if steps < window_steps + numbers["restarts"]:  # each finished window has at least one step
            raise ValueError(
                f"steps must be at least window_steps + restarts = {window_steps + numbers['restarts']}, got {steps}"
            )
        means = RunningMeans.from_state_dict(state_dict, params, 0 if average == "last" else window_steps)
        vars(self).update(numbers)
        self._means = RunningMeans() if self.finished else means

    def _parameters(self, caller: str) -> list[Tensor]:
        if self.optimizer is None:
            raise ValueError(f"{caller} needs the optimizer: give it to Restarter or call make_restart(model, optimizer) first")
        return list(dict.fromkeys(p for group in self.optimizer.param_groups for p in group["params"]))

    def _restart_if_due(self) -> None:
        if self.finished or self.window_steps < self.window:
            return
        assert self.optimizer is not None
        self._means.write_back_()
        clear_state(self.optimizer)
        self.restarts += 1
        self.window_steps = 0
        self.window = min(int(min(self.window * self.restart_coeff, 2.0**63)), 2**63 - 1)  # int() of an infinite product raises
        if self.finished:
            self._means = RunningMeans()
        if self.on_restart is not None:
            self.on_restart(self)


@dataclass(frozen=True)
class RestartProperties(RestartSchedule):
    """Window and average arguments of a :class:`torch_clipped.Restarter`, without the optimizer.

    Args:
        first_restart_steps_cnt, restart_coeff, max_steps_cnt, average: as in :class:`torch_clipped.Restarter`.

    Raises:
        ValueError: an argument is invalid.
        TypeError: the first argument is a class, as in older code.

    Example:
        >>> from torch_clipped import RestartProperties
        >>> RestartProperties(100, max_steps_cnt=1000).label()
        'restarts 100 x 1.25 to 1000'
    """

    def __post_init__(self) -> None:
        if isinstance(self.first_restart_steps_cnt, type):
            raise TypeError(
                f"RestartProperties takes no class any more, got {self.first_restart_steps_cnt.__name__}: write "
                "RestartProperties(first_restart_steps_cnt, restart_coeff, max_steps_cnt)"
            )
        super().__post_init__()

    def make(self, optimizer: Optimizer) -> Restarter:
        """Return a restarter of this optimizer."""
        return Restarter(optimizer, **asdict(self))


def _check_optimizer(optimizer: object) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
