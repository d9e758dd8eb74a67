"""The arithmetic of accelerators, taken on the CPU."""

import copy
import math
import warnings
from dataclasses import replace

import pytest
import torch

from torch_clipped import ClippedSGD, Clipping, Constant, LevelScheduler, clip_optimizer, register_clipping
from torch_clipped._engine.draws import DrawTable
from torch_clipped.clipping import MEASURES
from torch_clipped.decisions import uniform

pytestmark = pytest.mark.usefixtures("no_host")


def one_step(optimizer, params, step):
    for p in params:
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
    optimizer.step()


def test_level_is_one_tensor_that_schedules_fill_between_the_replays_of_a_graph():
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = ClippedSGD([weight], clipping_level=1.0)
    one_step(optimizer, [weight], 0)
    ((clip_set,), _) = optimizer._clip_sets()
    level = clip_set.level
    scheduler = LevelScheduler(optimizer, lambda step: 1.0 + step)
    scheduler.step()
    assert level.item() == 2.0  # without a step: a graph that is replayed takes none
    one_step(optimizer, [weight], 1)
    ((clip_set,), _) = optimizer._clip_sets()
    assert clip_set.level is level
    assert optimizer.clipping_stats()["threshold"] == 2.0


def test_draws_are_those_of_the_step_beyond_the_end_of_a_table():
    table, step = DrawTable(3, 1), torch.tensor(5)
    for number in range(5, 5 + 2 * DrawTable.LENGTH + 3):
        assert table.draw(step).item() == uniform(3, 1, number)
        step += 1
    for _ in range(3):  # steps that are not counted
        assert table.draw(step).item() == uniform(3, 1, step.item())


@pytest.mark.parametrize("clipping_type", ["auto", "layer_wise_zscore", "zclip"])
def test_state_that_comes_to_lie_elsewhere_goes_on(clipping_type):
    def run(moves):
        params = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
        optimizer = ClippedSGD(params, clipping_type=clipping_type, clipping_window=8)
        for step in range(40):
            one_step(optimizer, params, step)
            if moves and step % 7 == 3:
                for key, value in optimizer.param_groups[0].items():
                    if key.startswith("clipping_memory_"):
                        value.data = value.data.clone()
        return [p.detach() for p in params], optimizer.clipping_stats(), copy.deepcopy(optimizer).grad_norms()

    torch.testing.assert_close(run(moves=True), run(moves=False), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("clipping_type", ["layer_wise", "coord_wise", "adaptive"])
def test_statistics_of_many_blocks_are_those_of_the_last_step_that_had_a_gradient(clipping_type):
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    optimizer = ClippedSGD(params, clipping_type=clipping_type)
    one_step(optimizer, params, 0)
    before = optimizer.clipping_stats()
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(optimizer.clipping_stats(), before, rtol=0, atol=0, equal_nan=True)


def test_steps_go_on_after_a_ratio_that_float32_cannot_hold():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = ClippedSGD([weight], lr=1.0, clipping_level=1e-12)
    weight.grad = torch.tensor([3e30, 4e30])
    optimizer.step()
    assert 0 < weight.norm().item() < 1e-7  # as short as one factor of float32 makes it


def test_measure_of_ones_own_is_a_row(table, monkeypatch):
    rms = replace(MEASURES["layer"], norm_type=2.0, divisor=lambda p: p.numel() ** 0.5, gives_norm=False)
    monkeypatch.setitem(MEASURES, "rms", rms)
    register_clipping("block_rms", Clipping("rms", Constant(1.0)))
    weight, empty = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(0))  # whose divisor is 0
    optimizer = ClippedSGD([weight, empty], clipping_type="block_rms", clipping_level=2.0)
    weight.grad, empty.grad = torch.full((2, 2), 6.0), torch.zeros(0)
    optimizer.step()
    torch.testing.assert_close(weight.grad, torch.full((2, 2), 2.0))
    assert optimizer.clipping_stats()["skipped_steps"] == 0


def test_norms_that_are_not_finite_are_not_among_the_recorded_ones():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = ClippedSGD([weight], nonfinite="propagate")
    for gradient in ([3.0, 4.0], [torch.inf, 1.0], [1.0, 0.0]):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    assert optimizer.grad_norms().tolist() == [5.0, 1.0]
    assert optimizer.clipping_stats()["steps"] == 3


def test_only_the_set_whose_gradient_is_not_finite_counts_a_skip_and_none_does_for_the_scaler():
    first, second = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    optimizer = ClippedSGD([{"params": [first]}, {"params": [second], "clipping_level": 2.0}], fused=True)
    first.grad, second.grad = torch.ones(2), torch.tensor([torch.nan, 1.0])
    optimizer.step()
    assert [stats["skipped_steps"] for stats in optimizer.clipping_stats(per_set=True)] == [0, 1]
    first.grad, second.grad = torch.ones(2), torch.tensor([torch.inf, 1.0])
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.ones(())
    optimizer.step()
    assert optimizer.clipping_stats()["skipped_steps"] == 1
    assert not first.any()


def messages_of_steps(optimizer, weight, steps, spoilt):
    """What is warned of in some steps, those in ``spoilt`` with a gradient that is not finite."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(steps):
            weight.grad = torch.full((4,), math.nan if step in spoilt else 1.0)
            optimizer.step()
    return [str(warning.message).partition(",")[0] for warning in caught]


def test_skipped_steps_are_told_of_some_steps_later():
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = ClippedSGD([weight])
    assert messages_of_steps(optimizer, weight, 120, {3, 5}) == ["2 of 50 steps were skipped"]
    assert messages_of_steps(optimizer, weight, 120, {}) == []
    assert messages_of_steps(optimizer, weight, 700, range(700)) == [
        f"{count} of 50 steps were skipped"
        for count in (10, 50)  # the first reading and the tenth in a row
    ]


def test_skipped_steps_of_a_checkpoint_are_not_told_of_again():
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = ClippedSGD([weight])
    messages_of_steps(optimizer, weight, 60, range(60))
    resumed = copy.deepcopy(optimizer)
    (weight,) = resumed.param_groups[0]["params"]
    assert messages_of_steps(resumed, weight, 120, {}) == []
    assert resumed.clipping_stats()["skipped_steps"] == 60


def test_skipped_spikes_at_the_start_are_told_of():
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = ClippedSGD([weight], clipping_action="skip", clipping_level=5.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(120):
            weight.grad = torch.full((4,), 9.0 if step in (5, 6, 7) else 1.0)
            optimizer.step()
    assert [str(warning.message).partition(",")[0] for warning in caught] == ["3 of 50 steps were skipped"]


def test_closures_that_are_evaluated_in_the_step_are_told_of_as_on_the_host():
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = clip_optimizer(torch.optim.LBFGS([weight], max_iter=1), "norm", 1.0, clipping_action="skip")

    def closure():
        weight.grad = torch.full((4,), 9.0)
        return weight.sum()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(12):
            optimizer.step(closure)
    assert len(caught) == 2  # the 1st and the 10th in a row
