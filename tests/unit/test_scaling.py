"""Gradients multiplied by given coefficients or clamped to given thresholds, on the host and as on an accelerator."""

import math

import numpy as np
import pytest
import torch

from torch_clipped._engine import scaling
from torch_clipped._engine.scaling import clamp_entries_, scale_all_, scale_each_, scale_units_

INF, NAN = math.inf, math.nan
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
LOW = [torch.float16, torch.bfloat16]
THIRD = 1 / 3  # not exact in any type


@pytest.fixture(params=[True, False], ids=["host", "accelerator"])
def is_host(request):
    return request.param


def apply(scale_, grads, coefficients, is_host, thresholds=None, counts=None):
    """Scale in place: numbers are numpy's on the host and tensors on an accelerator; one coefficient has no dimension."""
    thresholds = coefficients if thresholds is None else thresholds
    numbers = [np.array(values, np.float64) for values in (coefficients, thresholds)]
    numbers = [array[()] if is_host else torch.from_numpy(array) for array in numbers]
    scale_(grads, [1] * len(grads) if counts is None else counts, *numbers, is_host)


def wanted(values, factor):
    """``values * factor`` in double precision, rounded once to the type of the values."""
    return (values.to(torch.complex128 if values.is_complex() else torch.float64) * factor).to(values.dtype)


def drawn(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.complex128 if dtype.is_complex else torch.float64).to(dtype)


def assert_same(tensors, others):
    """Assert that tensors are the same to the last bit; None only as None."""
    for one, other in zip(tensors, others, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def assert_near(tensor, other):
    """Assert that the numbers agree but for the last bits of their type."""
    torch.testing.assert_close(tensor, other, rtol=2 * torch.finfo(tensor.dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_coefficient_multiplies_every_gradient(dtype, is_host):
    grads = [drawn(3, 2, dtype=dtype), None, drawn(dtype=dtype), drawn(5, dtype=dtype), torch.zeros(0, dtype=dtype)]
    expected = [None if g is None else g * 0.25 for g in grads]
    addresses = [g.data_ptr() for g in grads if g is not None]
    apply(scale_all_, grads, 0.25, is_host)
    assert_same(grads, expected)
    assert [g.data_ptr() for g in grads if g is not None] == addresses  # in place


def test_gradients_of_several_types_are_multiplied_together(is_host):
    grads = [drawn(4, dtype=dtype) for dtype in DTYPES]
    expected = [wanted(g, THIRD) for g in grads]
    apply(scale_all_, grads, THIRD, is_host)
    for grad, other in zip(grads, expected, strict=True):
        assert_near(grad, other)


@pytest.mark.parametrize("scale_", [scale_all_, scale_each_, scale_units_])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_coefficient_is_not_rounded_to_low_precision(dtype, scale_, is_host):
    grads = [drawn(50, 20, dtype=dtype)]
    coefficient = 0.1
    expected = (grads[0].float() * torch.tensor(coefficient)).to(dtype)
    assert not expected.equal(grads[0] * torch.tensor(coefficient, dtype=dtype))
    counts = [50] if scale_ is scale_units_ else [1]
    apply(scale_, grads, coefficient if scale_ is scale_all_ else [coefficient] * counts[0], is_host, counts=counts)
    assert_same(grads, [expected])


@pytest.mark.parametrize("scale_", [scale_all_, scale_each_, scale_units_])
def test_coefficient_of_double_precision_keeps_its_digits(scale_, is_host):
    grads = [torch.ones(3, 2, dtype=torch.float64), torch.ones(3, 2, dtype=torch.complex128)]
    counts = [3, 3] if scale_ is scale_units_ else [1, 1]
    apply(scale_, grads, THIRD if scale_ is scale_all_ else [THIRD] * sum(counts), is_host, counts=counts)
    assert_same(grads, [torch.full_like(g, THIRD) for g in grads])


@pytest.mark.parametrize("coefficient", [1.0, 1.5, INF, NAN])
def test_host_does_not_write_where_no_coefficient_is_below_one(coefficient):
    """A coefficient that is no number belongs to a gradient that is not finite, and is left alone."""
    sparse = torch.eye(3).to_sparse()
    grads = [drawn(3, 2), drawn(3), sparse]
    before, versions = [g.clone() for g in grads], [g._version for g in grads]
    apply(scale_all_, grads, coefficient, True)
    apply(scale_each_, grads, [coefficient] * 3, True)
    apply(scale_units_, grads, [coefficient] * 7, True, counts=[3, 1, 3])
    apply(clamp_entries_, grads, [coefficient] * 3, True, thresholds=[1e-3] * 3)
    assert [g._version for g in grads] == versions
    assert_same(grads, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accelerator_multiplies_by_one_without_changing_a_bit(dtype):
    grads = [drawn(3, 2, dtype=dtype), drawn(3, dtype=dtype), None]
    before = [g if g is None else g.clone() for g in grads]
    apply(scale_all_, grads, 1.0, False)
    apply(scale_each_, grads, [1.0] * 3, False)
    apply(scale_units_, grads, [1.0] * 5, False, counts=[3, 1, 1])
    if not dtype.is_complex:
        apply(clamp_entries_, grads, [1.0] * 3, False, thresholds=[1e-3] * 3)
    assert_same(grads, before)


def test_coefficient_just_below_one_counts(is_host):
    grads = [torch.ones(2, dtype=torch.float64)]
    below = math.nextafter(1.0, 0.0)
    apply(scale_all_, grads, below, is_host)
    assert grads[0].tolist() == [below] * 2
    apply(scale_each_, grads, [below], is_host)
    assert grads[0].tolist() == [below * below] * 2


def test_zero_coefficient_makes_zeros(is_host):
    grads = [drawn(3)]
    apply(scale_each_, grads, [0.0], is_host)
    assert not grads[0].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_gradient_has_its_own_coefficient(dtype, is_host):
    grads = [drawn(3, 2, dtype=dtype), None, drawn(dtype=dtype), torch.zeros(0, dtype=dtype), drawn(5, dtype=dtype)]
    expected = [grads[0] * 0.5, None, grads[2].clone(), grads[3].clone(), grads[4] * 0.125]
    apply(scale_each_, grads, [0.5, 0.0, 1.0, 0.25, 0.125], is_host)
    assert_same(grads, expected)


def test_each_gradient_is_multiplied_in_its_own_type(is_host):
    grads = [drawn(4, dtype=dtype) for dtype in DTYPES]
    factors = [THIRD / (i + 1) for i in range(len(DTYPES))]
    expected = [wanted(g, factor) for g, factor in zip(grads, factors, strict=True)]
    apply(scale_each_, grads, factors, is_host)
    for grad, other in zip(grads, expected, strict=True):
        assert_near(grad, other)


@pytest.mark.parametrize("is_low", [False, True])
def test_no_gradient_at_all_is_nothing_to_scale(is_host, is_low):
    grads = [None, torch.zeros(0, dtype=torch.float16)] if is_low else [None]
    for scale_ in (scale_each_, clamp_entries_):
        apply(scale_, grads, [0.5] * len(grads), is_host)
    apply(scale_all_, grads, 0.5, is_host)
    apply(scale_units_, grads, [0.5] * (len(grads) - 1), is_host, counts=[1, 0][: len(grads)] if is_low else [0])
    assert grads[0] is None


def test_units_are_rows_and_filters_and_whole_vectors(is_host):
    grads = [drawn(3, 2), None, drawn(4), drawn(2, 2, 3), drawn(), torch.zeros(0, 3)]
    coefficients = [0.5, 1.0, 0.25, *[0.0, 0.0], 0.125, *[1.0, 0.5], 0.25]
    expected = [grads[0].clone(), None, grads[2] * 0.125, grads[3].clone(), grads[4] * 0.25, grads[5].clone()]
    expected[0][0] *= 0.5
    expected[0][2] *= 0.25
    expected[3][1] *= 0.5
    apply(scale_units_, grads, coefficients, is_host, counts=[3, 2, 1, 2, 1, 0])
    assert_same(grads, expected)


def test_unit_of_the_last_gradient_is_scaled_and_no_other(is_host):
    """The smallest coefficient of a gradient is looked for among its own units only."""
    grads = [drawn(2, 2), drawn(2, 2), drawn(2, 2)]
    expected = [grads[0].clone(), grads[1].clone(), grads[2] * torch.tensor([[1.0], [0.5]])]
    versions = [g._version for g in grads]
    apply(scale_units_, grads, [1.0] * 5 + [0.5], is_host, counts=[2, 2, 2])
    assert_same(grads, expected)
    if is_host:
        assert [g._version == version for g, version in zip(grads, versions, strict=True)] == [True, True, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_units_are_multiplied_in_their_own_type(dtype, is_host):
    grads = [drawn(3, 4, dtype=dtype)]
    coefficients = [THIRD, 1.0, 0.1]
    expected = wanted(grads[0], torch.tensor(coefficients, dtype=torch.float64)[:, None])
    apply(scale_units_, grads, coefficients, is_host, counts=[3])
    assert_near(grads[0], expected)


@pytest.mark.parametrize("shape", [(40, 4096), (3, 70_000), (65_536, 1), (1, 65_537), (65_537, 2)])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_units_of_large_gradients_of_low_precision(dtype, shape, is_host):
    grads = [torch.ones(shape, dtype=dtype)]
    coefficients = (2.0 ** -(torch.arange(shape[0]) % 7 + 1)).tolist()
    expected = torch.tensor(coefficients, dtype=dtype)[:, None].expand(shape)
    apply(scale_units_, grads, coefficients, is_host, counts=[shape[0]])
    assert_same(grads, [expected])


def test_rows_are_copied_part_by_part_in_low_precision(monkeypatch):
    """At most 65,536 entries are converted to float32 at a time, at least a row; what needs no conversion is not split."""
    launched = []
    multiply = torch._foreach_mul_
    assert scaling._PART == 65_536
    monkeypatch.setattr(scaling, "_PART", 6)
    monkeypatch.setattr(torch, "_foreach_mul_", lambda rows, by: (launched.append([len(r) for r in rows]), multiply(rows, by)))
    for dtype, shape in ((torch.float16, (3, 2)), (torch.float16, (5, 3)), (torch.float16, (2, 9)), (torch.float32, (5, 3))):
        grads = [torch.ones(shape, dtype=dtype)]
        apply(scale_units_, grads, [0.5] * shape[0], True, counts=[shape[0]])
        assert_same(grads, [torch.full(shape, 0.5, dtype=dtype)])
    assert launched == [[3], [2, 2, 1], [1, 1], [5]]


@pytest.mark.parametrize("coefficient", [1e-29, 1e-31, 1e-40, 1e-44])
@pytest.mark.parametrize("scale_", [scale_all_, scale_each_, scale_units_])
def test_host_multiplies_by_what_float32_cannot_hold(scale_, coefficient):
    grads = [torch.full((2, 2), 3e38), torch.full((2, 2), 1e38, dtype=torch.float64), torch.full((2,), 3e38).bfloat16()]
    expected = [g.double() * coefficient for g in grads]
    counts = [2, 2, 1] if scale_ is scale_units_ else [1] * 3
    apply(scale_, grads, coefficient if scale_ is scale_all_ else [coefficient] * sum(counts), True, counts=counts)
    for grad, other, tolerance in zip(grads, expected, (1e-6, 1e-14, 2**-7), strict=True):
        torch.testing.assert_close(grad.double(), other, rtol=tolerance, atol=0)


def test_host_multiplies_one_tiny_unit_beside_ordinary_ones():
    grads = [torch.full((3, 2), 3e38), torch.full((2, 2), 4.0), torch.full((2, 2), 4.0)]
    apply(scale_units_, grads, [1e-40, 0.5, 1.0, 0.25, 1.0, 1.0, 1.0], True, counts=[3, 2, 2])
    torch.testing.assert_close(grads[0].double()[:, 0], torch.tensor([3e-2, 1.5e38, 3e38]).double(), rtol=1e-6, atol=0)
    assert_same(grads[1:], [torch.tensor([[1.0, 1.0], [4.0, 4.0]]), torch.full((2, 2), 4.0)])


@pytest.mark.parametrize("scale_", [scale_all_, scale_each_, scale_units_, clamp_entries_])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("view", [lambda t: t.T, lambda t: t[:, ::2], lambda t: t[1:]], ids=["transposed", "strided", "cut"])
def test_gradients_that_are_not_contiguous_are_changed_where_they_are(view, dtype, scale_, is_host):
    whole = drawn(4, 6, dtype=dtype)
    grad, expected = view(whole), whole.clone()
    counts = [len(grad)] if scale_ is scale_units_ else [1]
    if scale_ is clamp_entries_:
        view(expected).clamp_(-0.5, 0.5)
    else:
        view(expected).mul_(0.5)
    apply(scale_, [grad], 0.5 if scale_ is scale_all_ else [0.5] * counts[0], is_host, counts=counts)
    assert_same([whole], [expected])


def sparse(dtype=torch.float32, sparse_dim=1):
    """The rows 0, 3 and 4 of five."""
    dense = torch.zeros(5, 2, dtype=dtype)
    dense[[0, 3, 4]] = torch.tensor([[1.0, 2.0], [-4.0, 8.0], [16.0, 32.0]], dtype=dtype)
    return dense.to_sparse(sparse_dim).coalesce()


@pytest.mark.parametrize("sparse_dim", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_sparse_gradients_are_scaled_by_their_values(dtype, sparse_dim, is_host):
    for scale_ in (scale_all_, scale_each_):
        grad = sparse(dtype, sparse_dim)
        apply(scale_, [grad], 0.25 if scale_ is scale_all_ else [0.25], is_host)
        assert_same([grad.to_dense()], [sparse(dtype).to_dense() * 0.25])


@pytest.mark.parametrize("sparse_dim", [1, 2])
def test_rows_of_sparse_gradients_have_the_coefficients_of_their_indices(sparse_dim, is_host):
    grad, coefficients = sparse(sparse_dim=sparse_dim), [0.5, 0.1, 0.1, 1.0, 0.125]
    apply(scale_units_, [grad], coefficients, is_host, counts=[5])
    assert_same([grad.to_dense()], [sparse().to_dense() * torch.tensor(coefficients)[:, None]])


def test_sparse_vector_is_one_unit(is_host):
    grad = torch.tensor([0.0, 2.0, 0.0, -4.0]).to_sparse().coalesce()
    apply(scale_units_, [grad], [0.5], is_host, counts=[1])
    assert grad.to_dense().tolist() == [0.0, 1.0, 0.0, -2.0]


def test_sparse_gradient_is_clamped(is_host):
    grad = sparse()
    apply(clamp_entries_, [grad], [0.5], is_host, thresholds=[3.0])
    assert grad.to_dense().tolist() == [[1, 2], [0, 0], [0, 0], [-3, 3], [3, 3]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_entries_are_clamped_to_plus_and_minus_their_own_threshold(dtype, is_host):
    grads = [torch.tensor([-3.0, 0.25, 2.0, -0.5, 0.5], dtype=dtype) for _ in range(4)]
    grads[1] = None
    apply(clamp_entries_, grads, [0.1, 0.1, 1.0, 0.9], is_host, thresholds=[0.5, 0.1, 0.1, 2.0])
    assert grads[0].tolist() == [-0.5, 0.25, 0.5, -0.5, 0.5]
    assert grads[1] is None
    assert grads[2].tolist() == [-3.0, 0.25, 2.0, -0.5, 0.5]  # its coefficient is 1
    assert grads[3].tolist() == [-2.0, 0.25, 2.0, -0.5, 0.5]


def test_clamping_shortens_inf_and_keeps_nan(is_host):
    grads = [torch.tensor([INF, -INF, NAN, 0.5])]
    apply(clamp_entries_, grads, [0.0], is_host, thresholds=[2.0])
    assert_same(grads, [torch.tensor([2.0, -2.0, NAN, 0.5])])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_entries_are_clamped_by_modulus(dtype, is_host):
    grads = [torch.tensor([3 + 4j, -6 - 8j, 0.3 - 0.4j, 5j, 0j, 1.5 + 2j], dtype=dtype)]
    apply(clamp_entries_, grads, [0.5], is_host, thresholds=[2.5])
    expected = torch.tensor([1.5 + 2j, -1.5 - 2j, 0.3 - 0.4j, 2.5j, 0j, 1.5 + 2j], dtype=dtype)
    torch.testing.assert_close(grads[0], expected, rtol=1e-6 if dtype is torch.complex64 else 1e-15, atol=0)
    assert grads[0][[2, 4, 5]].equal(expected[[2, 4, 5]])  # not too long: as they were


def test_complex_entries_that_are_not_finite_stay(is_host):
    grads = [torch.tensor([complex(INF, 1), complex(0, NAN), 30 + 40j])]
    apply(clamp_entries_, grads, [0.0], is_host, thresholds=[5.0])
    inf, nan, finite = grads[0].tolist()
    assert inf == complex(INF, 1)
    assert (nan.real, math.isnan(nan.imag)) == (0, True)
    assert finite == pytest.approx(3 + 4j, rel=1e-6)


def test_complex_entries_of_a_modulus_beyond_their_type_are_clamped(is_host):
    grads = [torch.tensor([complex(3e38, -3e38), complex(3e38, 3e38)])]
    apply(clamp_entries_, grads, [0.0], is_host, thresholds=[2.0])
    root = math.sqrt(2)
    assert grads[0].tolist() == pytest.approx([complex(root, -root), complex(root, root)], rel=1e-6)
