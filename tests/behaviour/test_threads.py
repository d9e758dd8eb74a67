"""A step gives the same bits with any number of threads, so that a run goes on elsewhere as it began."""

import itertools
import math

import pytest
import torch

from torch_clipped import ClippedSGD, clip_gradients_

NORM_TYPES = [1, 1.5, 2, 3, math.inf]
SIZES = [1, 4096, 8193, 100_003]
LEVELS = {"norm": 1e-3, "layer_wise": 1e-3, "adaptive": 1e-3, "coord_wise": 0.1}


@pytest.fixture(autouse=True)
def threads_put_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def gradients(dtypes, scale=1.0):
    """Vectors, some with holes; matrices of one long row, of three, and of rows that stand in memory as columns."""
    generator = torch.Generator().manual_seed(0)
    for dtype in dtypes:
        drawn = torch.randn(2 * 100_003, generator=generator, dtype=torch.promote_types(dtype, torch.float32))
        values = (drawn * scale).to(dtype)
        for size in SIZES:
            yield from (values[:size], values[: 2 * size : 2], values[None, :size])
        yield from (values[: 3 * 8193].view(3, -1), values.view(-1, 2).t())


def after_step(threads, grads, clipping_type, norm_type):
    """Weights, gradients and statistics."""
    torch.set_num_threads(threads)
    weights = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    level = LEVELS[clipping_type]
    optimizer = ClippedSGD(weights, lr=0.5, clipping_type=clipping_type, clipping_level=level, norm_type=norm_type)
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = grad.clone()
    optimizer.step()
    stats = optimizer.clipping_stats()
    assert stats["clipped_steps"] == 1
    return [w.detach() for w in weights], [w.grad for w in weights], {key: value.hex() for key, value in stats.items()}


@pytest.mark.parametrize(
    ("clipping_type", "norm_type"),
    [*itertools.product(("layer_wise", "adaptive"), NORM_TYPES), ("norm", 2), ("norm", 3), ("coord_wise", 2)],
)
def test_step_does_not_depend_on_the_number_of_threads(clipping_type, norm_type):
    grads = list(gradients([torch.float32, torch.bfloat16, torch.float64, torch.complex64]))
    one, other = (after_step(threads, grads, clipping_type, norm_type) for threads in (1, 2))
    for tensors, others in zip(one[:2], other[:2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))
    assert one[2] == other[2]


@pytest.mark.parametrize("scale", [1e-25, 1e25])  # squares leave float32, so that norms are taken again in float64
@pytest.mark.parametrize("norm_type", [2, 3])
def test_step_on_tiny_or_huge_gradients_does_not_depend_on_the_number_of_threads(norm_type, scale):
    grads = list(gradients([torch.float32], scale))
    norms = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        weights = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
        for weight, grad in zip(weights, grads, strict=True):
            weight.grad = grad.clone()
        norms.append(clip_gradients_(weights, "norm", 1.0, norm_type=norm_type).item().hex())
    assert len(set(norms)) == 1


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norm_of_millions_of_entries_does_not_depend_on_the_number_of_threads(dtype, norm_type):
    weight = torch.nn.Parameter(torch.zeros(3_000_001, dtype=dtype))
    weight.grad = torch.randn(3_000_001, generator=torch.Generator().manual_seed(0)).to(dtype)
    norms = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        norms.append(clip_gradients_(weight, "norm", math.inf, norm_type=norm_type).item().hex())
    assert norms[0] == norms[1]
    exact = torch.linalg.vector_norm(weight.grad.double(), norm_type).item()
    assert float.fromhex(norms[0]) == pytest.approx(exact, rel=1e-6)
