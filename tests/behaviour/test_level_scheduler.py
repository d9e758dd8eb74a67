"""LevelScheduler and its ready schedules."""

import math

import pytest
import torch
from support.assertions import assert_close
from support.cases import flat
from support.loops import each_type_with
from support.reference import ReferenceClipper
from torch.optim import lr_scheduler

from torch_clipped import ClippedSGD, LevelScheduler, clip_optimizer, linear_warmup, multiple_at_start
from torch_clipped.clipping import CLIPPING_TYPES
from torch_clipped.decisions import uniform

F64 = torch.float64


def test_level_scheduler_writes_the_level_of_each_step(problem):
    optimizer = ClippedSGD(problem.parameters(), lr=0.1, clipping_level=9.0)
    scheduler = LevelScheduler(optimizer, lambda step: 1.0 + step)
    lengths, levels = [], []
    for step in range(4):
        assert scheduler.last_epoch == step
        assert scheduler.get_last_level() == [1.0 + step]
        lengths.append(problem.length(problem.step(optimizer, problem.gradients(step, norm=100.0))))
        levels.append(optimizer.param_groups[0]["clipping_level"])
        scheduler.step()
    assert levels == [1.0, 2.0, 3.0, 4.0]
    assert lengths == pytest.approx(levels, rel=1e-5)


def test_level_scheduler_takes_one_schedule_a_group(problem):
    params = problem.parameters()
    groups = [{"params": params[:2]}, {"params": params[2:], "clipping_type": "coord_wise"}]
    optimizer = ClippedSGD(groups, lr=0.1)
    scheduler = LevelScheduler(optimizer, [linear_warmup(1.0, 2.0, steps=2), lambda step: 0.1 * (step + 1)])
    seen = []
    for _ in range(3):
        seen.append([group["clipping_level"] for group in optimizer.param_groups])
        assert scheduler.get_last_level() == seen[-1]
        scheduler.step()
    assert seen == [pytest.approx(levels) for levels in ([1.0, 0.1], [1.5, 0.2], [2.0, 0.3])]


def test_level_scheduler_of_one_schedule_drives_all_groups(problem):
    params = problem.parameters()
    optimizer = ClippedSGD([{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.1}], lr=0.1)
    LevelScheduler(optimizer, lambda step: 0.25)
    assert [group["clipping_level"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert len(optimizer.clipping_stats(per_set=True)) == 1


@pytest.mark.parametrize("schedules", [[], [lambda step: 1.0] * 2, (lambda step: 1.0,) * 3], ids=len)
def test_level_scheduler_refuses_another_number_of_schedules(problem, schedules):
    optimizer = ClippedSGD(problem.parameters(), clipping_level=0.7)
    with pytest.raises(ValueError, match="schedule"):
        LevelScheduler(optimizer, schedules)
    assert optimizer.param_groups[0]["clipping_level"] == 0.7


def test_level_scheduler_refuses_an_optimizer_that_does_not_clip(problem):
    with pytest.raises(ValueError, match="optimizer must be one that clips"):
        LevelScheduler(torch.optim.SGD(problem.parameters()), lambda step: 1.0)
    LevelScheduler(clip_optimizer(torch.optim.SGD(problem.parameters())), lambda step: 1.0)


@pytest.mark.parametrize(
    ("nonsense", "at"),
    [*((value, 0) for value in [-1.0, 0.0, math.nan, "high", True, [1.0], 1j]), (-1.0, 2), (math.nan, 2), ("high", 2)],
    ids=str,
)
def test_level_scheduler_refuses_nonsense_and_leaves_every_level_alone(problem, nonsense, at):
    params = problem.parameters()
    optimizer = ClippedSGD([{"params": params[:2]}, {"params": params[2:]}], clipping_level=0.7)
    schedules = [lambda step: 0.5, lambda step: nonsense if step == at else 0.5]
    if at == 0:
        with pytest.raises(ValueError, match="clipping_level"):
            LevelScheduler(optimizer, schedules)
        assert [group["clipping_level"] for group in optimizer.param_groups] == [0.7, 0.7]
        return
    scheduler = LevelScheduler(optimizer, schedules)
    scheduler.step()
    with pytest.raises(ValueError, match="clipping_level"):
        scheduler.step()
    assert scheduler.last_epoch == 1
    assert scheduler.get_last_level() == [0.5, 0.5]
    problem.step(optimizer, problem.gradients(0))


@pytest.mark.parametrize(("clipping_type", "level"), [("auto", 1.5), ("zscore", -0.1), ("none", 1.0)])
def test_level_scheduler_refuses_a_level_of_another_unit(problem, clipping_type, level):
    optimizer = ClippedSGD(problem.parameters(), clipping_type=clipping_type)
    before = optimizer.param_groups[0]["clipping_level"]
    with pytest.raises(ValueError, match="clipping_level"):
        LevelScheduler(optimizer, lambda step: level)
    assert optimizer.param_groups[0]["clipping_level"] == before


def test_level_scheduler_is_resumed_from_its_state(problem):
    def new():
        optimizer = ClippedSGD(problem.parameters(), lr=0.1)
        return optimizer, LevelScheduler(optimizer, linear_warmup(1.0, 2.0, steps=10))

    optimizer, scheduler = new()
    for step in range(3):
        problem.step(optimizer, problem.gradients(step))
        scheduler.step()
    other, other_scheduler = new()
    other.load_state_dict(optimizer.state_dict())
    other_scheduler.load_state_dict(scheduler.state_dict())
    assert other_scheduler.last_epoch == scheduler.last_epoch == 3
    assert other_scheduler.get_last_level() == pytest.approx([1.3])
    scheduler.step()
    other_scheduler.step()
    assert other_scheduler.get_last_level() == scheduler.get_last_level() == pytest.approx([1.4])
    assert all(isinstance(value, (int, float, str, list)) for value in scheduler.state_dict().values())


def test_level_scheduler_goes_on_from_last_epoch(problem):
    optimizer = ClippedSGD(problem.parameters(), lr=0.1)
    scheduler = LevelScheduler(optimizer, linear_warmup(1.0, 2.0, steps=10), last_epoch=4)
    assert scheduler.last_epoch == 5
    assert scheduler.get_last_level() == pytest.approx([1.5])


def test_level_and_learning_rate_are_scheduled_side_by_side(problem):
    optimizer = ClippedSGD(problem.parameters(), lr=1.0)
    rates, levels = lr_scheduler.ExponentialLR(optimizer, 0.5), LevelScheduler(optimizer, lambda step: 2.0**-step)
    for step in range(4):
        group = optimizer.param_groups[0]
        assert (group["lr"], group["clipping_level"]) == (0.5**step, 0.5**step)
        problem.step(optimizer, problem.gradients(step))
        rates.step()
        levels.step()


def test_linear_warmup_is_a_straight_line_and_then_its_end():
    for start, end in ((0.5, 3.0), (10.0, 1.0)):
        schedule = linear_warmup(start, end, steps=5)
        assert [schedule(step) for step in range(5)] == pytest.approx([start + (end - start) * step / 5 for step in range(5)])
        assert {schedule(step) for step in (5, 6, 10_000)} == {end}


def test_multiple_at_start_is_the_multiple_in_the_first_steps_only():
    schedule = multiple_at_start(0.5, 10, steps=3)
    assert [schedule(step) for step in range(6)] == [5.0, 5.0, 5.0, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "3", None])
def test_ready_schedules_refuse_nonsense(steps):
    with pytest.raises(ValueError, match="steps"):
        linear_warmup(0.1, 1.0, steps=steps)
    with pytest.raises(ValueError, match="steps"):
        multiple_at_start(0.1, 10, steps=steps)


@pytest.mark.parametrize(("clipping_type", "way"), each_type_with("scheduler", "param_groups"))
def test_level_that_changes_each_step_is_the_oracles_and_keeps_the_history(problem, clipping_type, way):
    oracle = ReferenceClipper(clipping_type, window=6)
    default = oracle.level
    upwards = "auto" in clipping_type  # a quantile is at most 1

    def schedule(step):
        return default * (0.5 + 0.1 * (step % 4)) if upwards else default * (0.5 + 0.3 * (step % 5))

    params = problem.parameters(F64)
    optimizer = ClippedSGD(params, lr=0.01, clipping_type=clipping_type, clipping_window=6, clipping_seed=3)
    scheduler = LevelScheduler(optimizer, schedule) if way == "scheduler" else None
    for step in range(130 if clipping_type == "adagc" else 50):
        optimizer.param_groups[0]["clipping_level"] = oracle.level = schedule(step)
        if scheduler is not None:
            assert scheduler.get_last_level() == [schedule(step)]
        grads = problem.gradients(step, dtype=F64)
        draw = uniform(3, 0, oracle.steps)
        wanted = oracle.clip(flat(grads), weights=flat(params), uniform=draw, shapes=problem.shapes)
        clipped = problem.step(optimizer, grads)
        assert_close([g.flatten() for g in clipped], [torch.tensor(w, dtype=F64) for w in wanted], 1e-9)
        if scheduler is not None:
            scheduler.step()
    stats = optimizer.clipping_stats()
    assert (stats["steps"], stats["clipped_steps"]) == (oracle.steps, oracle.clipped_steps)
    assert oracle.clipped_steps > 0
    if CLIPPING_TYPES[clipping_type].measured.gives_norm:
        assert optimizer.grad_norms().tolist() == pytest.approx(oracle.grad_norms, rel=1e-12)
