"""Checks of the parameter groups and the state of the similar triangles method."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping

from torch import Tensor
from torch.optim import Optimizer

from ._engine.types import Entries, StateDict
from ._engine.validation import check_fits, check_keys, integer, number

__all__ = ["check_hyperparameters", "checked_state_dict"]

OWNER = "ClippedSSTM"
HYPERPARAMETERS = ("lr", "L", "nu", "a_k_ratio_upper_bound", "first_clipped_iteration", "train_mode")


def check_hyperparameters(group: Entries, lowest_lr: float = 0.0) -> None:
    """Raise ValueError if a hyperparameter of a parameter group is invalid."""
    largest = sys.float_info.max
    _check_number("lr", group["lr"], lowest_lr, largest, "a finite number" if lowest_lr else "a number at least 0 and finite")
    _check_number("L", group["L"], math.ulp(0), largest, "a number positive and finite")
    _check_number("nu", group["nu"], 0, 1, "a number from 0 to 1")
    _check_number("a_k_ratio_upper_bound", group["a_k_ratio_upper_bound"], math.ulp(0), 1, "a number over 0 and at most 1")
    integer("first_clipped_iteration", group["first_clipped_iteration"], smallest=1)
    if not isinstance(group["train_mode"], bool):
        raise ValueError(f"train_mode must be True or False, got {group['train_mode']!r}")


def checked_state_dict(optimizer: Optimizer, state_dict: StateDict) -> StateDict:
    """Return a state to load, with its own tensors; raise ValueError if an entry is invalid."""
    check_keys("state_dict", state_dict, ("state", "param_groups"), OWNER, exact=False)
    groups, states = state_dict["param_groups"], state_dict["state"]
    if not isinstance(groups, list) or not isinstance(states, Mapping):
        found = f"a {type(groups).__name__} and a {type(states).__name__}"
        raise ValueError(f"param_groups and state in state_dict must be a list and a dict, got {found}")
    for i, group in enumerate(groups):
        check_keys(f"param_groups[{i}]", group, ("params", *HYPERPARAMETERS), OWNER, exact=False)
        try:
            check_hyperparameters(group, lowest_lr=-sys.float_info.max)  # a scheduler may have returned -1e-18
        except ValueError as error:
            raise ValueError(f"param_groups[{i}]: {error}") from None
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in optimizer.param_groups]:
        return state_dict  # torch raises the error
    keys = [key for group in groups for key in group["params"]]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    named = [(key, p) for key, p in zip(keys, params, strict=True) if key in states]
    return {**state_dict, "state": {**states, **{key: _checked_state(f"state[{key!r}]", states[key], p) for key, p in named}}}


def _checked_state(name: str, state: StateDict, param: Tensor) -> StateDict:
    """Check the state of one parameter; return it with copies of its tensors, empty before the first step."""
    check_keys(name, state, (), OWNER, exact=False)
    if not state:
        return {}
    check_keys(name, state, ("step", "A", "y", "z", "share"), OWNER, exact=False)
    integer(f"{name}['step']", state["step"], smallest=0)
    _check_number(f"{name}['A']", state["A"], 0, sys.float_info.max, "a number at least 0 and finite")
    _check_number(f"{name}['share']", state["share"], 0, 1, "a number from 0 to 1")
    for key in "yz":
        check_fits(f"{name}[{key!r}]", state[key], param)
    return {**state, "y": state["y"].detach().clone(), "z": state["z"].detach().clone()}


def _check_number(name: str, value: object, low: float, high: float, wanted: str) -> None:
    if not low <= number(name, value, wanted) <= high:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
