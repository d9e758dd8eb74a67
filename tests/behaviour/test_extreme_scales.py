"""Gradients near the largest numbers of their type, clipped to the smallest thresholds, against float64."""

import pytest
import torch

from torch_clipped import ClippedSGD, clip_gradients_

TYPES = ["norm", "layer_wise", "coord_wise", "adaptive"]
WEIGHT_NORM = 1e-3  # what adaptive takes zero weights for


def drawn(dtype, largest):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(6, 100, generator=generator, dtype=torch.float64) * 2 - 1
    if dtype.is_complex:
        values = torch.complex(values, torch.rand(6, 100, generator=generator, dtype=torch.float64) * 2 - 1)
        values[0, 1] = 1 + 1j  # of a modulus that the type cannot hold
    values[0, 0], values[0, 2], values[5] = 1, 1e-20, values[5] * 1e-30
    return (values * largest).to(dtype)


def clipped_in_float64(grad, clipping_type, level):
    wide = grad.to(torch.complex128 if grad.is_complex() else torch.float64)
    if clipping_type == "coord_wise":
        lengths = wide.abs()
    elif clipping_type == "adaptive":
        lengths, level = torch.linalg.vector_norm(wide, dim=1, keepdim=True), level * WEIGHT_NORM
    else:
        lengths = torch.linalg.vector_norm(wide)
    return wide * (level / lengths.clamp(min=1e-300)).clamp(max=1)


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [
        (torch.float32, 3e38),
        (torch.float32, 1e5),
        (torch.bfloat16, 3e38),
        (torch.float16, 6e4),
        (torch.float64, 3e38),
        (torch.complex64, 3e38),
    ],
)
@pytest.mark.parametrize("clipping_type", TYPES)
def test_extreme_gradients_are_clipped_as_in_float64(clipping_type, dtype, largest):
    grad, kind = drawn(dtype, largest), torch.finfo(dtype)
    step = kind.smallest_normal * kind.eps  # between the smallest numbers of the type
    tolerances = {"rtol": max(2 * kind.eps, 1e-6), "atol": 2 * step}
    weight = torch.nn.Parameter(torch.zeros_like(grad))
    for level in (1.0, 1e-2, 1e-5, 1e-15, 1e-30, 1e-38):
        weight.grad = grad.clone()
        clip_gradients_(weight, clipping_type, level)
        expected = clipped_in_float64(grad, clipping_type, level)
        found = weight.grad.to(expected.dtype)
        torch.testing.assert_close(found, expected, **tolerances, msg=lambda text, level=level: f"level {level}: {text}")


@pytest.mark.parametrize("clipping_type", TYPES)
def test_step_on_extreme_gradients_goes_as_far_as_in_float64(clipping_type):
    grad = drawn(torch.float32, 3e38)
    weight = torch.nn.Parameter(torch.zeros_like(grad))
    weight.grad = grad.clone()
    ClippedSGD([weight], lr=1.0, clipping_type=clipping_type, clipping_level=0.01).step()
    expected = -clipped_in_float64(grad, clipping_type, 0.01)
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-44)
