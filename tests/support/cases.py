"""Rows of arguments for tests."""

from collections.abc import Callable, Iterable

import pytest
from allpairspy import AllPairs


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
