"""Comparisons of tensors, and of states that hold them; the tensors that are alive."""

import gc

import torch


def equal(left, right):
    """Return whether two sequences of tensors are bit for bit the same; None equals None."""
    return all((a is None and b is None) or torch.equal(a, b) for a, b in zip(left, right, strict=True))


def assert_close(left, right, tolerance=1e-12):
    """Assert that the tensors of two sequences agree, relatively or absolutely, to ``tolerance``."""
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def assert_same(left, right):
    """Assert that two nested values are bit for bit the same; NaN equals NaN."""
    if isinstance(left, torch.Tensor):
        assert left.layout == right.layout
        left, right = (t.coalesce().to_dense() if t.is_sparse else t for t in (left, right))
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right or (left != left and right != right)


def bits(value):
    """Return the bits of a nested state, to be compared later."""
    if isinstance(value, torch.Tensor):
        return (value.dtype, tuple(value.shape), value.detach().cpu().numpy().tobytes())
    if isinstance(value, dict):
        return {key: bits(one) for key, one in value.items()}
    return [bits(one) for one in value] if isinstance(value, (list, tuple)) else value


def live_tensors(*types):
    """Return the dense tensors of these classes that are alive; sparse ones, which other tests hold, have no one storage."""
    return [thing for thing in gc.get_objects() if type(thing) in types and thing.layout is torch.strided]
