import math

import numpy as np
import pytest
import torch
from support.reference import p_norm

from torch_clipped._engine.arrays import HOST
from torch_clipped._engine.norms import entries, host_norms


def norm(values, norm_type=2.0):
    return host_norms([values], (1,), norm_type)[0]


@pytest.mark.parametrize("norm_type", [1, 2, 2.5, math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_norm_is_the_float64_norm(dtype, norm_type):
    for size in (0, 1, 1000, 65536, 65536 + 1, 5 * 16384 + 77):
        values = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
        assert norm(values, norm_type) == pytest.approx(p_norm(values.double().tolist(), norm_type), rel=2e-6), f"{size} entries"


@pytest.mark.parametrize("norm_type", [1, 2, 3])
@pytest.mark.parametrize("size", [10, 70_000])
def test_lengths_that_float32_powers_cannot_hold(size, norm_type):
    draws = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for scale in (1e-44, 1e-38, 1e-25, 1e-19, 1e19, 1e25, 1e38):
        values = (draws * scale).float()
        assert norm(values, norm_type) == pytest.approx(p_norm(values.double().tolist(), norm_type), rel=1e-5), f"scale {scale}"


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_lengths_that_float64_powers_cannot_hold(scale):
    values = torch.tensor([3.0, 4.0], dtype=torch.float64) * scale
    with np.errstate(over="ignore"):  # as the engine runs it
        assert norm(values) == pytest.approx(5 * scale, rel=1e-12)
        assert HOST.norm(np.array([3 * scale, 4 * scale]), 2) == pytest.approx(5 * scale, rel=1e-12)


def test_float16_norm_beyond_the_largest_float16():
    assert norm(torch.full((100,), 6e4, dtype=torch.float16)) == pytest.approx(600_000, rel=1e-3)


@pytest.mark.parametrize("norm_type", [1, 2, 3, math.inf])
@pytest.mark.parametrize("size", [5, 70_000])
def test_length_is_finite_only_if_every_entry_is(size, norm_type):
    values = torch.ones(size)
    assert math.isfinite(norm(values, norm_type))
    for bad in (math.nan, math.inf, -math.inf):
        values[size // 2] = bad
        assert not math.isfinite(norm(values, norm_type)), f"with an entry {bad}"


def test_small_rows_beside_large_ones_keep_their_own_length():
    tensors = [torch.full((70_000,), 1e-24), torch.ones(70_000), None, torch.zeros(3), torch.full((2,), 1e22)]
    lengths = host_norms(tensors, (1,) * len(tensors), 2.0)
    assert lengths == pytest.approx([1e-24 * math.sqrt(70_000), math.sqrt(70_000), 0, 0, 1e22 * math.sqrt(2)], rel=1e-5)


def test_mixed_types_are_combined_in_float64():
    tensors = [torch.ones(3, dtype=dtype) for dtype in (torch.float16, torch.float64, torch.bfloat16, torch.float32)]
    lengths = host_norms(tensors, (1,) * len(tensors), 2.0)
    assert lengths.dtype == np.float64
    assert HOST.norm(lengths, 2.0) == pytest.approx(math.sqrt(12), rel=1e-7)


def test_complex_numbers_count_by_modulus():
    values = torch.tensor([3 + 4j, 0j, -5j])
    assert norm(values) == pytest.approx(math.sqrt(50))
    assert norm(values, 1) == pytest.approx(10)
    assert norm(values, 3) == pytest.approx(250 ** (1 / 3))
    assert norm(values, math.inf) == pytest.approx(5)


def test_entries_are_a_view_of_dense_memory():
    dense = torch.randn(2, 3, 4, 5)
    for tensor in (dense, dense.transpose(0, 2), dense.to(memory_format=torch.channels_last)):
        assert entries(tensor).data_ptr() == tensor.data_ptr()
        assert entries(tensor).sort().values.equal(tensor.flatten().sort().values)


def test_entries_skip_the_holes_of_strided_memory():
    tensor = torch.arange(10.0)[::3]
    assert entries(tensor).tolist() == [0, 3, 6, 9]


def test_norm_of_many_entries_is_exact_where_torch_is_not():
    values = torch.full((4_000_003,), 0.1)
    exact = values.double().norm().item()
    assert abs(torch.nn.utils.get_total_norm([values]).item() / exact - 1) > 1e-4
    assert norm(values) == pytest.approx(exact, rel=5e-6)
