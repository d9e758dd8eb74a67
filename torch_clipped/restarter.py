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

COUNTS = {"steps": 0, "restarts": 0, "window": 1, "window_steps": 0}  # what is counted, from the smallest that it may be


class Restarter:
    """Restart an optimizer from the average of its iterates, in windows that become longer.

        mean_k = mean_(k-1) + (x_k - mean_(k-1)) / k          x_k: the weights after step k of the window

    After the last step of a window the weights become that mean, the optimizer's state is cleared (momentum, moments, step
    counts), as if it had just been made with these weights, and the next window is ``int(window * restart_coeff)`` steps long.
    Once a window is longer than ``max_steps_cnt`` there are no more restarts. Parameters and optimizer stay the same objects,
    so that schedulers, gradient scalers and hooks go on; so does all that stands in ``param_groups``: learning rates and
    the state of clipping.

    Call :meth:`step` after each ``optimizer.step()``. It counts its calls: after a step that a gradient scaler has left out,
    the weights as they are count once more.

    Args:
        optimizer: any optimizer of torch or one derived from them, at any point of its training, that makes its state in
            :meth:`step` when it is not there (one that makes it in the constructor only would miss it).
        first_restart_steps_cnt (int): length of the first window in steps, at least 1. Default: 50.
        restart_coeff (float): growth of the windows, at least 1. Where ``int(window * restart_coeff)`` is the window, as for 1
            to 3 steps and 1.25, they stay as long as they are. Default: 1.25.
        max_steps_cnt (int): length in steps that no window exceeds, at least 1; a first window that does means no restarts.
            Default: 2000.
        average (str): ``"mean"`` restarts from the mean of the window's iterates, ``"last"`` from the last one, so that only the
            optimizer's state is cleared and no copy of the weights is kept. Default: ``"mean"``.
        on_restart: called with the restarter after each restart, when weights, state and the attributes below are what the next
            step will find. Default: None.
        model: the module whose batch normalization :meth:`recalibrate` renews. Default: None.
        optimizer_properties: in place of ``optimizer``, for loops of older code that hand it to :meth:`make_restart`. No
            optimizer is made from them. Default: None.

    Attributes:
        steps (int): how often :meth:`step` was called.
        restarts (int): how many restarts there were.
        window (int): length of the present window in steps.
        window_steps (int): how many of them are done.

    The mean takes one copy of the weights, in float32 for weights of lower precision, however long the window is; it is let go
    with the last restart. In float32 its relative error is below 1e-6 after 2,000 iterates of ordinary noise; of a drift without
    noise it sees what is above 1e-4 of the weight. Each entry is averaged by itself: one whose mean is not finite, because an
    iterate was not, keeps its last iterate. Parameters that do not require gradients, or are no longer those of the optimizer,
    are left as they are; one that is added, unfrozen or given another shape within a window is averaged from then on. To copy a
    restarter, copy its model and optimizer with it: ``deepcopy((model, optimizer, restarter))``.

    Raises:
        TypeError: ``optimizer``, ``optimizer_properties``, ``on_restart`` or ``model`` is something else.
        ValueError: another argument is not what it has to be, or not exactly one of ``optimizer`` and ``optimizer_properties``
            is given.

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
        """Return whether the window is longer than ``max_steps_cnt``, so that there are no more restarts."""
        return self.window > self.max_steps_cnt

    def step(self) -> None:
        """Count a step of the optimizer, and restart if it was the last one of the window.

        Raises:
            ValueError: there is no optimizer yet.
        """
        self.add_coords(self._parameters("step()"))
        self._restart_if_due()

    def add_coords(self, parameters: Iterable[Tensor]) -> None:
        """Count a step and add the weights to the mean: the first half of :meth:`step`, for loops of older code.

        Args:
            parameters: all the weights, such as ``model.parameters()``; the means of others are dropped.

        Raises:
            TypeError: they are no iterable of tensors.
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
        """Restart if the window is over: the second half of :meth:`step`, for loops of older code.

        Args:
            model: the module that is trained, for :meth:`recalibrate`.
            optimizer: the optimizer that trains it.

        Returns:
            The same optimizer.

        Raises:
            TypeError: they are no module and no optimizer.
        """
        if not isinstance(model, Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        _check_optimizer(optimizer)
        self.model, self.optimizer = model, optimizer
        self._restart_if_due()
        return optimizer

    def recalibrate(self, loader: Iterable[object], device: torch.device | str | int | None = None) -> None:
        """Measure the running statistics of the model's batch normalization anew, with one pass over ``loader``.

        After a restart from a mean they belong to weights that are gone. To do it at each restart:
        ``Restarter(optimizer, model=model, on_restart=lambda restarter: restarter.recalibrate(loader))``.

        Args:
            loader: batches as :func:`torch.optim.swa_utils.update_bn` takes them: tensors, or tuples that begin with one.
            device: where to put the batches. Default: None, they stay where they are.

        Raises:
            ValueError: the model is not known, or there are no batches.
        """
        if self.model is None:
            raise ValueError("recalibrate() needs the model: make the restarter with Restarter(optimizer, model=model)")
        batches = iter(loader)
        first = list(islice(batches, 1))
        if not first:  # as from a generator that was used up before: update_bn would leave statistics of nothing
            raise ValueError("loader must give at least one batch each time, got none")
        update_bn(chain(first, batches), self.model, device)  # type: ignore[arg-type]

    def state_dict(self) -> StateDict:
        """Return the state: numbers, and the means as tensors by the position of the parameter in the optimizer.

        Of the constructor's arguments only ``average`` is saved. The tensors are copies, so that the result stays the state of
        this step while training goes on.
        """
        params = self._parameters("state_dict()")
        numbers = {key: getattr(self, key) for key in COUNTS}
        return {"average": self.average} | numbers | self._means.state_dict(params)

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load the state of another restarter; the optimizer's own state is loaded by the optimizer.

        Raises:
            ValueError: the state is of another kind, or of other parameters; the restarter is as it was.
        """
        params = self._parameters("load_state_dict()")
        check_keys("state_dict", state_dict, ("average", *COUNTS, "counts", "means"), "Restarter")
        average = state_dict["average"]
        if not isinstance(average, str) or average != self.average:
            raise ValueError(f"state_dict must be of a Restarter with average={self.average!r}, got {average!r}")
        numbers = {key: integer(key, state_dict[key], smallest) for key, smallest in COUNTS.items()}
        steps, window_steps = numbers["steps"], numbers["window_steps"]
        if steps < window_steps + numbers["restarts"]:  # each window that is over had a step at least
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
        self.window = min(int(min(self.window * self.restart_coeff, 2.0**63)), 2**63 - 1)  # an infinite product is no int
        if self.finished:
            self._means = RunningMeans()
        if self.on_restart is not None:
            self.on_restart(self)


@dataclass(frozen=True)
class RestartProperties(RestartSchedule):
    """Window and average arguments of a :class:`torch_clipped.Restarter`, without the optimizer.

    Args:
        first_restart_steps_cnt, restart_coeff, max_steps_cnt, average: as there.

    Raises:
        ValueError: an argument is not what it has to be.
        TypeError: the first one is a class, as in older code.

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
