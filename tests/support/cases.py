"""Arguments of tests, and states that went through a file."""

import io
from collections.abc import Callable, Iterable

import pytest
import torch
from allpairspy import AllPairs

from .reference import CLIPPING_TYPES

TYPES = [name for name in CLIPPING_TYPES if name != "none"]
ONE_A_KIND = ["norm", "linear_rand_auto", "layer_wise_auto", "coord_wise", "adaptive", "adagc"]  # of measures and thresholds
ONE_A_MEASURE = ["norm", "layer_wise", "coord_wise", "adaptive"]
FLAGS = {"chosen": {}, "fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False, "fused": False}}
LEVELS = {  # the defaults of the types whose level is a norm or a quantile
    "norm": 1.0,
    "layer_wise": 0.3,
    "coord_wise": 0.1,
    "auto": 0.75,
    "linear_rand_norm": 1.0,
    "quadratic_rand_norm": 1.0,
    "linear_rand_auto": 0.75,
    "quadratic_rand_auto": 0.75,
}


def pairwise(*, ids: Callable | None = None, **axes: Iterable):
    """Parametrize a test with rows in which each two values of different axes meet at least once.

    Most faults depend on one value or on two, so these rows find nearly what the full product finds, at a fraction of its cases
    (D. R. Kuhn, D. R. Wallace, A. M. Gallo Jr., Software Fault Interactions and Implications for Software Testing, 2004,
    https://doi.org/10.1109/TSE.2004.24).

    Args:
        ids: name a value in the name of the case, as for ``pytest.mark.parametrize``; None leaves it to pytest.
        axes: values of each argument.

    Example:
        >>> @pairwise(clipping_type=["norm", "auto"], policy=["skip", "zero"], fused=[False, True])
        ... def test_something(clipping_type, policy, fused): ...  # 4 cases instead of 8
    """
    rows = [tuple(row) for row in AllPairs([list(axis) for axis in axes.values()])]
    return pytest.mark.parametrize(tuple(axes), rows, ids=ids)


def parameters_of(optimizer):
    """Return the parameters of all groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def gradients_of(params):
    """Return the gradients of parameters."""
    return [p.grad for p in params]


def state_of(optimizer):
    """Return all values of ``optimizer.state``, as a flat list of tensors."""
    params = parameters_of(optimizer)
    return [torch.as_tensor(v).clone() for p in params for _, v in sorted(optimizer.state[p].items()) if v is not None]


def flat(tensors):
    """Return the entries of each tensor as a list."""
    return [t.detach().double().flatten().tolist() for t in tensors]


def saved_and_loaded(value, **options):
    """Return a value as it comes back from a file, which by default holds plain tensors and numbers only."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **{"weights_only": True} | options)
