"""Lengths of huge, tiny and low-precision gradients, and of odd layouts."""

import math

import pytest
import torch
from support.cases import pairwise
from support.properties import KERNELS, step_scalars

from torch_clipped import ClippedSGD

VALUES = {
    "ordinary": (torch.float32, 1.0),
    "float64": (torch.float64, 1.0),
    "float16 whose norm is above 65,504": (torch.float16, 3e4),
    "float16 whose squares vanish": (torch.float16, 1e-4),
    "bfloat16": (torch.bfloat16, 1.0),
    "bfloat16, huge": (torch.bfloat16, 1e25),
    "huge": (torch.float32, 1e25),
    "tiny": (torch.float32, 1e-30),
    "float64, huge": (torch.float64, 1e200),
    "float64, tiny": (torch.float64, 1e-200),
}


@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise", "auto"])
@pytest.mark.parametrize("values", VALUES)
def test_length_is_right_whatever_the_type_and_size_of_the_gradient(problem, values, clipping_type):
    dtype, size = VALUES[values]
    shapes = ((300, 300), (1000,), (3,), ())
    generator = torch.Generator().manual_seed(0)
    grads = [((torch.rand(s, generator=generator, dtype=torch.float64) + 0.5) * size).to(dtype) for s in shapes]
    optimizer = ClippedSGD(problem.parameters(dtype, shapes), lr=0.0, clipping_type=clipping_type)
    problem.step(optimizer, grads)
    wanted = size * problem.length([g.double() / size for g in grads])
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(wanted, rel=1e-5)
    assert optimizer.grad_norms().tolist() == pytest.approx([wanted], rel=1e-5)


@pytest.mark.parametrize("norm_type", [1, 2, 3, math.inf])
@pytest.mark.parametrize("size", [1e25, 1e-30])
def test_length_of_any_norm_type_is_right_for_huge_and_tiny_gradients(problem, size, norm_type):
    grads = [g * size for g in problem.gradients(0, 1.0)]
    optimizer = ClippedSGD(problem.parameters(), lr=0.0, norm_type=norm_type)
    problem.step(optimizer, grads)
    wanted = size * torch.cat([g.double().flatten() / size for g in grads]).norm(norm_type).item()
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(wanted, rel=1e-5)


def test_length_of_huge_and_tiny_entries_together():
    optimizer = ClippedSGD([torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))], lr=0.0)
    first, second = optimizer.param_groups[0]["params"]
    first.grad, second.grad = torch.tensor([3e25, 1e-30, 1.0]), torch.tensor([4e25, 0.0])
    optimizer.step()
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(5e25, rel=1e-5)


@pytest.mark.parametrize("flags", ["chosen", *KERNELS])
@pytest.mark.parametrize("size", [1e25, 1e-30])
def test_huge_and_tiny_gradients_are_clipped_to_the_level(problem, size, flags):
    params = problem.parameters()
    optimizer = ClippedSGD(params, lr=0.0, momentum=0.9, clipping_level=size / 10, **KERNELS.get(flags, {}))
    grads = problem.step(optimizer, [g * size for g in problem.gradients(0, 1.0)])
    assert problem.length([g.double() / size for g in grads]) == pytest.approx(0.1, rel=1e-5)


def test_huge_gradient_is_clipped_to_an_ordinary_level(problem):
    optimizer = ClippedSGD(problem.parameters(), lr=0.1)
    assert problem.length(problem.step(optimizer, problem.gradients(0, 1e30))) == pytest.approx(1.0, rel=1e-5)


TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pairwise(ids=str, clipping_type=["norm", "layer_wise"], flags=["chosen", *KERNELS], dtype=TOLERANCE, norm=[50.0, 1e4, 9.4e5])
def test_gradients_of_low_precision_are_clipped_to_the_level(problem, clipping_type, flags, dtype, norm):
    shapes = ((20, 20),)
    params = problem.parameters(dtype, shapes)
    options = KERNELS.get(flags, {}) | {"clipping_type": clipping_type, "clipping_level": 1}
    optimizer = ClippedSGD(params, lr=0.1, momentum=0.9, **options)
    signs = problem.gradients(0, shapes=shapes)[0].sign()
    grads = problem.step(optimizer, [(signs * norm / 20).to(dtype)])
    assert problem.length(grads) == pytest.approx(1.0, rel=TOLERANCE[dtype])


def test_parameters_of_several_types_form_one_length():
    params = [torch.nn.Parameter(torch.zeros(1, dtype=dtype)) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    optimizer = ClippedSGD(params, lr=0.1)
    assert step_scalars(optimizer, 2.0, 3.0, 6.0) == pytest.approx([2 / 7, 3 / 7, 6 / 7], rel=1e-2)
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(7.0)


def test_layout_of_the_gradient_does_not_change_its_length(problem):
    shapes = ((4, 6), (2, 3, 4, 5), (0, 3), (5, 5))
    grads = [g * 100 for g in problem.gradients(0, shapes=shapes, norm=1.0)]
    grads[0] = grads[0].t().contiguous().t()
    grads[1] = grads[1].to(memory_format=torch.channels_last)
    grads[3] = torch.cat([grads[3], torch.full((5, 1), 1e9)], dim=1)[:, :5]
    params = problem.parameters(shapes=shapes)
    optimizer = ClippedSGD(params, lr=0.1)
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    optimizer.step()
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(100.0, rel=1e-5)
    assert problem.length([p.grad for p in params]) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise"])
def test_complex_gradients_count_by_modulus(clipping_type):
    param = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    optimizer = ClippedSGD([param], lr=1.0, clipping_type=clipping_type, clipping_level=1.0, norm_type=1.0)
    param.grad = torch.tensor([3 + 4j, 5j])
    optimizer.step()
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(10.0)
    torch.testing.assert_close(param.detach(), -torch.tensor([0.3 + 0.4j, 0.5j]))


@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise"])
def test_sparse_gradients_count_by_their_summed_entries(clipping_type):
    param = torch.nn.Parameter(torch.zeros(4, 1))
    optimizer = ClippedSGD([param], lr=1.0, clipping_type=clipping_type, clipping_level=1.0)
    param.grad = torch.sparse_coo_tensor(
        torch.tensor([[1, 3, 1]]), torch.tensor([[1.0], [4.0], [2.0]]), (4, 1), check_invariants=True
    )
    optimizer.step()
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(5.0)
    torch.testing.assert_close(param.detach().flatten(), torch.tensor([0.0, -0.6, 0.0, -0.8]))
