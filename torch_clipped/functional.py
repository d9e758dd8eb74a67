"""Clipping functions for training loops without an optimizer that clips: the same engine, called between backward and step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ._engine.arguments import ADDED, ARGUMENT_NAMES, OF_THE_TYPE, Arguments
from ._engine.arrays import as_tensor
from ._engine.checks import refuse_pieces
from ._engine.clip_sets import ClipSet
from ._engine.current_sets import CurrentSets
from ._engine.state import check_memory, common_device, copied, install, is_memory, prepared_memory
from ._engine.statistics import TotalStatistics
from ._engine.step import clip_
from ._engine.types import Group, StateDict
from ._engine.validation import hinted
from .clipping import CLIPPING_TYPES, ClippingType
from .decisions import Always

__all__ = ["GradientClipper", "clip_gradients_"]


class GradientClipper:
    """Clip the gradients of parameters in each call of :meth:`step`, and keep the state of the clipping type.

    Call :meth:`step` after ``backward()`` (and, under a gradient scaler, after ``scaler.unscale_(optimizer)``) and before
    ``optimizer.step()``.

    Args:
        parameters: a tensor or an iterable of tensors; their ``grad`` is clipped in place.
        clipping_type, clipping_level, clipping_cap, clipping_warmup: as in :class:`torch_clipped.Clipped`.
        clipping_beta, clipping_window, norm_type, clipping_seed: as in :class:`torch_clipped.Clipped`.
        clipping_action, nonfinite: as in :class:`torch_clipped.Clipped`, but a clipper has no step to skip. With ``"skip"`` the
            gradients are not changed, and ``clipper.skip``, a 0-dimensional bool tensor, is true after such a :meth:`step`.

    Raises:
        ValueError: an argument is invalid, or there are no parameters.

    Example:
        >>> import torch
        >>> from torch_clipped import GradientClipper
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> clipper = GradientClipper(model.parameters(), "auto", clipping_level=0.9)
        >>> model(torch.ones(2, 3)).sum().backward()
        >>> norm = clipper.step()
        >>> optimizer.step()
    """

    @hinted
    def __init__(
        self,
        parameters: Tensor | Iterable[Tensor],
        clipping_type: ClippingType | str = "norm",
        clipping_level: float | None = None,
        *,
        clipping_action: str = "clip",
        clipping_cap: float | None = None,
        clipping_warmup: int | None = None,
        clipping_beta: float = 0.85,
        clipping_window: int = 1000,
        norm_type: float = 2.0,
        nonfinite: str = "skip",
        clipping_seed: int = 0,
    ) -> None:
        arguments = Arguments(
            *(clipping_type, clipping_level, clipping_action, clipping_cap, clipping_warmup, None),
            *(clipping_beta, clipping_window, norm_type, nonfinite, clipping_seed),
        )
        self._group = _group(parameters, Arguments.of(arguments.as_dict()))
        self._current_sets = CurrentSets()
        self.skip = torch.zeros((), dtype=torch.bool, device="cpu")

    def __getstate__(self) -> StateDict:
        self._current_sets.put_back()
        return {"_group": self._group, "skip": self.skip}

    def __setstate__(self, state: StateDict) -> None:
        self._group = {name: Arguments().as_dict()[name] for name in ADDED} | state["_group"]  # pickled by version 0.1
        self._current_sets, self.skip = CurrentSets(), state.get("skip", torch.zeros((), dtype=torch.bool, device="cpu"))

    def step(self) -> Tensor:
        """Clip the gradients in place; return their norm before clipping, a 0-dimensional tensor."""
        norm, self.skip = _clip(self._group, *self._current_sets.of([self._group]))
        return norm

    def clipping_stats(self) -> dict[str, float]:
        """Return the clipping statistics: see :meth:`torch_clipped.Clipped.clipping_stats`."""
        return self._current_sets.of([self._group])[1].statistics()

    def grad_norms(self) -> Tensor:
        """Return the norms before clipping, oldest first: see :meth:`torch_clipped.Clipped.grad_norms`."""
        return self._current_sets.of([self._group])[1].grad_norms()

    def state_dict(self) -> StateDict:
        """Return the arguments and the state of this clipper: names, numbers and tensors."""
        self._current_sets.put_back()
        return {key: value for key, value in copied(self._group).items() if key != "params"}

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load arguments and state from :meth:`state_dict` of a clipper with the same parameters.

        Raises:
            ValueError: the state is not that of a clipper, or belongs to other parameters.
        """
        if not isinstance(state_dict, Mapping):
            raise ValueError(f"state_dict must be one of a GradientClipper, got a {type(state_dict).__name__}")
        missing = [name for name in ARGUMENT_NAMES if name not in state_dict and name not in ADDED]
        if missing:
            raise ValueError(f"state_dict must be one of a GradientClipper, but has no {missing[0]!r}")
        unknown = [key for key in state_dict if key not in ARGUMENT_NAMES and not (isinstance(key, str) and is_memory(key))]
        if unknown:
            raise ValueError(f"state_dict must be one of a GradientClipper, but has {unknown[0]!r}")
        is_same = state_dict["clipping_type"] == self._group["clipping_type"]
        older = {name: self._group[name] if is_same or name not in OF_THE_TYPE else None for name in ADDED}
        arguments = Arguments.of({**older, **state_dict})
        check_memory(state_dict, arguments)
        loaded: Group = {"params": self._group["params"], **copied(state_dict), **arguments.as_dict()}
        memory = prepared_memory(loaded, arguments, common_device([loaded]))
        for key, value in memory.items():
            if value.numel() and (key not in state_dict or state_dict[key].shape != value.shape):
                raise ValueError(f"state_dict must be one of a GradientClipper of the same parameters, but {key!r} does not fit")
        install(loaded, memory)
        self._group, self._current_sets = loaded, CurrentSets()


@hinted
def clip_gradients_(
    parameters: Tensor | Iterable[Tensor],
    clipping_type: ClippingType | str = "norm",
    clipping_level: float | None = None,
    *,
    clipping_action: str = "clip",
    norm_type: float = 2.0,
    nonfinite: str = "skip",
) -> Tensor:
    """Clip the gradients of parameters in place, with a clipping type without state.

        alpha = threshold / length          g <- g * min(1, alpha)

    Args:
        parameters: a tensor or an iterable of tensors; their ``grad`` is clipped in place.
        clipping_type: ``"none"``, ``"norm"``, ``"layer_wise"``, ``"coord_wise"``, ``"adaptive"``, or a registered type that
            always clips and has no state. Use :class:`GradientClipper` for the others.
        clipping_level: the one number that the type needs. Default: None, the type's default level.
        clipping_action: only ``"clip"``. There is no step to skip: compare the returned norm with a threshold, or use
            :class:`GradientClipper`. Default: ``"clip"``.
        norm_type: the p of the p-norm, from 1 to inf. Default: 2.
        nonfinite: the action for a gradient with entries that are inf or NaN: ``"skip"`` does not change it, ``"error"`` raises
            RuntimeError, ``"zero"`` sets such entries to 0 and clips the rest, ``"propagate"`` clips finite blocks and clamps
            single entries of inf. Default: ``"skip"``.

    Returns:
        The norm of all gradients before clipping, a 0-dimensional tensor.

    Raises:
        ValueError: an argument is invalid, the type has state, or there are no parameters.

    Example:
        >>> import torch
        >>> from torch_clipped import clip_gradients_
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_gradients_(weight, "norm", 1.0).item()
        5.0
        >>> weight.grad
        tensor([0.6000, 0.8000])
    """
    arguments = Arguments.of(
        Arguments(clipping_type, clipping_level, clipping_action, norm_type=norm_type, nonfinite=nonfinite).as_dict()
    )
    if arguments.clipping_action == "skip":
        raise ValueError(
            "clipping_action must be 'clip' here, got 'skip': there is no step to leave out; compare the returned norm with a "
            "threshold, or use GradientClipper.step and its skip"
        )
    rule = CLIPPING_TYPES[arguments.clipping_type]
    if rule is not None and (rule.threshold.memory(1, 2) or not isinstance(rule.decision, Always)):
        raise ValueError(
            f"clipping_type must be one without a memory here, got {clipping_type!r}: it needs the lengths or the number of "
            "earlier steps, which a GradientClipper keeps"
        )
    group = _group(parameters, arguments)
    return _clip(group, *CurrentSets().of([group]))[0]


def _group(parameters: Tensor | Iterable[Tensor], arguments: Arguments) -> Group:
    if not isinstance(parameters, Iterable):
        raise ValueError(f"parameters must be a tensor or an iterable of tensors, got a {type(parameters).__name__}")
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for p in params:
        if not isinstance(p, Tensor):
            raise ValueError(f"parameters must be a tensor or an iterable of tensors, got a {type(p).__name__} in it")
    if not params:
        raise ValueError("parameters must hold at least one tensor, got none (an iterator that was used up before?)")
    group: Group = {"params": list(dict.fromkeys(params)), **arguments.as_dict()}  # each parameter once
    refuse_pieces([group])
    install(group, prepared_memory(group, arguments, common_device([group])))
    return group


@torch.no_grad()
def _clip(group: Group, sets: list[ClipSet], totals: TotalStatistics) -> tuple[Tensor, Tensor]:
    """Clip; return the norm before clipping, and whether to skip the step.

    If the engine does not measure the norm, another pass over the gradients computes it.
    """
    if sets and sets[0].measure.gives_norm and not sets[0].is_dry_run:
        result = clip_(sets, totals, [sets[0].gradients()])
        return as_tensor(result.norms[0]), as_tensor(result.skip)
    measuring = _group(group["params"], Arguments("norm", math.inf, clipping_window=2, norm_type=group["norm_type"]))
    (whole,), _ = CurrentSets().of([measuring])
    norm = math.nan if whole.is_dry_run else whole.lengths(whole.gradients())
    skip = False if not sets or whole.is_dry_run else clip_(sets, totals, [sets[0].gradients()]).skip
    return as_tensor(norm), as_tensor(skip)
