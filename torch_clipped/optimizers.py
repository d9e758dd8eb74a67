"""Torch's optimizers with gradient clipping between the closure and the update."""

import copyreg
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any
from weakref import ref

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import ParamsT

from ._engine.arguments import ARGUMENT_NAMES, Arguments, clipping_arguments
from ._engine.checks import refuse_overlap, refuse_own_arguments, refuse_pieces, refuse_wrapper
from ._engine.monitor import warn
from ._engine.state import forget, is_memory
from ._engine.types import Entries, Group, StepFunction
from ._engine.validation import hinted
from .clipping import ClippingType
from .mixin import Clipped

__all__ = ["Clipped", "ClippedAdam", "ClippedAdamW", "ClippedSGD", "clip_optimizer"]


class ClippedSGD(Clipped, SGD):
    """:class:`torch.optim.SGD` with gradient clipping, which :class:`Clipped` describes.

    The arguments up to ``clipping_type`` are those of :class:`torch.optim.SGD`, with its defaults.

    Args:
        clipping_type: the name of a clipping type. Default: ``"norm"``.
        clipping_level: the one number that the type needs. Default: None, the type's default level.
        clipping_action: ``"clip"``, or ``"skip"`` the step if a block exceeds its threshold. Default: ``"clip"``.
        clipping_cap: the largest norm of a block, whatever its threshold. Default: None, no cap.
        clipping_warmup: the number of norms that a type records before it clips. Default: None, the type's own.
        clipping_set: a label; groups with different labels are measured separately. Default: None.
        clipping_beta: base of the clipping probability of the random types, in (0, 1). Default: 0.85.
        clipping_window: the number of recorded norms, at least 2. Default: 1000.
        norm_type: the p of the p-norm, from 1 to inf. Default: 2.
        nonfinite: the action for entries that are inf or NaN: ``"skip"`` the step, raise an ``"error"``, set them to ``"zero"``,
            or ``"propagate"`` them. Default: ``"skip"``.
        clipping_seed: seed of the random types, at least 0. Default: 0.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedSGD
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = ClippedSGD(model.parameters(), lr=5e-2, momentum=0.9, clipping_type="layer_wise", clipping_level=1)
        >>> model(torch.ones(2, 3)).square().sum().backward()
        >>> optimizer.step()
    """

    @hinted
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        clipping_type: ClippingType | str = "norm",
        clipping_level: float | None = None,
        clipping_action: str = "clip",
        clipping_cap: float | None = None,
        clipping_warmup: int | None = None,
        clipping_set: str | None = None,
        clipping_beta: float = 0.85,
        clipping_window: int = 1000,
        norm_type: float = 2.0,
        nonfinite: str = "skip",
        clipping_seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
            clipping_type=clipping_type,
            clipping_level=clipping_level,
            clipping_action=clipping_action,
            clipping_cap=clipping_cap,
            clipping_warmup=clipping_warmup,
            clipping_set=clipping_set,
            clipping_beta=clipping_beta,
            clipping_window=clipping_window,
            norm_type=norm_type,
            nonfinite=nonfinite,
            clipping_seed=clipping_seed,
        )


class ClippedAdam(Clipped, Adam):
    """:class:`torch.optim.Adam` with gradient clipping, which :class:`Clipped` describes.

    The arguments up to ``clipping_type`` are those of :class:`torch.optim.Adam`, with its defaults.

    Args:
        clipping_type: the name of a clipping type. Default: ``"norm"``.
        clipping_level: the one number that the type needs. Default: None, the type's default level.
        clipping_action: ``"clip"``, or ``"skip"`` the step if a block exceeds its threshold. Default: ``"clip"``.
        clipping_cap: the largest norm of a block, whatever its threshold. Default: None, no cap.
        clipping_warmup: the number of norms that a type records before it clips. Default: None, the type's own.
        clipping_set: a label; groups with different labels are measured separately. Default: None.
        clipping_beta: base of the clipping probability of the random types, in (0, 1). Default: 0.85.
        clipping_window: the number of recorded norms, at least 2. Default: 1000.
        norm_type: the p of the p-norm, from 1 to inf. Default: 2.
        nonfinite: the action for entries that are inf or NaN: ``"skip"`` the step, raise an ``"error"``, set them to ``"zero"``,
            or ``"propagate"`` them. Default: ``"skip"``.
        clipping_seed: seed of the random types, at least 0. Default: 0.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedAdam
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = ClippedAdam(model.parameters(), lr=1e-3, clipping_type="auto", clipping_level=0.9)
        >>> model(torch.ones(2, 3)).square().sum().backward()
        >>> optimizer.step()
    """

    @hinted
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        clipping_type: ClippingType | str = "norm",
        clipping_level: float | None = None,
        clipping_action: str = "clip",
        clipping_cap: float | None = None,
        clipping_warmup: int | None = None,
        clipping_set: str | None = None,
        clipping_beta: float = 0.85,
        clipping_window: int = 1000,
        norm_type: float = 2.0,
        nonfinite: str = "skip",
        clipping_seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            **({"decoupled_weight_decay": True} if decoupled_weight_decay else {}),  # torch 2.6 and older have no such argument
            clipping_type=clipping_type,
            clipping_level=clipping_level,
            clipping_action=clipping_action,
            clipping_cap=clipping_cap,
            clipping_warmup=clipping_warmup,
            clipping_set=clipping_set,
            clipping_beta=clipping_beta,
            clipping_window=clipping_window,
            norm_type=norm_type,
            nonfinite=nonfinite,
            clipping_seed=clipping_seed,
        )


class ClippedAdamW(Clipped, AdamW):
    """:class:`torch.optim.AdamW` with gradient clipping, which :class:`Clipped` describes.

    The arguments up to ``clipping_type`` are those of :class:`torch.optim.AdamW`, with its defaults.

    Args:
        clipping_type: the name of a clipping type. Default: ``"norm"``.
        clipping_level: the one number that the type needs. Default: None, the type's default level.
        clipping_action: ``"clip"``, or ``"skip"`` the step if a block exceeds its threshold. Default: ``"clip"``.
        clipping_cap: the largest norm of a block, whatever its threshold. Default: None, no cap.
        clipping_warmup: the number of norms that a type records before it clips. Default: None, the type's own.
        clipping_set: a label; groups with different labels are measured separately. Default: None.
        clipping_beta: base of the clipping probability of the random types, in (0, 1). Default: 0.85.
        clipping_window: the number of recorded norms, at least 2. Default: 1000.
        norm_type: the p of the p-norm, from 1 to inf. Default: 2.
        nonfinite: the action for entries that are inf or NaN: ``"skip"`` the step, raise an ``"error"``, set them to ``"zero"``,
            or ``"propagate"`` them. Default: ``"skip"``.
        clipping_seed: seed of the random types, at least 0. Default: 0.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedAdamW
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = ClippedAdamW(model.parameters(), lr=1e-3, weight_decay=0.1, clipping_level=1.0)
        >>> model(torch.ones(2, 3)).square().sum().backward()
        >>> optimizer.step()
    """

    @hinted
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        clipping_type: ClippingType | str = "norm",
        clipping_level: float | None = None,
        clipping_action: str = "clip",
        clipping_cap: float | None = None,
        clipping_warmup: int | None = None,
        clipping_set: str | None = None,
        clipping_beta: float = 0.85,
        clipping_window: int = 1000,
        norm_type: float = 2.0,
        nonfinite: str = "skip",
        clipping_seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            clipping_type=clipping_type,
            clipping_level=clipping_level,
            clipping_action=clipping_action,
            clipping_cap=clipping_cap,
            clipping_warmup=clipping_warmup,
            clipping_set=clipping_set,
            clipping_beta=clipping_beta,
            clipping_window=clipping_window,
            norm_type=norm_type,
            nonfinite=nonfinite,
            clipping_seed=clipping_seed,
        )


@hinted
def clip_optimizer(
    optimizer: Optimizer,
    clipping_type: ClippingType | str = "norm",
    clipping_level: float | None = None,
    *,
    clipping_action: str = "clip",
    clipping_cap: float | None = None,
    clipping_warmup: int | None = None,
    clipping_set: str | None = None,
    clipping_beta: float = 0.85,
    clipping_window: int = 1000,
    norm_type: float = 2.0,
    nonfinite: str = "skip",
    clipping_seed: int = 0,
) -> Clipped:
    """Make an existing optimizer clip its gradients.

    The optimizer stays the same object, with its state, parameter groups, hooks and schedulers. Its class becomes
    ``Clipped<Its name>``, with the methods of :class:`Clipped`. Clipping arguments that are already in a parameter group keep
    their values.

    Args:
        optimizer: any optimizer whose ``step`` is that of its class, possibly wrapped by a learning rate scheduler. Clipping
            arguments from a checkpoint in its groups are replaced by these, with a :class:`ClippingWarning`.
        clipping_type, clipping_level, clipping_action, clipping_cap, clipping_warmup, clipping_set: as in :class:`Clipped`.
        clipping_beta, clipping_window, norm_type, nonfinite, clipping_seed: as in :class:`Clipped`.

    Returns:
        The optimizer.

    Raises:
        TypeError: ``optimizer`` is not an optimizer, or its class is not supported: it computes gradients within a step, moves
            the weights during backward, or has an argument with the name of a clipping argument. The message names a
            workaround.
        ValueError: an argument is invalid, the optimizer clips already, or its ``step`` has been replaced.

    Example:
        >>> import torch
        >>> from torch_clipped import clip_optimizer
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = torch.optim.RMSprop([weight])
        >>> clip_optimizer(optimizer, "norm", 1.0) is optimizer
        True
        >>> type(optimizer).__name__
        'ClippedRMSprop'
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    refuse_wrapper(optimizer)
    if isinstance(optimizer, Clipped):
        raise ValueError("optimizer must be one that does not clip yet; change its clipping by writing to param_groups")
    _refuse_clipped_inside(optimizer)
    arguments = Arguments(
        *(clipping_type, clipping_level, clipping_action, clipping_cap, clipping_warmup, clipping_set),
        *(clipping_beta, clipping_window, norm_type, nonfinite, clipping_seed),
    )
    own_step = vars(optimizer).get("step")
    if own_step is not None and not hasattr(own_step, "_wrapped_by_lr_sched"):
        raise ValueError(f"optimizer must have the step of its class, but {own_step!r} was put in its place: clip it before that")
    defaults = Arguments.of(arguments.as_dict()).as_dict()
    cls: type = type(optimizer)
    clipped_class = _clipped_class(cls)
    refuse_own_arguments(cls, optimizer.defaults)
    own, source = tuple(optimizer.defaults), optimizer.defaults | defaults
    from_checkpoint = [group for group in optimizer.param_groups if any(map(is_memory, group))]
    # groups with type "none" keep it, unless all groups have it
    replaced = [group for group in from_checkpoint if group.get("clipping_type") != "none"] or from_checkpoint
    former = [dict(group) for group in optimizer.param_groups]
    try:
        for group in replaced:
            group.update(defaults)
            forget(group, former[next(i for i, g in enumerate(optimizer.param_groups) if g is group)], Arguments(**defaults))
        groups = optimizer.param_groups
        refuse_pieces([group | clipping_arguments(group, source, i, own).as_dict() for i, group in enumerate(groups)])
        refuse_overlap(optimizer)
        optimizer.__class__ = clipped_class
        assert isinstance(optimizer, Clipped)
        optimizer._adopt_groups(groups, [source] * len(groups))
    except BaseException:  # restore everything if the optimizer is refused
        optimizer.__class__ = cls
        for group, kept in zip(optimizer.param_groups, former, strict=True):
            group.clear()
            group.update(kept)
        raise
    optimizer.defaults.update(defaults)
    optimizer._patch_step_function()
    if own_step is not None:  # a scheduler counts the steps of the former class
        vars(optimizer)["step"] = _counted_step(ref(optimizer))
    _warn_of_checkpoint([kept for kept in former if any(map(is_memory, kept)) and kept.get("clipping_type") != "none"], defaults)
    return optimizer


def _refuse_clipped_inside(optimizer: Optimizer) -> None:
    groups = {id(group) for group in optimizer.param_groups}
    for name, inside in vars(optimizer).items():
        if isinstance(inside, Clipped) and any(id(group) in groups for group in inside.param_groups):
            raise ValueError(
                f"optimizer must be one that does not clip yet, but the {type(inside).__name__} in its {name!r} clips"
            )


def _warn_of_checkpoint(groups: Sequence[Group], arguments: Entries) -> None:
    """Warn if parameter groups from the checkpoint of a clipped optimizer have other clipping arguments than these."""
    for group in groups:
        other = [name for name in ARGUMENT_NAMES if group.get(name) != arguments[name]]
        if other:
            old, new = (", ".join(f"{name}={values.get(name)!r}" for name in other) for values in (group, arguments))
            warn(
                f"clip_optimizer replaces {old}, which stood in the parameter groups (of a checkpoint), by {new}; to keep it, "
                "call clip_optimizer first and load it then"
            )
            return


def _counted_step(optimizer: Callable[[], Any]) -> StepFunction:
    def step(*args: object, **kwargs: object) -> object:
        optimizer()._opt_called = True
        return type(optimizer()).step(optimizer(), *args, **kwargs)

    vars(step)["_wrapped_by_lr_sched"] = True
    return step


@cache
def _clipped_class(cls: type) -> type[Clipped]:
    named = {SGD: ClippedSGD, Adam: ClippedAdam, AdamW: ClippedAdamW}
    if cls in named:
        return named[cls]

    metaclass: Any = type(cls)

    def mro(self: type) -> list[type]:
        order = [c for c in metaclass.mro(self) if c is not Clipped]
        at = order.index(cls)
        return [*order[:at], Clipped, *order[at:]]

    def reduce(self: Clipped) -> tuple[object, ...]:
        made = (_remake, (cls,)) if type(self) is clipped else (copyreg.__newobj__, (type(self),))  # type: ignore[attr-defined]
        return (*made, self.__getstate__())

    doc = f"{cls.__name__} with gradient clipping, see torch_clipped.Clipped."
    # With (Clipped, cls) Python refuses the change of class if ABC or Generic precede Optimizer in the bases of cls
    clips_first = type(f"Clipping{metaclass.__name__}", (metaclass,), {"mro": mro})
    namespace = {"__doc__": doc, "__module__": cls.__module__, "__reduce__": reduce}
    clipped: type[Clipped] = clips_first(f"Clipped{cls.__name__}", (cls, Clipped), namespace)
    return clipped


def _remake(cls: type) -> Clipped:
    """Make an empty object of the clipped class, for copy and pickle, which know importable classes only."""
    clipped = _clipped_class(cls)
    return clipped.__new__(clipped)
