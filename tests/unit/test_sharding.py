"""Sharded norms without processes: a rank's own part of the arithmetic, with stubs for the other ranks and for the all-reduce."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from torch_clipped._engine import sharding
from torch_clipped._engine.arrays import HOST, AcceleratorArrays
from torch_clipped._engine.sharding import Shards, is_sharded, lay_out_gradients, local, process_groups

CPU, INF, NAN = torch.device("cpu"), math.inf, math.nan
DEVICE = AcceleratorArrays()


class Group:
    """A process group of some ranks."""

    def __init__(self, ranks=2):
        self.ranks = ranks

    def size(self):
        return self.ranks


def spread(*dimensions):
    """A parameter on a mesh, of each dimension of which its group is given, and whether the parameter is split over it."""
    groups, are_split = zip(*dimensions, strict=True)
    mesh = SimpleNamespace(ndim=len(groups), get_group=lambda dim: groups[dim], size=lambda dim: groups[dim].ranks)
    placements = [SimpleNamespace(is_replicate=lambda split=split: not split) for split in are_split]
    return SimpleNamespace(placements=placements, device_mesh=mesh)


@pytest.fixture
def reduced(monkeypatch):
    """The reductions asked for; the other ranks of a group hold ``others``, or what this rank does."""
    calls = SimpleNamespace(made=[], others=None)

    def reduce(values, operation, group):
        calls.made.append((operation, group, values.tolist()))
        other = values if calls.others is None else calls.others(values)
        if operation == "MAX":
            return np.maximum(values, other) if isinstance(values, np.ndarray) else torch.maximum(values, other)
        return values + (group.ranks - 1) * other

    monkeypatch.setattr(sharding, "_reduced", reduce)
    return calls


def shards(params, counts, groups, arrays=HOST):
    return Shards(params, counts, groups, CPU, arrays)


def norms(values, arrays=HOST):
    return np.array(values, np.float64) if arrays.is_host else torch.tensor(values, dtype=torch.float64)


def test_plain_tensors_are_not_sharded():
    p = nn.Parameter(torch.zeros(2))
    assert not is_sharded(p)
    assert local(p) is p
    assert process_groups([p, p]) is None
    grad = p.grad = torch.ones(2)
    lay_out_gradients([p])
    assert p.grad is grad


def test_local_part_is_that_of_the_rank():
    part = torch.zeros(1)
    assert local(SimpleNamespace(placements=(), to_local=lambda: part)) is part


def test_gradients_are_laid_out_as_their_parameters_where_they_are_not():
    asked = []
    summed = SimpleNamespace(placements=("split",))
    partial = SimpleNamespace(placements=("partial",), redistribute=lambda placements: (asked.append(placements), summed)[1])
    same = SimpleNamespace(placements=("split",))
    params = [SimpleNamespace(placements=("split",), grad=grad) for grad in (partial, same, None)]
    lay_out_gradients(params)
    assert [p.grad for p in params] == [summed, same, None]
    assert asked == [("split",)]


def test_groups_of_all_mesh_dimensions_of_more_than_one_rank_each_once():
    data, model, alone = Group(2), Group(4), Group(1)
    params = [torch.zeros(1), spread((data, True), (alone, True)), spread((model, False), (data, True))]
    assert process_groups(params) == [data, model]
    assert process_groups([spread((alone, True))]) == []  # sharded, but over one rank


@pytest.mark.parametrize("arrays", [HOST, DEVICE], ids=["host", "accelerator"])
@pytest.mark.parametrize("norm_type", [1, 2, 3, INF])
def test_norms_of_whole_tensors_are_those_of_the_rank(norm_type, arrays):
    own = shards([torch.zeros(1), torch.zeros(3, 2)], [1, 3], [], arrays)
    assert own.counts == (1, 3)
    assert own.lengths(norms([1.0, 2.0, 0.0, 4.0], arrays), norm_type).tolist() == pytest.approx([1, 2, 0, 4], rel=1e-14)
    assert own.local(norms([5.0, 6.0, 7.0, 8.0], arrays)).tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("arrays", [HOST, DEVICE], ids=["host", "accelerator"])
@pytest.mark.parametrize(("norm_type", "wanted"), [(1, [8.0, 5.0, 2.0]), (2, [32**0.5, 5.0, 2.0]), (INF, [4.0, 5.0, 2.0])])
def test_powers_of_split_blocks_are_summed_and_copies_count_once(norm_type, wanted, arrays, reduced):
    """Two ranks with equal parts: of the first parameter each has one, of the second and of a plain one a copy."""
    group = Group(2)
    params = [spread((group, True)), spread((group, False)), torch.zeros(1)]
    found = shards(params, [1, 1, 1], [group], arrays).lengths(norms([4.0, 5.0, 2.0], arrays), norm_type)
    assert found.tolist() == pytest.approx(wanted, rel=1e-14)
    assert [call[:2] for call in reduced.made] == [("MAX" if norm_type == INF else "SUM", group)]


@pytest.mark.parametrize("arrays", [HOST, DEVICE], ids=["host", "accelerator"])
def test_each_mesh_dimension_has_its_own_shares(arrays, reduced):
    """Split over two ranks, with copies on four; the other way round; and split over one of the groups only."""
    two, four = Group(2), Group(4)
    params = [spread((two, True), (four, False)), spread((four, True), (two, False)), spread((four, True))]
    found = shards(params, [1, 1, 1], [two, four], arrays).lengths(norms([3.0, 3.0, 3.0], arrays), 2)
    assert found.tolist() == pytest.approx([3 * 2**0.5, 6.0, 6.0], rel=1e-14)
    assert [call[:2] for call in reduced.made] == [("SUM", two), ("SUM", four)]


def test_values_of_rows_are_repeated_for_every_row(reduced):
    group = Group(2)
    own = shards([torch.zeros(2, 2), spread((group, True))], [2, 1], [group])
    assert own.lengths(norms([1.0, 2.0, 3.0]), 1).tolist() == [1.0, 2.0, 6.0]
    assert reduced.made[0][2] == [0.5, 1.0, 3.0, 0.0]  # shares of copies; and no power has lost digits


@pytest.mark.parametrize(
    ("value", "is_lost"),
    [(0.0, False), (1e-200, True), (0.9e-145, True), (1.1e-145, False), (1e-100, False), (1e153, False), (1e155, True)],
)
def test_powers_that_float64_cannot_hold_are_taken_again_relative_to_the_largest(value, is_lost, reduced):
    group = Group(2)
    with np.errstate(all="ignore"):  # as the engine runs it
        found = shards([spread((group, True))] * 2, [1, 1], [group]).lengths(norms([value, 1.0]), 2)
    assert found.tolist() == pytest.approx([value * 2**0.5, 2**0.5], rel=1e-14, abs=0)
    assert [call[0] for call in reduced.made] == (["SUM", "MAX", "SUM"] if is_lost else ["SUM"])


def test_all_ranks_measure_again_where_one_has_lost_digits(reduced):
    """This rank's powers are fine; another rank says that one of its own was not."""
    group = Group(2)
    reduced.others = lambda values: np.array([0.0, 1.0]) if len(values) == 2 else np.array([0.0])
    found = shards([spread((group, True))], [1], [group]).lengths(norms([3.0]), 2)
    assert found.tolist() == [3.0]
    assert [call[0] for call in reduced.made] == ["SUM", "MAX", "SUM"]
    assert reduced.made[0][2] == [9.0, 0.0]
    assert reduced.made[2][2] == [1.0, 0.0]  # relative to the largest


@pytest.mark.parametrize("bad", [INF, NAN])
@pytest.mark.parametrize("norm_type", [2, INF])
def test_block_that_is_not_finite_on_one_rank_leaves_the_others_finite(norm_type, bad, reduced):
    group = Group(2)
    with np.errstate(all="ignore"):
        found = shards([spread((group, True))] * 2, [1, 1], [group]).lengths(norms([bad, 2.0]), norm_type)
    assert not math.isfinite(found[0])
    assert found[1] == (2.0 if norm_type == INF else pytest.approx(8**0.5))
    assert not any(math.isnan(value) for call in reduced.made if call[0] == "MAX" for value in call[2])  # MAX of NaN is left open


def test_shards_are_made_anew_for_other_arguments_only():
    params, groups = [torch.zeros(2), torch.zeros(2)], [Group(2)]
    made = params, [1, 1], groups, CPU, HOST
    own = Shards(*made)
    assert own.are_of(*made)
    assert own.are_of([*params], (1, 1), [*groups], torch.device("cpu"), HOST)
    for i, other in enumerate(([params[0], torch.zeros(2)], [1, 2], [Group(2)], torch.device("meta"), DEVICE)):
        assert not own.are_of(*made[:i], other, *made[i + 1 :])
    assert not own.are_of(params[:1], *made[1:])
    assert not own.are_of([*params, params[0]], *made[1:])
