"""Statistics and norms that an optimizer tells about its clipping."""

import math

import pytest
import torch
from support.properties import LEVEL_TYPES, scalars, step_scalars

from torch_clipped import ClippedSGD

STATS = {
    "grad_norm",
    "clipped_norm",
    "threshold",
    "coefficient",
    "clip_rate",
    "steps",
    "clipped_steps",
    "skipped_steps",
}


@pytest.mark.parametrize("clipping_type", ["none", *LEVEL_TYPES])
def test_stats_are_a_dict_of_plain_floats(problem, clipping_type):
    optimizer = ClippedSGD(problem.parameters(), clipping_type=clipping_type)
    for step in range(3):
        stats = optimizer.clipping_stats()
        assert set(stats) == STATS
        assert all(type(value) is float for value in stats.values())
        problem.step(optimizer, problem.gradients(step))
    for stats in optimizer.clipping_stats(per_set=True):
        assert set(stats) == STATS
        assert all(type(value) is float for value in stats.values())


def test_stats_before_the_first_step_count_nothing(problem):
    stats = ClippedSGD(problem.parameters()).clipping_stats()
    assert (stats["steps"], stats["clipped_steps"], stats["skipped_steps"]) == (0, 0, 0)
    assert math.isnan(stats["grad_norm"])
    assert len(ClippedSGD(problem.parameters()).grad_norms()) == 0


def test_stats_mean_what_they_say():
    optimizer = ClippedSGD(scalars(2), clipping_level=2.0)
    step_scalars(optimizer, 6.0, -8.0)
    wanted = {"grad_norm": 10, "clipped_norm": 2, "threshold": 2, "coefficient": 0.2, "clip_rate": 1, "steps": 1}
    assert optimizer.clipping_stats() == pytest.approx(wanted | {"clipped_steps": 1, "skipped_steps": 0})
    step_scalars(optimizer, 0.3, 0.4)
    wanted = {"grad_norm": 0.5, "clipped_norm": 0.5, "threshold": 2, "coefficient": 1, "clip_rate": 0.5, "steps": 2}
    assert optimizer.clipping_stats() == pytest.approx(wanted | {"clipped_steps": 1, "skipped_steps": 0})


def test_stats_of_layer_wise_are_medians_over_tensors_and_norms_of_the_whole():
    optimizer = ClippedSGD(scalars(3), clipping_type="layer_wise", clipping_level=2.0)
    step_scalars(optimizer, 1.0, 4.0, 8.0)
    stats = optimizer.clipping_stats()
    assert stats["threshold"] == 2.0
    assert stats["coefficient"] == pytest.approx(0.5)
    assert stats["grad_norm"] == pytest.approx(9.0)
    assert stats["clipped_norm"] == pytest.approx(3.0)
    assert (stats["clip_rate"], stats["clipped_steps"]) == (1.0, 1.0)


def test_stats_of_coord_wise_are_nan_where_they_would_cost_a_pass():
    optimizer = ClippedSGD(scalars(2), clipping_type="coord_wise")
    step_scalars(optimizer, 0.01, 4.0)
    step_scalars(optimizer, 0.01, 0.02)
    stats = optimizer.clipping_stats()
    assert math.isnan(stats["grad_norm"])
    assert math.isnan(stats["clipped_norm"])
    assert (stats["threshold"], stats["clip_rate"], stats["steps"], stats["clipped_steps"]) == (0.1, 0.5, 2, 1)


def test_stats_per_set_are_one_dict_a_set():
    params = scalars(4)
    groups = [
        {"params": params[:1]},
        {"params": params[1:2], "weight_decay": 0.1},
        {"params": params[2:3]},
        {"params": params[3:]},
    ]
    groups[2]["clipping_level"] = 5.0
    groups[3]["clipping_level"] = 0.5
    optimizer = ClippedSGD(groups)
    step_scalars(optimizer, 3.0, 4.0, 2.0, 0.25)
    first, second, third = optimizer.clipping_stats(per_set=True)
    assert [s["grad_norm"] for s in (first, second, third)] == pytest.approx([5.0, 2.0, 0.25])
    assert [s["clipped_norm"] for s in (first, second, third)] == pytest.approx([1.0, 2.0, 0.25])
    assert [s["threshold"] for s in (first, second, third)] == [1.0, 5.0, 0.5]
    assert [s["clipped_steps"] for s in (first, second, third)] == [1, 0, 0]
    assert [s["steps"] for s in (first, second, third)] == [1, 1, 1]
    whole = optimizer.clipping_stats()
    assert whole["grad_norm"] == pytest.approx(math.sqrt(25 + 4 + 0.0625))
    assert whole["clipped_norm"] == pytest.approx(math.sqrt(1 + 4 + 0.0625))
    assert (whole["steps"], whole["clipped_steps"], whole["clip_rate"]) == (1, 1, 1)


def test_stats_of_several_sets_count_a_step_once():
    optimizer = ClippedSGD([{"params": scalars()}, {"params": scalars(), "clipping_level": 2.0}])
    for gradients in [(10.0, 1.0), (0.5, 10.0), (10.0, 10.0), (0.5, 0.5)]:
        step_scalars(optimizer, *gradients)
    stats = optimizer.clipping_stats()
    assert (stats["steps"], stats["clipped_steps"], stats["clip_rate"]) == (4, 3, 0.75)
    assert [s["clipped_steps"] for s in optimizer.clipping_stats(per_set=True)] == [2, 2]


@pytest.mark.parametrize("nothing", [0.0, None])
def test_stats_of_whole_gradient_leave_out_a_set_without_gradient_in_the_last_step(nothing):
    optimizer = ClippedSGD([{"params": scalars()}, {"params": scalars(), "clipping_level": 2.0}])
    step_scalars(optimizer, 3.0, 4.0)
    first, second = (group["params"][0] for group in optimizer.param_groups)
    first.grad = None if nothing is None else torch.tensor([nothing])
    second.grad = torch.tensor([8.0])
    optimizer.step()
    assert optimizer.grad_norms().tolist() == pytest.approx([5.0, 8.0])
    stats = optimizer.clipping_stats()
    assert (stats["grad_norm"], stats["clipped_norm"]) == pytest.approx((8.0, 2.0))
    assert [s["steps"] for s in optimizer.clipping_stats(per_set=True)] == [1, 2]


def test_grad_norms_are_the_unclipped_ones_oldest_first_and_bounded():
    optimizer = ClippedSGD(scalars(), clipping_window=4)
    for i, norm in enumerate([3.0, 1.0, 4.0, 1.5, 9.0, 2.0], start=1):
        step_scalars(optimizer, norm)
        norms = optimizer.grad_norms()
        assert norms.ndim == 1
        assert norms.tolist() == [3.0, 1.0, 4.0, 1.5, 9.0, 2.0][max(0, i - 4) : i]


def test_grad_norms_of_several_sets_are_of_the_whole_gradient():
    optimizer = ClippedSGD([{"params": scalars()}, {"params": scalars(), "clipping_level": 2.0}])
    step_scalars(optimizer, 3.0, 4.0)
    step_scalars(optimizer, 6.0, 8.0)
    assert optimizer.grad_norms().tolist() == pytest.approx([5.0, 10.0])


def test_changing_the_returned_norms_does_not_change_the_history():
    optimizer = ClippedSGD(scalars(), clipping_type="auto")
    step_scalars(optimizer, 3.0)
    optimizer.grad_norms().zero_()
    assert optimizer.grad_norms().tolist() == [3.0]
