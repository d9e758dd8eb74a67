"""Arithmetic of a step: numpy's on the host and torch's on an accelerator, on the same numbers and to the same results."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import reference

from torch_clipped._engine.arrays import (
    HOST,
    AcceleratorArrays,
    Arrays,
    accumulation_dtype,
    arrays_of,
    as_tensor,
    chronological,
    either,
    resized,
)

INF, NAN = math.inf, math.nan
KINDS = [HOST, AcceleratorArrays()]


@pytest.fixture(params=KINDS, ids=["host", "accelerator"])
def arrays(request):
    return request.param


def make(arrays, values, dtype=None):
    """Make numbers of the kind of the arithmetic: a scalar of numpy, an array or a tensor."""
    array = np.array(values, dtype)
    return array[()] if arrays.is_host else torch.from_numpy(array)


def read(values):
    return np.asarray(values).tolist()


def approx(values):
    return pytest.approx(values, rel=1e-14, nan_ok=True)


def test_host_and_accelerator_have_the_same_methods():
    assert (HOST.is_host, AcceleratorArrays().is_host) == (True, False)
    public = {name for name in dir(Arrays) if not name.startswith("_")}
    assert public == {name for name in vars(AcceleratorArrays) if not name.startswith("_")}
    assert arrays_of(np.zeros(2)) is arrays_of(np.float64(1)) is HOST
    assert isinstance(arrays_of(torch.zeros(2)), AcceleratorArrays)


@pytest.mark.parametrize("condition", [True, False])
def test_choice_between_scalars(arrays, condition):
    truth, one, other = make(arrays, condition), make(arrays, 2.0), make(arrays, 3.0)
    for chosen in (
        arrays.where(truth, one, other),
        arrays.where(truth, 2.0, other),
        arrays.where(truth, one, 3.0),
        arrays.where(truth, 2.0, 3.0),
        arrays.where(truth, 2, 3.0) if condition else arrays.where(truth, 2.0, 3),
    ):
        assert float(chosen) == (2.0 if condition else 3.0)
        assert chosen.ndim == 0
        assert str(chosen.dtype).removeprefix("torch.") == "float64"


def test_choice_of_the_host_takes_pythons_truth():
    assert HOST.where(True, 2.0, np.float64(3)) == 2.0
    assert HOST.where(False, 2.0, np.float64(3)) == 3.0


def test_choice_entry_by_entry(arrays):
    truth, one, other = make(arrays, [True, False, True]), make(arrays, [1.0, 2.0, 3.0]), make(arrays, [4.0, 5.0, 6.0])
    assert read(arrays.where(truth, one, other)) == [1, 5, 3]
    assert read(arrays.where(truth, one, INF)) == [1, INF, 3]
    assert read(arrays.where(truth, 0.5, other)) == [0.5, 5, 0.5]
    assert read(arrays.where(truth, 0.5, 0.25)) == [0.5, 0.25, 0.5]
    assert read(arrays.where(make(arrays, True), one, other)) == [1, 2, 3]


def test_number_in_the_shape_of_others(arrays):
    assert read(arrays.full_like(make(arrays, [1.0, 2.0]), 7.5)) == [7.5, 7.5]
    full = arrays.full_like(make(arrays, 1.0), 7)
    assert (full.ndim, float(full)) == (0, 7.0)


def test_numbers_of_an_accelerator_are_made_once():
    arrays, like = AcceleratorArrays(), torch.zeros(3, dtype=torch.float64)
    assert arrays.full_like(like, 2.0).data_ptr() == arrays.full_like(like, 2.0).data_ptr()
    assert arrays.full_like(like.float(), 2.0).dtype is torch.float32
    assert arrays.full_like(like, 2.0).dtype is torch.float64
    assert arrays.where(like == 0, 1.0, 2.0).dtype is torch.float64
    assert arrays.where(like == 0, like.float(), 2.0).dtype is torch.float32
    assert arrays.where(like == 0, 2.0, like.float()).dtype is torch.float32
    assert arrays.false(like) is arrays.false(like)


def test_numbers_that_are_not_finite(arrays):
    values = make(arrays, [0.0, 1e308, INF, NAN])
    assert read(arrays.isfinite(values)) == [True, True, False, False]
    finite, are_all = arrays.are_finite(values)
    assert (read(finite), bool(are_all), are_all.ndim) == ([True, True, False, False], False, 0)
    finite, are_all = arrays.are_finite(values[:2])
    assert (read(finite), bool(are_all)) == ([True, True], True)
    for value, is_finite in ((2.0, True), (INF, False), (NAN, False)):
        assert [bool(found) for found in arrays.are_finite(make(arrays, value))] == [is_finite, is_finite]


def test_smaller_and_larger_of_two(arrays):
    values = make(arrays, [1.0, 2.0, 3.0])
    assert read(arrays.minimum(values, make(arrays, [3.0, 2.0, 1.0]))) == [1, 2, 1]
    assert read(arrays.at_least(values, 2.0)) == [2, 2, 3]
    assert read(arrays.at_most(values, 2.0)) == [1, 2, 2]
    assert (float(arrays.at_least(values[0], 2.0)), float(arrays.at_most(values[2], 2.0))) == (2, 2)


def test_coefficients_are_alpha_and_at_most_one(arrays):
    alpha = make(arrays, [0.25, 1.0, 4.0, INF])
    assert read(arrays.as_coefficients(alpha)) == [0.25, 1, 1, 1]
    assert read(arrays.coefficients(alpha, make(arrays, [True] * 4))) == [0.25, 1, 1, 1]
    assert read(arrays.coefficients(alpha, make(arrays, [False] * 4))) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("alpha", "clipped", "wanted"), [(0.25, True, 0.25), (0.25, False, 1), (1, True, 1), (2, True, 1), (2, False, 1)]
)
def test_coefficient_of_one_block(arrays, alpha, clipped, wanted):
    found = arrays.coefficients(make(arrays, float(alpha)), make(arrays, clipped))
    assert (found.ndim, float(found)) == (0, wanted)


def test_coefficient_of_an_accelerator_has_an_inverse_in_float32():
    found = AcceleratorArrays().as_coefficients(torch.tensor([0.0, 1e-50, 1e-38], dtype=torch.float64))
    assert found.tolist() == [3e-39, 3e-39, 1e-38]
    assert (1 / found).float().isfinite().all()
    assert HOST.as_coefficients(np.array([1e-50]))[0] == 1e-50


def test_values_move_by_a_share_of_the_way(arrays):
    values = make(arrays, [0.0, 10.0, 3.0])
    arrays.lerp_(values, make(arrays, [8.0, 20.0, 5.0]), make(arrays, [0.25, 0.5, 0.0]))
    assert read(values) == [2, 15, 3]


def test_false_is_false(arrays):
    found = arrays.false(make(arrays, [1.0]))
    assert (bool(found), found.ndim) == (False, 0)


def test_parts_and_single_values_in_a_row(arrays):
    assert read(arrays.concatenate([make(arrays, [1.0]), make(arrays, [2.0, 3.0])])) == [1, 2, 3]
    assert read(arrays.stack([make(arrays, 1.0), make(arrays, 2.0)])) == [1, 2]
    assert read(arrays.stack([make(arrays, True), make(arrays, False)])) == [True, False]


def test_condition_that_holds_somewhere(arrays):
    assert bool(arrays.any(make(arrays, [False, True])))
    assert not bool(arrays.any(make(arrays, [False, False])))
    assert bool(arrays.any(make(arrays, True)))
    assert not bool(arrays.any(make(arrays, False)))


@pytest.mark.parametrize("norm_type", [1, 2, 3, 17, INF])
@pytest.mark.parametrize("norms", [[5.0], [3.0, 4.0], [0.0, 0.0], [1.0, 0.0, 2.0, 2.0], [0.5] * 100])
def test_norm_of_norms(arrays, norms, norm_type):
    found = arrays.norm(make(arrays, norms), norm_type)
    assert (found.ndim, float(found)) == (0, pytest.approx(reference.p_norm(norms, norm_type), rel=1e-13))


def test_norm_of_no_parts_is_zero(arrays):
    assert [float(arrays.norm(make(arrays, [], float), p)) for p in (1, 2, INF)] == [0, 0, 0]


def test_norm_that_is_not_finite(arrays):
    for norm_type in (1, 2, 3, INF):
        assert float(arrays.norm(make(arrays, [INF, 1.0]), norm_type)) == INF
        assert math.isnan(float(arrays.norm(make(arrays, [NAN, 1.0]), norm_type)))


@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1e-151, 1e-150, 1e-149, 1e149, 1e150, 1e151, 1e307])
@pytest.mark.parametrize("norm_type", [2, 3, 50])
def test_norm_on_the_host_neither_overflows_nor_vanishes(scale, norm_type):
    norms = [3 * scale, 4 * scale]
    with np.errstate(all="ignore"):  # as the engine runs it
        found = HOST.norm(np.array(norms), norm_type)
    assert found == pytest.approx(reference.p_norm(norms, norm_type), rel=1e-3 if scale == 1e-320 else 1e-13)


def test_single_norm_is_handed_on_as_it_is():
    assert HOST.norm(np.array([1e-320]), 3) == 1e-320
    norms = torch.tensor([7.0])
    assert AcceleratorArrays().norm(norms, 3).data_ptr() == norms.data_ptr()


@pytest.mark.parametrize(
    ("values", "chosen", "wanted"),
    [
        ([5.0, 1.0, 3.0], [True, True, True], 3),
        ([5.0, 1.0, 3.0, 100.0], [True, True, True, True], 4),
        ([5.0, 1.0, 3.0, 100.0], [True, False, False, True], 52.5),
        ([5.0, 1.0], [False, True], 1),
        ([5.0, 1.0], [False, False], NAN),
        ([5.0], [False], 5),  # the only one, chosen or not
        ([INF, INF, 1.0, INF], [True] * 4, INF),
        ([INF, 2.0, 1.0], [True] * 3, 2),
        ([], [], NAN),
    ],
)
def test_median_of_the_chosen(arrays, values, chosen, wanted):
    assert float(arrays.median(make(arrays, values, float), make(arrays, chosen, bool))) == approx(wanted)


def test_median_of_one_block_is_its_value(arrays):
    assert float(arrays.median(make(arrays, 7.0), make(arrays, False))) == 7.0


def history(arrays, window, blocks):
    lengths, count = np.zeros((window, blocks)), np.zeros(blocks, np.int64)
    own = [array if arrays.is_host else torch.from_numpy(array) for array in (lengths, count)]
    return SimpleNamespace(lengths=own[0], count=own[1])


def test_ring_holds_the_last_values_of_each_block(arrays):
    memory = history(arrays, 3, 2)
    for values, valid in ([(1, 10), (True, True)], [(2, 20), (True, False)], [(3, 30), (True, True)], [(4, 40), (True, False)]):
        arrays.push(memory, make(arrays, values, float), make(arrays, valid))
    assert read(memory.lengths) == [[4, 10], [2, 30], [3, 0]]
    assert read(memory.count) == [4, 2]
    assert [read(chronological(memory, block)) for block in (0, 1)] == [[2, 3, 4], [10, 30]]


@pytest.mark.parametrize(("probability", "wanted"), [(0.01, [1.03, 7, INF]), (0.5, [2.5, 7, INF]), (1.0, [4, 7, INF])])
def test_quantile_of_each_block(arrays, probability, wanted):
    memory = history(arrays, 4, 3)
    for value in (4, 1, 3, 2):
        arrays.push(memory, make(arrays, [value, 7, 0], float), make(arrays, [True, value == 3, False]))
    assert read(arrays.quantile(memory, probability)) == approx(wanted)


def test_quantile_is_kept_up_to_date_while_old_values_leave(arrays):
    memory, values, window = history(arrays, 4, 1), [5.0, 5.0, 1.0, 2.0, 5.0, 3.0, 3.0, 9.0, 1.0, 1.0, 1.0, 1.0], []
    for value in values:
        arrays.push(memory, make(arrays, [value]), make(arrays, [True]))
        window = [*window, value][-4:]
        for probability in (0.3, 1.0):
            assert float(arrays.quantile(memory, probability)[0]) == approx(reference.quantile(window, probability))


def test_mean_and_sample_deviation_of_each_block(arrays):
    memory = history(arrays, 3, 4)
    for values in ([9, 1, 5, 0], [1, 3, 0, 0], [2, 0, 0, 0], [6, 0, 0, 0]):
        arrays.push(memory, make(arrays, values, float), make(arrays, [value > 0 for value in values]))
    known, mean, std = (read(values) for values in arrays.mean_and_std(memory))
    assert known == [3, 2, 1, 0]
    assert mean == approx([3, 2, 5, 0])
    assert std == approx([math.sqrt(7), math.sqrt(2), 0, 0])


@pytest.mark.parametrize(
    ("recorded", "wanted"), [(0, (0, 0, 0)), (1, (1, 2, 0)), (2, (2, 3, 2**0.5)), (5, (4, 7, math.sqrt(20 / 3)))]
)
def test_mean_and_deviation_where_all_blocks_know_as_much(arrays, recorded, wanted):
    memory = history(arrays, 4, 2)
    for number in range(recorded):
        arrays.push(memory, make(arrays, [2.0 * number + 2] * 2), make(arrays, [True] * 2))
    for found, value in zip(arrays.mean_and_std(memory), wanted, strict=True):
        assert read(found) == approx([value] * 2)


@pytest.mark.parametrize("recorded", [0, 2, 3, 4, 7])
def test_history_with_another_window_keeps_the_newest(recorded):
    lengths, count = torch.zeros(3, 2, dtype=torch.float64), torch.tensor([recorded, min(recorded, 1)])
    for number in range(recorded):
        lengths[number % 3, 0] = number + 1
    lengths[0, 1] = 9.0
    newest = list(range(1, recorded + 1))[-3:]
    for window in (2, 3, 5):
        kept, counted = resized(lengths, count, window)
        assert kept[:, 0].tolist() == newest[-window:] + [0] * (window - len(newest[-window:]))
        assert kept[:, 1].tolist() == [9.0 if recorded else 0.0] + [0] * (window - 1)
        assert counted.tolist() == [min(len(newest), window), min(recorded, 1)]
        assert (kept.dtype, counted.dtype) == (torch.float64, torch.int64)


def test_history_of_one_block_without_a_dimension():
    for memory in (
        SimpleNamespace(lengths=np.array([4.0, 2.0, 3.0]), count=np.array(4)),
        SimpleNamespace(lengths=torch.tensor([4.0, 2.0, 3.0]), count=torch.tensor(4)),
    ):
        assert chronological(memory).tolist() == [2, 3, 4]
    assert chronological(SimpleNamespace(lengths=np.array([1.0, 2.0, 3.0]), count=np.array(3))).tolist() == [1, 2, 3]


@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("other", [False, True])
def test_either_of_two_truths(one, other):
    assert either(one, other) is (one or other)
    for kind in KINDS:
        assert bool(either(make(kind, one), other)) is (one or other)
        assert bool(either(one, make(kind, other))) is (one or other)
        assert bool(either(make(kind, one), make(kind, other))) is (one or other)


def test_false_is_not_asked_of_an_accelerator():
    truth = torch.tensor(True)
    assert either(truth, False) is truth
    assert either(False, truth) is truth
    assert either(True, truth) is True


def test_numbers_become_tensors_where_they_are():
    tensor, array = torch.zeros(2), np.array([1.0, 2.0])
    assert as_tensor(tensor) is tensor
    assert as_tensor(array).data_ptr() == array.ctypes.data
    assert as_tensor(np.float64(3)).shape == ()
    with torch.device("meta"):
        assert as_tensor(array).tolist() == [1, 2]


def test_norms_are_of_float64_wherever_the_device_knows_it():
    found = {name: accumulation_dtype(torch.device(name)) for name in ("cpu", "cuda", "mps", "meta")}
    assert found == {"cpu": torch.float64, "cuda": torch.float64, "mps": torch.float32, "meta": torch.float64}
