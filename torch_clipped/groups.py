"""Parameter groups by module name."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch.nn import Module, Parameter
from torch.nn.parameter import is_lazy

from ._engine.types import Entries, Group

__all__ = ["groups_by_module"]


def groups_by_module(
    model: Module,
    patterns: Mapping[str, Entries],
    default: Entries | None = None,
    *,
    vectors: Entries | None = None,
) -> list[Group]:
    """Return parameter groups for any optimizer, chosen by module name; each parameter is in exactly one group.

    Args:
        model: the model whose parameters are grouped.
        patterns: options of a group, by the name of a module (``"encoder"``), of a parameter (``"head.bias"``), or a pattern of
            such names with the wildcards ``*``, ``?`` and ``[...]`` (``"layers.*.attention"``, ``"*norm*"``).
        default: options of the group of all other parameters. Default: None, no options.
        vectors: other options for parameters with fewer than two dimensions (biases, norms), which then form a separate group for
            each group. Default: None, no separate groups.

    Returns:
        The groups that are not empty, in the order of the patterns, then the group of all other parameters.

    Raises:
        ValueError: a pattern matches no parameter, or two patterns match the same parameter (also a shared one, under several
            names); options name ``params``; ``vectors`` is given for a model of lazy modules that has not seen a batch.
        TypeError: the model is not a module, or options are not a mapping.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedAdamW, groups_by_module
        >>> model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(3, 4), "decoder": torch.nn.Linear(4, 3)})
        >>> groups = groups_by_module(
        ...     model,
        ...     {"encoder": {"clipping_set": "encoder"}, "decoder": {"clipping_set": "decoder", "clipping_level": 0.5}},
        ...     vectors={"weight_decay": 0.0},
        ... )
        >>> optimizer = ClippedAdamW(groups, lr=1e-3, weight_decay=0.1)
        >>> [(len(group["params"]), group["clipping_set"], group["weight_decay"]) for group in optimizer.param_groups]
        [(1, 'encoder', 0.1), (1, 'encoder', 0.0), (1, 'decoder', 0.1), (1, 'decoder', 0.0)]
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(patterns, Mapping):
        raise TypeError(f"patterns must be a mapping from names to options, got {type(patterns).__name__}")
    if wrong := [pattern for pattern in patterns if not isinstance(pattern, str)]:
        raise TypeError(f"patterns must be a mapping from names to options, got {wrong[0]!r} as a name")
    options = {pattern: _checked(f"patterns[{pattern!r}]", given) for pattern, given in patterns.items()}
    rest = _checked("default", {} if default is None else default)
    apart = None if vectors is None else _checked("vectors", vectors)
    names: dict[Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if apart is not None and is_lazy(parameter):
            raise ValueError(f"vectors must be None while {name} has no shape: let the model see a batch first")
        names.setdefault(parameter, []).append(name)
    members: dict[str | None, list[Parameter]] = {pattern: [] for pattern in options} | {None: []}
    for parameter, known in names.items():
        found = [pattern for pattern in options if any(_matches(name, pattern) for name in known)]
        if len(found) > 1:
            raise ValueError(f"patterns must not overlap, but {found[0]!r} and {found[1]!r} both match {' = '.join(known)}")
        members[found[0] if found else None].append(parameter)
    for pattern in options:
        if not members[pattern]:
            raise ValueError(f"patterns must match parameters, but {pattern!r} matches none; {_alternatives(model, pattern)}")
    groups = []
    for chosen, params in members.items():
        own = rest if chosen is None else options[chosen]
        if apart is None:
            groups.append({"params": params, **own})
        else:
            groups.append({"params": [p for p in params if p.dim() > 1], **own})
            groups.append({"params": [p for p in params if p.dim() <= 1], **own, **apart})
    return [group for group in groups if group["params"]]


def _checked(name: str, options: object) -> Group:
    if not isinstance(options, Mapping):
        raise TypeError(f"{name} must be a mapping of options, got {type(options).__name__}")
    if "params" in options:
        raise ValueError(f"{name} must not name params, which the names of modules choose")
    return dict(options)


def _alternatives(model: Module, pattern: str) -> str:
    """Return the names most similar to a pattern, or the names of the outermost modules, in words."""
    known = [name for name, _ in (*model.named_modules(), *model.named_parameters()) if name]
    if close := get_close_matches(pattern, known):
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"the modules are {', '.join(name for name, _ in model.named_children()) or 'none'}"


def _matches(name: str, pattern: str) -> bool:
    """Return whether a pattern names a parameter, or a module that holds it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
