"""``python -m experiments endurance``: a long training takes no more memory than a short one. Nothing is timed here."""

import csv
import gc
import json
import tracemalloc

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.endurance import run as endurance
from experiments.endurance.run import TYPES, Config, Row, Training, ratios
from torch_clipped.clipping import CLIPPING_TYPES

WINDOW = 120  # a little longer than the longest warm-up
FLOAT = 24  # bytes: the least that a list which grows by a number in each step would take, and there are ten types
OBJECTS = 20


def take(training, steps):
    for _ in range(steps):
        training.step()
    gc.collect()


def shapes(training):
    entries = [*training.optimizer.state.values(), *training.optimizer.param_groups]
    return [{key: getattr(value, "shape", None) for key, value in entry.items()} for entry in entries]


def test_after_a_full_window_nothing_grows():
    training = Training(Config(window=WINDOW))
    tracemalloc.start()
    try:
        take(training, 3 * WINDOW)  # the windows are full, and so are nearly all caches of Python, numpy and torch
        state = training.state_bytes(), shapes(training)
        counts = [(tracemalloc.get_traced_memory()[0], len(gc.get_objects()))]
        for _ in range(4):
            take(training, 2 * WINDOW)
            counts.append((tracemalloc.get_traced_memory()[0], len(gc.get_objects())))
        memory, objects = np.diff(counts, axis=0).min(axis=0)  # what leaks does so in every period; caches fill in one of them
        assert memory < FLOAT * 2 * WINDOW
        assert objects < OBJECTS
        assert (training.state_bytes(), shapes(training)) == state
    finally:
        tracemalloc.stop()


def test_statistics_go_on():
    training = Training(Config(window=WINDOW))
    take(training, 3 * WINDOW)
    stats = training.optimizer.clipping_stats(per_set=True)
    assert [one["steps"] for one in stats] == [3 * WINDOW] * len(TYPES)
    assert all(one["clip_rate"] > 0 for one in stats)
    before = [one["grad_norm"] for one in stats]
    take(training, 1)
    assert all(a != b for a, b in zip(before, [s["grad_norm"] for s in training.optimizer.clipping_stats(True)], strict=True))


def test_types_that_remember_are_among_those_that_are_tried():
    remembered = {type(CLIPPING_TYPES[name].threshold) for name in TYPES}
    assert remembered == {type(rule.threshold) for rule in CLIPPING_TYPES.values() if rule}
    assert {CLIPPING_TYPES[name].measure for name in TYPES} == {rule.measure for rule in CLIPPING_TYPES.values() if rule}


@pytest.fixture
def short(monkeypatch):
    """Few blocks: to count all objects takes longer than a block. Tests have one thread anyway, and later ones keep it."""
    monkeypatch.setattr(endurance, "BLOCKS", 5)
    monkeypatch.setattr(endurance.torch, "set_num_threads", lambda count: None)


def test_command_writes_a_row_for_every_block_and_prints_the_ratios(tmp_path, capsys, short):
    assert main(["endurance", "--steps", "52", "--window", "10", "--out", str(tmp_path)]) == 0
    with (tmp_path / "endurance.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["block"]) for row in rows] == list(range(5))
    assert sum(int(row["steps"]) for row in rows) == 52
    assert len({row["state_bytes"] for row in rows}) == 1
    summary = json.loads((tmp_path / "endurance.json").read_text(), parse_constant=pytest.fail)
    assert summary["last_to_first"]["state_bytes_last_to_first"] == 1
    assert "objects_last_to_first: " in capsys.readouterr().out
    assert (tmp_path / "endurance.png").read_bytes().startswith(b"\x89PNG")


def test_lengths_are_heavy_tailed_and_the_same_for_the_same_seed():
    first, second = (Training(Config(seed=1)) for _ in range(2))
    draws = [first.lengths.pareto(endurance.PARETO_EXPONENT) for _ in range(2000)]
    assert draws == [second.lengths.pareto(endurance.PARETO_EXPONENT) for _ in range(2000)]
    assert max(draws) > 20 * np.median(draws)


def test_ratios_are_of_last_to_first_and_second():
    rows = [
        Row(0, 1, 2.0, 2.0, 2.0, 2, 2, 0.0),
        Row(1, 1, 4.0, 4.0, float("nan"), 4, 4, 0.0),
        Row(2, 1, 6.0, 8.0, 2.0, 4, 2, 0.0),
    ]
    found = ratios(rows)
    assert (found["median_seconds_last_to_first"], found["median_seconds_last_to_second"]) == (3.0, 1.5)
    assert found["resident_bytes_last_to_second"] is None


def test_interruption_leaves_the_complete_blocks(tmp_path, monkeypatch, capsys, short):
    real, calls = Training.step, []

    def step(self):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Training, "step", step)
    monkeypatch.setattr(endurance, "plot", lambda *files: None)
    assert main(["endurance", "--steps", "10", "--out", str(tmp_path)]) == 130
    assert len((tmp_path / "endurance.partial.csv").read_text().splitlines()) == 1 + 2
    assert json.loads((tmp_path / "endurance.partial.json").read_text())["interrupted"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "99"], "steps must be at least 100, got 99"),
        (["--window", "1"], "window must be at least 2, got 1"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
    ],
)
def test_bad_options_are_named_with_their_values(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["endurance", "--out", str(tmp_path), *options])
    assert message in capsys.readouterr().err
