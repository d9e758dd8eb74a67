"""Statistics after given steps, of one clip set and of several, on the host and as on an accelerator."""

import math

import numpy as np
import pytest
import torch

from torch_clipped._engine.arguments import Arguments
from torch_clipped._engine.arrays import HOST, AcceleratorArrays
from torch_clipped._engine.monitor import StepMonitor
from torch_clipped._engine.state import StateArrays, install, prepared_memory
from torch_clipped._engine.statistics import SetStatistics, StepValues, TotalStatistics
from torch_clipped.measures import MEASURES

NAN, INF = math.nan, math.inf
FORMS = ["host", "accelerator"]


class Steps:
    """Clip sets whose measured values are given by hand: one group each, with the totals in the first."""

    def __init__(self, form, measures=("global",), is_complete=True, norm_type=2.0, window=3):
        self.is_host, self.measures = form == "host", [MEASURES[name] for name in measures]
        arrays = HOST if self.is_host else AcceleratorArrays()
        self.groups = [{"params": [torch.zeros(2)]} for _ in measures]
        for group in self.groups:
            install(group, prepared_memory(group, Arguments("norm", clipping_window=window), torch.device("cpu")))
        state, self.monitor = StateArrays(self.is_host), Observed()
        pairs = zip(self.groups, self.measures, strict=True)
        self.records = [SetStatistics(group, state, "set_", arrays, measure, norm_type) for group, measure in pairs]
        self.totals = TotalStatistics(self.groups[0], state, arrays, is_complete, norm_type, self.monitor)

    def number(self, value):
        array = np.array(value)
        return array[()] if self.is_host else torch.from_numpy(array)

    def values(self, norm, lengths=None, thresholds=1.0, coefficients=1.0, **changes):
        """What one clip set measured; by default one block that is recorded and not clipped."""
        given = {"is_finite": True, "recorded": True, "clipped": False, "skipped": False, "shrinkage": NAN} | changes
        for name in ("recorded", "clipped"):
            given[name] = self.number(given[name])
        if not isinstance(given["skipped"], bool):
            given["skipped"] = self.number(given["skipped"])
        lengths = norm if lengths is None else lengths
        return StepValues(*map(self.number, (norm, lengths, thresholds, coefficients)), **given)

    def step(self, *values):
        with np.errstate(all="ignore"):
            self.totals.remember_all(self.records, values)


class Observed(StepMonitor):
    """A monitor that keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def observe(self, norm, coefficient):
        self.seen.append((norm, coefficient))


def approx(wanted):
    return pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_known_before_the_first_step(form):
    steps = Steps(form)
    last = dict.fromkeys(("grad_norm", "clipped_norm", "threshold", "coefficient", "clip_rate"), NAN)
    wanted = last | {"steps": 0.0, "clipped_steps": 0.0, "skipped_steps": 0.0}
    assert steps.totals.statistics() == approx(wanted)
    assert steps.records[0].statistics() == approx(wanted)
    assert steps.totals.grad_norms().tolist() == []


@pytest.mark.parametrize("form", FORMS)
def test_last_step_of_one_block_and_counts_of_all(form):
    steps = Steps(form)
    steps.step(steps.values(4.0, thresholds=3.0, coefficients=0.75, clipped=True))
    steps.step(steps.values(2.0, thresholds=3.0))
    steps.step(steps.values(8.0, thresholds=2.0, coefficients=0.25, clipped=True))
    wanted = {"grad_norm": 8.0, "clipped_norm": 2.0, "threshold": 2.0, "coefficient": 0.25}
    wanted |= {"clip_rate": 2 / 3, "steps": 3.0, "clipped_steps": 2.0, "skipped_steps": 0.0}
    assert steps.totals.statistics() == approx(wanted)
    assert steps.records[0].statistics() == approx(wanted)


@pytest.mark.parametrize("measure", ["global", "layer"])
@pytest.mark.parametrize("form", FORMS)
def test_step_that_is_not_recorded_leaves_the_last_values(form, measure):
    steps = Steps(form, [measure])
    block = (lambda number: [number]) if measure == "layer" else (lambda number: number)
    steps.step(steps.values(4.0, block(4.0), block(3.0), block(0.75), clipped=True))
    steps.step(steps.values(9.0, block(9.0), block(1.0), block(1.0), recorded=False))
    for stats in (steps.totals.statistics(), steps.records[0].statistics()):
        assert [stats[name] for name in ("grad_norm", "clipped_norm", "threshold", "coefficient")] == [4.0, 3.0, 3.0, 0.75]
        assert [stats[name] for name in ("steps", "clipped_steps")] == [1, 1]
    assert steps.totals.grad_norms().tolist() == [4.0]


@pytest.mark.parametrize("form", FORMS)
def test_skipped_step_is_counted(form):
    steps = Steps(form)
    steps.step(steps.values(9.0, thresholds=3.0, coefficients=0.0, clipped=True, skipped=np.True_))
    stats = steps.totals.statistics()
    assert [stats[name] for name in ("steps", "clipped_steps", "skipped_steps", "clipped_norm")] == [1, 1, 1, 0]


@pytest.mark.parametrize("form", FORMS)
def test_medians_over_blocks_leave_out_those_without_a_usable_length(form):
    steps = Steps(form, ["layer"])
    lengths, thresholds, coefficients = [0.3, 0.0, 0.4, INF], [0.1, 9.0, 0.2, 9.0], [1 / 3, 1.0, 0.5, 1.0]
    steps.step(steps.values(INF, lengths, thresholds, coefficients, clipped=True))
    wanted = {"grad_norm": INF, "clipped_norm": INF, "threshold": 0.15, "coefficient": 5 / 12}
    assert {name: steps.totals.statistics()[name] for name in wanted} == approx(wanted)
    assert {name: steps.records[0].statistics()[name] for name in wanted} == approx(wanted)


@pytest.mark.parametrize("norm_type", [1.0, 3.0, INF])
@pytest.mark.parametrize("form", FORMS)
def test_clipped_norm_of_blocks_is_of_the_norm_type(form, norm_type):
    steps = Steps(form, ["layer"], norm_type=norm_type)
    norm = float(np.linalg.norm([3.0, 4.0], norm_type))
    steps.step(steps.values(norm, [3.0, 4.0], [1.0, 2.0], [1 / 3, 0.5], clipped=True))
    stats = steps.totals.statistics()
    assert stats["grad_norm"] == approx(norm)
    assert stats["clipped_norm"] == approx(float(np.linalg.norm([1.0, 2.0], norm_type)))


@pytest.mark.parametrize("form", FORMS)
def test_coordinates_have_a_threshold_but_neither_norm_nor_coefficient(form):
    steps = Steps(form, ["coordinate"], is_complete=False)
    steps.step(steps.values(NAN, [3.0, 4.0], [1.0, 2.0], [1 / 3, 0.5], clipped=True))
    stats = steps.totals.statistics()
    assert [stats[name] for name in ("grad_norm", "clipped_norm", "threshold", "coefficient")] == approx([NAN, NAN, 1.5, NAN])
    assert stats["clip_rate"] == 1.0
    assert steps.totals.grad_norms().tolist() == []


@pytest.mark.parametrize("form", FORMS)
def test_totals_of_several_sets(form):
    steps = Steps(form, ["global", "layer", "global"])
    whole = steps.values(4.0, thresholds=3.0, coefficients=0.75, clipped=True)
    layers = steps.values(3.0, [3.0], [5.0], [1.0])
    steps.step(whole, layers, steps.values(0.0, thresholds=7.0, recorded=False))
    wanted = {"grad_norm": 5.0, "clipped_norm": 18**0.5, "threshold": 4.0, "coefficient": 0.875}
    wanted |= {"clip_rate": 1.0, "steps": 1.0, "clipped_steps": 1.0, "skipped_steps": 0.0}
    assert steps.totals.statistics() == approx(wanted)
    assert [record.statistics()["clipped_steps"] for record in steps.records] == [1, 0, 0]
    assert [record.statistics()["steps"] for record in steps.records] == [1, 1, 0]
    assert steps.totals.grad_norms().tolist() == [5.0]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_step_that_one_of_several_sets_skips_or_records_counts_once_in_the_totals(form, place):
    steps = Steps(form, ["global", "global"])
    values = [steps.values(0.0, recorded=False), steps.values(0.0, recorded=False)]
    values[place] = steps.values(2.0, clipped=True, skipped=np.True_)
    steps.step(*values)
    stats = steps.totals.statistics()
    assert [stats[name] for name in ("steps", "clipped_steps", "skipped_steps")] == [1, 1, 1]


@pytest.mark.parametrize("form", FORMS)
def test_norm_of_sets_that_do_not_cover_the_gradient_is_unknown(form):
    steps = Steps(form, ["global", "global"], is_complete=False)
    steps.step(steps.values(3.0), steps.values(4.0))
    stats = steps.totals.statistics()
    assert [stats["grad_norm"], stats["clipped_norm"], stats["threshold"]] == approx([NAN, NAN, 1.0])
    assert steps.totals.grad_norms().tolist() == []


@pytest.mark.parametrize("measure", ["global", "layer"])
@pytest.mark.parametrize("form", FORMS)
def test_norms_are_kept_oldest_first_and_only_finite_ones(form, measure):
    steps = Steps(form, [measure], window=3)
    for norm in (1.0, 2.0, INF, 3.0, NAN, 4.0):
        block = norm if measure == "global" else [norm]
        steps.step(steps.values(norm, block, *([1.0] if measure == "layer" else 1.0 for _ in range(2)), is_finite=False))
    assert steps.totals.grad_norms().tolist() == [2.0, 3.0, 4.0]


def test_returned_norms_are_a_copy():
    steps = Steps("host")
    steps.step(steps.values(1.0))
    steps.totals.grad_norms().fill_(9.0)
    assert steps.totals.grad_norms().tolist() == [1.0]


def test_monitor_is_told_the_norm_and_the_strongest_clipping_of_recorded_steps():
    steps = Steps("host", ["global", "global", "global"])
    steps.step(steps.values(2.0, shrinkage=0.5), steps.values(1.0, shrinkage=0.25), steps.values(2.0))
    steps.step(*[steps.values(0.0, recorded=False) for _ in range(3)])
    steps.step(steps.values(2.0), steps.values(1.0), steps.values(2.0))
    assert [number for seen in steps.monitor.seen for number in seen] == approx([3.0, 0.25, 3.0, NAN])


def test_host_does_not_read_norms_on_an_accelerator():
    steps = Steps("accelerator", ["global", "global"])
    steps.step(steps.values(3.0), steps.values(4.0))
    assert steps.monitor.seen == []
    assert steps.totals.statistics()["grad_norm"] == 5.0


@pytest.mark.parametrize("measures", [["global"], ["layer"], ["layer", "layer"]])
@pytest.mark.parametrize("form", FORMS)
def test_values_are_in_the_parameter_group_once_written_down(form, measures):
    steps = Steps(form, measures)
    block = (lambda number: [number]) if "layer" in measures else (lambda number: number)
    steps.step(*[steps.values(3.0, block(3.0), block(1.5), block(0.5), clipped=True) for _ in measures])
    for record in (*steps.records, steps.totals):
        record.write_down()
    norm = 3.0 * len(measures) ** 0.5
    assert steps.groups[0]["clipping_memory_last"].tolist() == approx([norm, norm / 2, 1.5, 0.5])
    for group in steps.groups:
        assert group["clipping_memory_set_last"].tolist() == approx([3.0, 1.5, 1.5, 0.5])
        assert group["clipping_memory_set_steps"].tolist() == [1, 1, 0]
    assert steps.groups[0]["clipping_memory_steps"].tolist() == [1, 1, 0]
