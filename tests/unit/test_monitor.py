"""Warnings of the monitor: after which steps, how often, and when counts of an accelerator arrive."""

import warnings

import pytest
import torch

from torch_clipped._engine.monitor import NOT_FINITE, SPIKE, ClippingWarning, DelayedCounts, StepMonitor


def messages(action, *arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action(*arguments)
    assert {w.category for w in caught} <= {ClippingWarning}
    return [str(w.message) for w in caught]


def told(monitor, norms, coefficients):
    def steps():
        for norm, coefficient in zip(norms, coefficients, strict=True):
            monitor.observe(norm, coefficient)

    return messages(steps)


@pytest.mark.parametrize(("crushed", "count"), [(198, 0), (199, 1), (200, 1)])
def test_level_is_doubted_where_more_than_99_percent_are_crushed(crushed, count):
    found = told(StepMonitor(), [1.0 + step % 7 for step in range(200)], [9e-4] * crushed + [1.0] * (200 - crushed))
    assert len(found) == count
    assert all(f"{crushed} of the last 200 steps" in message for message in found)


def test_coefficient_of_a_thousandth_is_not_crushed():
    assert told(StepMonitor(), [1.0 + step % 7 for step in range(200)], [1e-3] * 200) == []


def test_steps_are_watched_two_hundred_at_a_time():
    monitor, norms = StepMonitor(), [1.0 + step % 7 for step in range(100)]
    assert told(monitor, [*norms, *norms, *norms], [1.0] * 100 + [1e-4] * 200) == []  # half of each window
    assert len(told(monitor, norms, [1e-4] * 100)) == 1
    assert told(monitor, [*norms, *norms], [1e-4] * 200) == []  # once


ALTERNATING = [1.0, 1.0 + 1e-6]  # in float32 clip_grad_norm_ leaves such norms


@pytest.mark.parametrize(
    ("norms", "count"),
    [
        (ALTERNATING * 100, 1),
        ([1.0] * 200, 0),  # one gradient again and again
        ([1.0 + 1e-6 * step / 200 for step in range(200)], 0),  # slow training
        ([1.23, 1.23 + 1e-6] * 100, 0),  # three digits: not a norm that somebody wrote
        ([1.0, 1.0 + 3e-6] * 100, 0),  # more than rounding
        (ALTERNATING * 99 + [1.0, 5.0], 0),
        ([1.0] * 148 + ALTERNATING * 26, 0),  # 50 turns: a quarter of the steps
        ([1.0] * 146 + ALTERNATING * 27, 1),
        ([1e-3, 1e-3 + 1e-7] * 100, 1),  # the 1e-6 that clip_grad_norm_ adds
        ([1e-3, 1e-3 + 3e-7] * 100, 0),
        ([1e3, 1e3 + 1e-3] * 100, 1),
        ([0.0] * 200, 0),
    ],
)
def test_norms_that_agree_but_for_rounding_are_told(norms, count):
    found = told(StepMonitor(), norms, [1.0] * 200)
    assert len(found) == count
    assert all(f"norm {norms[0]:g}: " in message and "Clipping twice" in message for message in found)


def test_skips_in_a_row_are_told_at_powers_of_ten():
    monitor = StepMonitor()
    found = [step for step in range(1, 1201) if messages(monitor.observe_skip, SPIKE)]
    assert found == [1, 10, 100, 1000]
    monitor.skipped_in_a_row = 0
    (first,) = messages(monitor.observe_skip, NOT_FINITE)
    assert first.startswith("a gradient was not finite, so this step was skipped (nonfinite='skip')")
    for _ in range(8):
        monitor.observe_skip(NOT_FINITE)
    assert messages(monitor.observe_skip, NOT_FINITE) == [
        "10 steps in a row were skipped, because their gradients were not finite (nonfinite='skip')"
    ]


def counts_of(steps, skipped):
    return torch.tensor([steps, 0, skipped])


@pytest.mark.parametrize(("before", "found"), [(0, (3, 50)), (7, (3, 50))])
def test_counts_are_copied_every_fifty_steps_and_read_in_the_next(before, found):
    """What a checkpoint had counted, here ``before``, is left out."""
    delayed, read = DelayedCounts(), {}
    for step in range(1, 152):
        skipped = min(3, step // 10) + (step >= 120)
        numbers = delayed.skipped(counts_of(step + 2 * before, skipped + before))
        if numbers != (0, 0):
            read[step] = numbers
    assert read == {51: found, 101: (0, 50), 151: (1, 50)}


def test_first_step_that_is_skipped_counts():
    delayed = DelayedCounts()
    found = [delayed.skipped(counts_of(0, 1)) for _ in range(51)]
    assert found == [(0, 0)] * 50 + [(1, 50)]


def test_skips_on_an_accelerator_are_told_at_the_first_tenth_and_hundredth_reading_in_a_row():
    monitor, told_at = StepMonitor(), []
    for step in range(1, 50 * 12):
        if found := messages(monitor.observe_counts, counts_of(step, step), NOT_FINITE):
            told_at.append(step)
            assert "50 of 50 steps were skipped, because their gradients were not finite" in found[0]
    assert told_at == [51, 501]


def test_reading_without_skips_ends_a_row():
    monitor = StepMonitor()
    skipped, found = 0, []
    for step in range(1, 50 * 5):
        skipped += step < 50 or 100 < step < 150
        found += messages(monitor.observe_counts, counts_of(step, skipped), SPIKE)
    assert len(found) == 2
    assert found[0].startswith("49 of 50 steps were skipped, because their gradients were above their thresholds")
