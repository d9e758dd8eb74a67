"""Clipping type adaptive: units and the weights that their thresholds are made of."""

import pytest
import torch
from support.assertions import assert_close
from support.gradient_oracle import Spiky

from torch_clipped import ClippedSGD

F64 = torch.float64


@pytest.fixture
def problem():
    return Spiky()


UNITS = {
    "matrix": ((5, 3), 5),
    "convolution": ((4, 3, 3, 3), 4),
    "one-dimensional convolution": ((6, 2, 5), 6),
    "vector": ((7,), 1),
    "scalar": ((), 1),
    "row": ((1, 8), 1),
    "column": ((8, 1), 8),
}


@pytest.mark.parametrize("kind", UNITS)
def test_adaptive_clips_each_unit_by_the_ratio_to_its_weights(problem, kind):
    shape, units = UNITS[kind]
    (weight,) = params = problem.parameters(F64, (shape,))
    optimizer = ClippedSGD(params, lr=0.1, clipping_type="adaptive", clipping_level=0.05)
    for step in range(10):
        rows = weight.detach().reshape(units, -1).clone()
        (grad,) = problem.gradients(step, dtype=F64, shapes=(shape,))
        grad = (grad.reshape(units, -1) * 10.0 ** -torch.arange(units, dtype=F64)[:, None]).reshape(shape)  # some are short
        (clipped,) = problem.step(optimizer, [grad])
        long = grad.reshape(units, -1)
        limits = 0.05 * rows.norm(dim=1).clamp(min=1e-3)
        wanted = long * (limits / long.norm(dim=1)).clamp(max=1)[:, None]
        assert_close([clipped], [wanted.reshape(shape)])
    assert optimizer.clipping_stats()["clipped_steps"] > 0


def test_adaptive_moves_no_unit_further_than_its_ratio(problem):
    shapes = tuple(shape for shape, _ in UNITS.values())
    params = problem.parameters(F64, shapes)
    optimizer = ClippedSGD(params, lr=1.0, clipping_type="adaptive", clipping_level=0.01)
    before = problem.copies(params)
    problem.step(optimizer, problem.gradients(0, norm=1e6, dtype=F64, shapes=shapes))
    for (_, units), p, was in zip(UNITS.values(), params, before, strict=True):
        moved, length = ((t.detach().reshape(units, -1).norm(dim=1)) for t in (p - was, was))
        torch.testing.assert_close(moved, 0.01 * length)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16], ids=str)
def test_adaptive_trains_weights_that_start_at_zero(dtype, sparse):
    if sparse:
        shapes, params = ((6, 2),), [torch.nn.Parameter(torch.zeros(6, 2, dtype=dtype))]
    else:
        shapes = tuple(shape for shape, _ in UNITS.values())
        params = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    optimizer = ClippedSGD(params, lr=1.0, clipping_type="adaptive", clipping_level=0.1)
    for p in params:
        ones = torch.ones_like(p)
        p.grad = ones.to_sparse(1) if sparse else ones
    optimizer.step()
    units_of = dict(UNITS.values())
    for p, shape in zip(params, shapes, strict=True):
        rows = p.detach().double().reshape(units_of.get(shape, shape[0] if shape else 1), -1)
        wanted = torch.full((len(rows),), 1e-4, dtype=F64)  # the floor of 1e-3 times the ratio
        torch.testing.assert_close(rows.norm(dim=1), wanted, rtol=1e-2 if p.element_size() == 2 else 1e-5, atol=0)
    for _ in range(200):
        for p in params:
            grad = p.detach() - 1  # towards 1
            p.grad = grad.to_sparse(1) if sparse else grad
        optimizer.step()
    if p.element_size() > 2:
        assert all((p > 0.05).all() for p in params)


def test_adaptive_leaves_units_of_length_zero_alone():
    weight = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = ClippedSGD([weight], lr=0.1, clipping_type="adaptive")
    weight.grad = torch.zeros(3, 4)
    weight.grad[1] = 5.0
    optimizer.step()
    assert (weight.grad[[0, 2]] == 0).all()
    torch.testing.assert_close(weight.grad[1].norm(), torch.tensor(0.02))
    assert (weight[[0, 2]] == 1).all()
