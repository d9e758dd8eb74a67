"""Norms of blocks against float64 sums, around every size at which they are measured in another way."""

import math
import threading

import numpy as np
import pytest
import torch

from torch_clipped import clip_gradients_
from torch_clipped._engine import norms
from torch_clipped._engine.norms import accelerator_norms, entries, host_norms, plain_norms, stored, total_norm

INF, NAN = math.inf, math.nan
CPU = torch.device("cpu")
POWERS = (1, 2, 3, INF)


def exact(values, p):
    """The p-norm of the entries, relative to the largest modulus so that no power overflows or vanishes."""
    moduli = np.abs(values.detach().to(torch.complex128).numpy()).reshape(-1)
    largest = moduli.max(initial=0.0)
    if p == INF or not 0 < largest < INF:
        return largest
    return math.fsum((moduli / largest) ** p) ** (1 / p) * largest


def drawn(*shape, dtype=torch.float32, seed=0, scale=1.0):
    """Entries of modulus 0.5 to 1.5, so that a single one too many or too few is seen in the norm of thousands."""
    generator = torch.Generator().manual_seed(seed)
    moduli = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
    angles = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 * math.pi
    values = torch.polar(moduli * scale, angles) if dtype.is_complex else moduli * scale * angles.cos().sign()
    return values.to(dtype)


def measured(tensors, counts, p, device):
    """Measure on the host or as on an accelerator."""
    if device == "host":
        with np.errstate(all="ignore"):  # as the engine runs it
            return host_norms(tensors, counts, p).tolist()
    found = accelerator_norms(tensors, counts, p, CPU)
    assert found.dtype is torch.float64
    return found.tolist()


def whole(tensors, p, device):
    """The norm of all tensors, from those of any parts that make them up."""
    return exact(torch.tensor(measured(tensors, None, p, device), dtype=torch.float64), p)


@pytest.fixture(params=["host", "accelerator"])
def device(request):
    return request.param


def approx(values, rel=2e-6):
    return pytest.approx(values, rel=rel, abs=0)


@pytest.mark.parametrize(("p", "wanted"), [(1, 7), (2, 5), (3, 91 ** (1 / 3)), (1.5, (3**1.5 + 8) ** (2 / 3)), (INF, 4)])
def test_norm_of_three_and_four(p, wanted, device):
    assert measured([torch.tensor([3.0, -4.0])], (1,), p, device) == approx([wanted], 1e-14)


def test_norms_of_zeros_of_nothing_and_of_none(device):
    tensors = [torch.zeros(3), torch.zeros(0), None, torch.tensor(-2.0), torch.zeros(0, 4)]
    for p in POWERS:
        assert measured(tensors, (1, 1, 1, 1, 0), p, device) == [0, 0, 0, 2]
        assert measured([torch.zeros(10_000), None], (1, 2), p, device) == [0, 0, 0]
        assert measured([], (), p, device) == []
        assert whole([None], p, device) == whole([], p, device) == 0


SIZES = [1, 2, 4095, 4096, 4097, 8191, 8192, 8193, 12_288, 12_289, 32_766, 32_767, 32_768, 65_534, 65_535]


@pytest.mark.parametrize("size", SIZES)
def test_norm_counts_every_entry_once(size):
    values, small = drawn(size), drawn(3, seed=1)
    for p in POWERS:
        assert measured([values], (1,), p, "host") == approx([exact(values, p)])
        assert whole([small, values], p, "host") == approx(exact(torch.cat([small, values]), p))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_norm_of_every_type(dtype, device):
    tensors, tolerance = [drawn(size, dtype=dtype, seed=size) for size in (7, 8191, 8192, 33_000)], 2e-6
    if dtype in (torch.float64, torch.complex128):
        tolerance = 1e-13
    for p in POWERS:
        assert measured(tensors, (1,) * 4, p, device) == approx([exact(t, p) for t in tensors], tolerance)


def test_tensors_are_measured_in_any_order_of_sizes_and_types(device):
    """Large ones first, then small ones, complex ones apart: each norm comes back to its own place."""
    tensors = [
        drawn(3, dtype=torch.complex64, seed=1),
        drawn(9000, seed=2),
        None,
        drawn(4, seed=3),
        drawn(2, 2, dtype=torch.float64, seed=4),
        drawn(10_000, dtype=torch.bfloat16, seed=5),
        torch.zeros(0),
        drawn(dtype=torch.float16, seed=6),
        drawn(9000, dtype=torch.complex64, seed=7),
    ]
    for p in POWERS:
        wanted = [0 if t is None else exact(t, p) for t in tensors]
        assert measured(tensors, (1,) * len(tensors), p, device) == approx(wanted)
        assert whole(tensors, p, device) == approx(exact(torch.tensor(wanted, dtype=torch.float64), p))


def test_small_tensors_beyond_one_buffer(device):
    """Five of 8,000 entries are more than are copied at a time; 4 x 8,191 + 3 are exactly as many."""
    for sizes in ([8000] * 5, [8191] * 4 + [3, 1], [8191] * 4 + [4]):
        tensors = [drawn(size, seed=i, scale=10.0**i) for i, size in enumerate(sizes)]
        assert measured(tensors, (1,) * len(sizes), 2, device) == approx([exact(t, 2) for t in tensors])
        assert whole(tensors, 2, device) == approx(math.hypot(*(exact(t, 2) for t in tensors)))


def test_no_more_is_copied_at_a_time_than_stays_in_the_cache(monkeypatch):
    copied, copy = [], torch._foreach_copy_
    monkeypatch.setattr(
        torch, "_foreach_copy_", lambda views, small: (copied.append(sum(t.numel() for t in small)), copy(views, small))
    )
    for sizes in ([8191] * 4 + [3], [8191] * 4 + [4], [8192, 5]):
        plain_norms([torch.ones(size) for size in sizes], (1,) * len(sizes), 2.0)
    assert copied == [32_767, 32_764, 4, 5]  # of 8,192 entries on they are measured where they are


ROWS = [(3, 2), (4, 2, 3), (1, 7), (100, 82), (4, 2048), (1, 8192), (3, 8191), (2, 8192), (3, 8193), (2, 12_289), (2, 33_000)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_norm_of_each_row(shape, dtype, device):
    tensors = [drawn(2, seed=1), drawn(*shape, dtype=dtype), drawn(2, 3, seed=2)]
    for p in POWERS:
        wanted = [exact(tensors[0], p), *(exact(row, p) for row in tensors[1]), *(exact(row, p) for row in tensors[2])]
        assert measured(tensors, (1, shape[0], 2), p, device) == approx(wanted, 5e-6 if device == "host" else 1e-5)


@pytest.mark.parametrize("shape", [(3, 5), (50, 200), (2, 9000)], ids=str)
def test_rows_that_do_not_lie_one_behind_the_other(shape, device):
    rows, columns = shape
    grads = [drawn(columns, rows).T, drawn(rows, 2 * columns)[:, ::2], drawn(2 * rows, columns)[::2]]
    for grad in [*grads, drawn(1, columns).expand(shape)]:
        assert grad.shape == shape
        for p in POWERS:
            assert measured([grad], (rows,), p, device) == approx([exact(row, p) for row in grad])
            assert measured([grad], (1,), p, device) == approx([exact(grad, p)])


SCALES = [1e-44, 1e-38, 1e-25, 1e-19, 1e19, 1e25, 1e38]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(2, 6), (2, 5000), (2, 8192)], ids=str)
def test_norms_beyond_what_float32_can_square(shape, scale):
    """Also beside a block of ordinary size, and beside one of zeros."""
    tensors = [drawn(*shape, scale=scale), drawn(*shape, seed=1), torch.zeros(shape)]
    rows = [row for t in tensors for row in t]
    for p in (1, 2, 3):
        assert measured(tensors, (2, 2, 2), p, "host") == approx([exact(row, p) for row in rows], 1e-5)
        assert measured(tensors, (1, 1, 1), p, "host") == approx([exact(t, p) for t in tensors], 1e-5)
        assert whole(tensors[:1], p, "host") == approx(exact(tensors[0], p), 1e-5)


def test_large_blocks_are_measured_again_only_where_float32_has_lost_digits(monkeypatch):
    again, measure = [], norms._norm_by_chunks
    monkeypatch.setattr(norms, "_norm_by_chunks", lambda values, p: (again.append(values[0].item()), measure(values, p))[1])
    tensors = [torch.full((9000,), value) for value in (1.0, 0.0, 2.0**-70, 2.0**100, 2.0**-40)]
    measured(tensors, (1,) * 5, 2, "host")
    assert again == [2.0**-70, 2.0**100]


@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1e-150, 1e-140, 1e149, 1e151, 1e300])
@pytest.mark.parametrize("size", [2, 9000])
def test_norms_beyond_what_float64_can_square(size, scale):
    tensors = [drawn(size, dtype=torch.float64, scale=scale), drawn(5, dtype=torch.float64), torch.zeros(2).double()]
    tolerance = 1e-2 if scale == 1e-320 else 1e-12  # of which only some digits are left
    for p in (1, 2, 3):
        wanted = [exact(t, p) for t in tensors]
        assert measured(tensors, (1, 1, 1), p, "host") == approx(wanted, tolerance)
        assert measured(tensors[:1], (1,), p, "host") == approx(wanted[:1], tolerance)
        assert whole(tensors[:1], p, "host") == approx(wanted[0], tolerance)


@pytest.mark.parametrize(("scale", "norm"), [(1e25, math.inf), (1e-25, 0.0)])
def test_norms_of_rows_on_an_accelerator_have_the_range_of_float32_as_documented(scale, norm):
    assert measured([torch.full((2, 3), scale)], (2,), 2, "accelerator") == [norm, norm]


@pytest.mark.parametrize("scale", [1e-44, 1e-25, 1e25, 1e38])
def test_norms_of_whole_tensors_on_an_accelerator_beyond_what_float32_can_square(scale):
    tensors = [drawn(300, scale=scale), drawn(3)]
    for p in (1, 2):
        assert measured(tensors, (1, 1), p, "accelerator") == approx([exact(t, p) for t in tensors], 1e-5)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("size", [2, 9000])
def test_modulus_beyond_what_the_type_of_its_parts_can_hold(size, dtype):
    values = torch.ones(size, dtype=dtype)
    values[1] = complex(3e38, -3e38)
    for p in POWERS:
        assert measured([values], (1,), p, "host") == approx([3e38 * math.sqrt(2)])


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("size", [3, 9000, 33_000])
def test_block_with_an_entry_that_is_not_finite_is_not_finite(size, bad, device):
    tensors = [torch.ones(size), torch.ones(size)]
    tensors[0][size // 2] = bad
    for p in POWERS:
        for found in (measured(tensors, (1, 1), p, device), measured([torch.stack(tensors)], (2,), p, device)):
            assert not math.isfinite(found[0])
            assert found[1] == approx(exact(tensors[1], p))
        assert not all(map(math.isfinite, measured(tensors, None, p, device)))


def test_float16_norm_beyond_float16(device):
    assert measured([torch.full((4, 4), 6e4, dtype=torch.float16)], (1,), 2, device) == [4 * 60_000]
    assert measured([torch.full((4, 4), 6e4, dtype=torch.float16)], (4,), 2, device) == approx([2 * 60_000] * 4)
    assert measured([torch.full((128, 128), 6e4, dtype=torch.float16)], (1,), 2, device) == approx([128 * 60_000], 1e-5)


def sparse(sparse_dim=1, dtype=torch.float32):
    """The rows 4, 0 and 3 of five, in this order."""
    values = torch.tensor([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]], dtype=dtype)
    if sparse_dim == 1:
        return torch.sparse_coo_tensor(torch.tensor([[4, 0, 3]]), values, (5, 2), is_coalesced=True)
    return torch.zeros(5, 2, dtype=dtype).index_copy(0, torch.tensor([4, 0, 3]), values).to_sparse()


@pytest.mark.parametrize("sparse_dim", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize(
    ("p", "whole", "rows"), [(1, 10, [2, 0, 0, 1, 7]), (2, 30**0.5, [2, 0, 0, 1, 5]), (INF, 4, [2, 0, 0, 1, 4])]
)
def test_norms_of_sparse_gradients(p, whole, rows, dtype, sparse_dim, device):
    grad, dense = sparse(sparse_dim, dtype), torch.tensor([2.0])
    assert measured([dense, grad, None], (1, 1, 1), p, device) == approx([2, whole, 0])
    assert measured([grad, dense], (5, 1), p, device) == approx([*rows, 2])
    empty = torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, 2), (5, 2), is_coalesced=True)
    assert measured([empty, dense], (5, 1), p, device) == [0] * 5 + [2]
    assert measured([empty], (1,), p, device) == [0]


def test_sparse_entries_of_the_same_place_are_summed_before_they_are_measured():
    """Contract of the whole step: gradients are coalesced before norms are taken."""
    weight = torch.nn.Parameter(torch.zeros(4, 2))
    weight.grad = torch.sparse_coo_tensor(torch.tensor([[2, 0, 2]]), torch.tensor([[1.0, 1.0], [0.0, 0.0], [2.0, 3.0]]), (4, 2))
    assert clip_gradients_(weight, "norm", 1.0).item() == 5.0
    assert weight.grad.to_dense().tolist() == pytest.approx(np.array([[0, 0], [0, 0], [0.6, 0.8], [0, 0]]), rel=1e-6)


class Own(torch.Tensor):
    """A class of tensors that is not torch's."""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64], ids=str)
def test_tensors_of_another_class_beside_plain_ones(dtype):
    own = drawn(3, 4, dtype=dtype)
    first, last = drawn(2, seed=1), drawn(3, 2, seed=2)
    tensors = [first, own.as_subclass(Own), None, last]
    for p in POWERS:
        one, (a, b, c), (d, e, f) = exact(first, p), [exact(row, p) for row in own], [exact(row, p) for row in last]
        assert measured(tensors, (1, 3, 2, 3), p, "host") == approx([one, a, b, c, 0, 0, d, e, f])
        assert measured(tensors, (1, 1, 1, 1), p, "host") == approx([one, exact(own, p), 0, exact(last, p)])
        assert measured([own.as_subclass(Own)], (3,), p, "host") == approx([a, b, c])
        assert measured([torch.zeros(0, 2).as_subclass(Own), None], (0, 1), p, "host") == [0]


def test_gradient_that_is_missing_changes_no_bit_of_the_whole_norm():
    tensors = [drawn(3, seed=1), drawn(9000, seed=2)]
    assert measured([None, tensors[0], None, tensors[1]], None, 2, "host") == measured(tensors, None, 2, "host")


def test_norms_are_of_float64_on_the_host():
    found = host_norms([torch.tensor([1.0]), None], (1, 2), 2.0)
    assert (found.dtype, found.shape) == (np.float64, (3,))
    assert host_norms([], (), 2.0).shape == host_norms([], None, 2.0).shape == (0,)


def test_total_norm_is_that_of_all_entries():
    tensors = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]]).double(), torch.tensor(12.0).bfloat16()]
    assert total_norm(tensors) == 13
    assert total_norm([]) == 0
    assert total_norm([t.requires_grad_() for t in tensors]) == 13


def test_total_norm_of_tensors_elsewhere_is_taken_there(monkeypatch):
    asked = []
    monkeypatch.setattr(norms, "accelerator_norms", lambda *given: (asked.append(given[1:]), torch.tensor([5.0, 12.0]))[1])
    assert total_norm([torch.zeros(1), torch.zeros(2, device="meta")]) == 13
    assert asked == [(None, 2.0, torch.device("meta"))]


def test_buffers_of_threads_are_their_own():
    """While one measures, another one fills its own buffer; and no norm depends on which thread takes it."""
    found, tensors = {}, [drawn(500, seed=seed) for seed in range(4)]

    def run(number):
        found[number] = [measured([tensors[number]], (1,), 2, "host")[0] for _ in range(50)]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, norms_of_thread in found.items():
        assert norms_of_thread == measured([tensors[number]], (1,), 2, "host") * 50


def test_measuring_does_not_change_gradients(device):
    tensors = [drawn(5), drawn(9000), drawn(9000, dtype=torch.bfloat16), sparse(), drawn(4, dtype=torch.complex64)]
    versions, copies = [t._version for t in tensors], [t.clone() for t in tensors]
    for p in (1, 2, INF):
        measured(tensors, (1,) * 5, p, device)
    assert [t._version for t in tensors] == versions
    assert all(t.to_dense().equal(copy.to_dense()) for t, copy in zip(tensors, copies, strict=True))


def test_stored_numbers_of_a_sparse_tensor_are_its_values():
    grad, dense = sparse(), torch.zeros(2)
    assert stored(grad).tolist() == [[3, 4], [0, 2], [-1, 0]]
    assert stored(dense) is dense


def test_entries_are_all_numbers_once_where_they_lie():
    dense = torch.arange(24.0).reshape(2, 3, 4)
    for tensor in (dense, dense.permute(2, 0, 1), dense.reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)):
        assert entries(tensor).shape == (24,)
        assert entries(tensor).data_ptr() == tensor.data_ptr()
        assert sorted(entries(tensor).tolist()) == list(range(24))
    assert entries(torch.arange(10.0)[1::3]).tolist() == [1, 4, 7]
    assert entries(torch.ones(1).expand(3)).tolist() == [1, 1, 1]
    assert entries(torch.tensor(7.0)).tolist() == [7]
