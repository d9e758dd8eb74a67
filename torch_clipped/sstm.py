"""Clipped stochastic similar triangles method: accelerated steps whose gradients are clipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from ._engine.clip_sets import ClipSet
from ._engine.sharding import lay_out_gradients, local
from ._engine.types import Group, StateDict
from ._engine.validation import check_fits, check_keys, integer
from ._sstm_state import check_hyperparameters, checked_state_dict
from .mixin import Clipped
from .thresholds import Constant

__all__ = ["ClippedSSTM"]

LOW_PRECISION = (torch.float16, torch.bfloat16)


class _SimilarTriangles(Optimizer):
    """Similar triangles method without clipping. Each parameter counts its own iterations, as in torch's Adam."""

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        L: float,  # noqa: N803 (the formula's letter)
        nu: float = 1,
        a_k_ratio_upper_bound: float = 1.0,
        clipping_iter_start: int | None = None,
    ) -> None:
        first = 1 if clipping_iter_start is None else integer("clipping_iter_start", clipping_iter_start, smallest=1)
        hyperparameters = {"lr": lr, "L": L, "nu": nu, "a_k_ratio_upper_bound": a_k_ratio_upper_bound}
        super().__init__(params, {**hyperparameters, "first_clipped_iteration": first, "train_mode": True})

    def add_param_group(self, param_group: Group) -> None:
        """Add a parameter group, as torch does; the group may have its own hyperparameters."""
        if isinstance(param_group, dict):
            check_hyperparameters({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state, as torch does; raise ValueError, before anything has changed, if an entry is invalid."""
        check_keys("state_dict", state_dict, (), "ClippedSSTM", exact=False)
        check = self.register_load_state_dict_pre_hook(checked_state_dict)  # the last hook: it gets the result of users' hooks
        try:
            super().load_state_dict(state_dict)
        finally:
            check.remove()

    @torch.no_grad()
    def step(self, closure: Callable[[], object] | None = None) -> Any:
        """Perform one iteration; :meth:`ClippedSSTM.step` has already evaluated the closure."""
        for group in self.param_groups:
            alike: dict[tuple[int, float], list[Tensor]] = {}
            for p in _with_gradient(group):
                state = self.state[p]
                if not state:
                    state.update(step=0, A=0.0, y=p.detach().clone(), z=p.detach().clone(), share=1.0)
                alike.setdefault((state["step"], state["A"]), []).append(p)
            for (k, total), members in alike.items():
                self._advance(group, members, k, total)

    def _advance(self, group: Group, params: list[Tensor], k: int, total: float) -> None:
        states = [self.state[p] for p in params]
        lay_out_gradients(params)
        grads = [local(p.grad) for p in params if p.grad is not None]  # torch does not support _foreach_copy_ of DTensors
        y, z = ([local(state[name]) for state in states] for name in "yz")
        weight, total = _weight_and_total(group, k, total)
        torch._foreach_add_(z, grads, alpha=-_step_size(group, k))
        torch._foreach_lerp_(y, z, weight)
        weight, _ = _weight_and_total(group, k + 1, total)
        for state in states:
            state.update(step=k + 1, A=total, share=weight)  # share of z in x: lr may have changed when train() is called
        weights = [local(p) for p in params]
        torch._foreach_copy_(weights, y)
        torch._foreach_lerp_(weights, z, weight)

    @torch.no_grad()
    def eval(self) -> None:
        """Put the result y of the method into the weights; call :meth:`train` before the next step."""
        for p in self._turn(train_mode=False):
            p.copy_(self.state[p]["y"])

    @torch.no_grad()
    def train(self) -> None:
        """Put x, the point of the gradients, into the weights again."""
        for p in self._turn(train_mode=True):
            state = self.state[p]
            p.copy_(state["y"]).lerp_(state["z"], state["share"])

    def _turn(self, train_mode: bool) -> Iterator[Tensor]:
        """Turn the groups to this mode; yield the parameters whose weights differ between the modes."""
        self._follow([group["params"] for group in self.param_groups])
        for group in self.param_groups:
            group["train_mode"] = train_mode
            yield from (p for p in group["params"] if self.state.get(p))

    def _follow(self, params: Sequence[Sequence[Tensor]]) -> None:
        """Convert y and z to the present type and device of each group's parameters; raise ValueError if a shape differs."""
        moved = [
            (i, p, state, name)
            for i, members in enumerate(params)
            for p in members
            if (state := self.state.get(p))
            for name in "yz"
            if state[name].dtype is not p.dtype or state[name].shape != p.shape or state[name].device != p.device
        ]
        for i, p, state, name in moved:
            check_fits(f"{name} in the state of parameter group {i}", state[name], p)
        for _, p, state, name in moved:
            state[name] = state[name].to(p.device, p.dtype)


class ClippedSSTM(Clipped, _SimilarTriangles):
    """Clipped stochastic similar triangles method: accelerated SGD for convex problems with heavy-tailed noise.

    With k = 0, 1, ..., A_0 = 0, y_0 = z_0 = x_0 the first weights, and a = 1 / lr:

        alpha_{k+1} = (k+1)^(2 nu / (1 + nu)) / (2 a L)         A_{k+1} = A_k + alpha_{k+1}
        x_{k+1} = (A_k y_k + alpha_{k+1} z_k) / A_{k+1}         g = clip(gradient at x_{k+1}, level / alpha_{k+1})
        z_{k+1} = z_k - alpha_{k+1} g                           y_{k+1} = (A_k y_k + alpha_{k+1} z_{k+1}) / A_{k+1}

    The weights hold x during training. The result of the method is y: ``optimizer.eval()`` puts y into the weights before
    validation or saving, ``optimizer.train()`` puts x back.

    The threshold is ``clipping_level / alpha_{k+1}`` for the clipping types whose level is a norm (``norm``, ``layer_wise``,
    ``coord_wise``, ``linear_rand_norm``, ``quadratic_rand_norm``), so that no clipped block moves z further than the level. If
    the parameters of a clip set that have a gradient differ in alpha, the largest alpha counts. Types with a threshold from data
    (quantiles, z-scores, ratios) clip at that threshold.

    Args:
        params: parameters or parameter groups, in float32 or float64, real or complex, with dense gradients.
        lr: 1 / a, at least 0. In the theory lr is at most 1. A value written to ``param_groups`` applies from the next step.
        L: Lipschitz constant of the gradient, or its Hoelder constant for nu < 1, positive; see :func:`estimate_lipschitz`.
        nu: Hoelder exponent of the gradient, from 0 to 1. Default: 1, a smooth function.
        a_k_ratio_upper_bound: bound r of A_k / A_{k+1}, in (0, 1]: A_k is kept at or below alpha_{k+1} r / (1 - r), so that the
            share of new iterates in y is at least 1 - r, unless lr is 0. Default: 1.0, no bound.
        clipping_iter_start: the first clipped iteration, counted from 1; norms are recorded before it. The number is in
            ``param_groups`` as ``first_clipped_iteration``. (The authors' experiments use a number of this name to choose the
            level.) Default: None, the first.
        clipping_type, clipping_level, clipping_action, clipping_cap, clipping_warmup, clipping_set: as in :class:`Clipped`.
        clipping_beta, clipping_window, norm_type, nonfinite, clipping_seed: as in :class:`Clipped`.

    Raises:
        ValueError: an argument is invalid; in :meth:`step`, the shape of a parameter has changed
            (``del optimizer.state[parameter]`` starts anew with the parameter).
        TypeError: in :meth:`step`, a parameter in half precision or a sparse gradient.
        RuntimeError: :meth:`step` between ``eval()`` and ``train()``.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedSSTM
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = ClippedSSTM([weight], lr=1.0, L=1.0, clipping_level=1.0)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().div(2).backward()
        ...     optimizer.step()
        >>> optimizer.eval()
        >>> weight.norm().item() < 0.01
        True

    References:
        Eduard Gorbunov, Marina Danilova, Alexander Gasnikov, Stochastic Optimization with Heavy-Tailed Noise via Accelerated
        Gradient Clipping, 2020, https://arxiv.org/abs/2005.10785.

        Eduard Gorbunov, Marina Danilova, Innokentiy Shibaev, Pavel Dvurechensky, Alexander Gasnikov, Near-Optimal High
        Probability Complexity Bounds for Non-Smooth Stochastic Optimization with Heavy-Tailed Noise, 2021,
        https://arxiv.org/abs/2106.05958 (nu < 1).
    """

    def step(self, closure: Callable[[], object] | None = None) -> Any:
        """Evaluate the closure, if there is one, clip the gradients in place and perform one iteration.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            The result of the closure, or None.
        """
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError("step() was called after optimizer.eval(): call optimizer.train() before gradients are computed")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        stepped = [_with_gradient(group) for group in self.param_groups]
        for p in chain.from_iterable(stepped):
            _refuse_what_cannot_be_averaged(p)  # before anything is changed
        self._follow(stepped)
        for clip_set in self._clip_sets()[0]:
            clip_set.threshold_scale = self._threshold_scale(clip_set)
        super().step()
        return loss

    def _threshold_scale(self, clip_set: ClipSet) -> float:
        """Return 1 / alpha of the next iteration if the level is a norm; inf before the first clipped iteration."""
        done = [(group, self.state.get(p, {}).get("step", 0)) for group in clip_set.groups for p in _with_gradient(group)]
        if all(k + 1 < group["first_clipped_iteration"] for group, k in done):
            return math.inf
        alpha = max((_step_size(group, k) for group, k in done), default=0.0)
        return 1 / alpha if alpha > 0 and isinstance(clip_set.rule.threshold, Constant) else 1.0


def _with_gradient(group: Group) -> list[Tensor]:
    return [p for p in group["params"] if p.grad is not None]


def _step_size(group: Group, k: int) -> float:
    """Return alpha_{k+1}."""
    nu, lr = group["nu"], max(group["lr"], 0.0)  # schedulers that end at 0 may return -1e-18
    return float(lr / (2 * group["L"]) * (k + 1) ** (2 * nu / (1 + nu)))


def _weight_and_total(group: Group, k: int, total: float) -> tuple[float, float]:
    """Return alpha_{k+1} / A_{k+1} and A_{k+1}, from A_k."""
    alpha, ratio = _step_size(group, k), group["a_k_ratio_upper_bound"]
    if ratio < 1 and alpha > 0:  # an lr of 0 does not move y
        total = min(total, alpha * ratio / (1 - ratio))
    total += alpha
    return (alpha / total if total > 0 else 1.0), total


def _refuse_what_cannot_be_averaged(p: Tensor) -> None:
    if p.dtype in LOW_PRECISION:
        raise TypeError(
            f"params must be float32 or float64, got {p.dtype}, in which averages with weights like 2 / k stand still: keep the "
            "weights in float32 and use torch.autocast"
        )
    if p.grad is not None and p.grad.shape != p.shape:
        raise ValueError(f"gradients must have the shapes of their parameters, {tuple(p.shape)}, got {tuple(p.grad.shape)}")
    if p.grad is not None and p.grad.is_sparse:
        raise TypeError("gradients must be dense, got a sparse one: every weight moves in every step of this method")
