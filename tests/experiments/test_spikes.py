"""``python -m experiments spikes``: what it trains, writes, measures and says."""

import json
import math
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from experiments.__main__ import main
from experiments.common.files import read_csv
from experiments.common.journal import Journal
from experiments.common.text import load_text
from experiments.spikes import picture as spikes_picture
from experiments.spikes import run as spikes
from experiments.spikes.summary import recovery, spike_score, summarize

CONFIG = spikes.Config(steps=40, corrupted=(20, 30), contenders=("none", "zclip", "left out"), seeds=2)
KINDS = ("no corrupted batch", "wrong targets", "wrong targets, summed")


@pytest.fixture(scope="module", autouse=True)
def _small():
    """A book of ten words, and few of its windows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spikes, "BATCH", 4)
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    book = tmp_path_factory.mktemp("book") / "book.txt"
    words = ["the", "gradient", "of", "a", "heavy", "tail", "is", "clipped", "at", "threshold\n"]
    book.write_text(" ".join(random.Random(0).choices(words, k=1000)))
    return load_text(book)


@pytest.fixture
def short(monkeypatch, text):
    """The command trains that config, on that book."""
    monkeypatch.setattr(spikes, "load_text", lambda data: text)
    monkeypatch.setattr(spikes, "QUICK", {"steps": 40, "corrupted": (20,), "contenders": ("none", "left out"), "seeds": 1})


@pytest.fixture(scope="module")
def written(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spikes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spikes, "load_text", lambda data: text)
        plan = spikes.plan(**asdict(CONFIG))
    plan.train(journal := Journal(folder / "journal", {}, resume=False))
    journal.remove()
    plan.write(list(journal.results.values()), folder)
    return folder, json.loads((folder / "spikes.json").read_text(), parse_constant=pytest.fail)


def test_every_step_of_every_kind_and_seed_has_a_row_with_a_loss_for_each_contender(written):
    rows = read_csv(written[0] / "spikes.csv")
    assert list(rows[0]) == ["batches", "seed", "step", "none", "zclip", "left out"]
    assert [(r["batches"], r["seed"], r["step"]) for r in rows] == [
        (kind, seed, str(step)) for seed in "01" for kind in KINDS for step in range(40)
    ]
    assert all(math.isfinite(float(row["none"])) for row in rows)
    assert all((row["zclip"] == "nan") == (row["batches"] == KINDS[0]) for row in rows)


def test_config_and_numbers_are_written(written):
    folder, content = written
    assert content["config"]["corrupted"] == [20, 30]
    assert content["config"]["clipping_levels"] == {"none": None, "zclip": 2.5, "left out": None}
    assert not content["interrupted"]
    assert len(content["trainings"]) == 2 * 7
    assert {path.name for path in folder.iterdir()} == {"spikes.csv", "spikes.json", "spikes.png"}


def test_all_trainings_of_a_seed_are_alike_up_to_the_first_corrupted_batch(written):
    rows = read_csv(written[0] / "spikes.csv")
    for seed in "01":
        unharmed = [row["none"] for row in rows if (row["batches"], row["seed"]) == (KINDS[0], seed)]
        for kind in KINDS[1:]:
            for name in ("none", "left out"):
                mine = [row[name] for row in rows if (row["batches"], row["seed"]) == (kind, seed)]
                assert mine[:21] == unharmed[:21]  # the loss of step 20 was measured before it
                assert mine[21] != unharmed[21]


def test_corrupted_gradients_are_longer_and_those_left_out_are_not_counted_as_lengths(written):
    found = {(one["batches"], one["contender"]): one for one in written[1]["contenders"]}
    plain, wrong, summed = (found[kind, "none"] for kind in KINDS)
    assert wrong["corrupted_norm"] > plain["corrupted_norm"]
    assert summed["corrupted_norm"] > 20 * wrong["corrupted_norm"]
    assert summed["final_loss"] > plain["final_loss"]
    assert found[KINDS[2], "left out"]["corrupted_norm"] is None
    assert 0 < found[KINDS[2], "left out"]["median_norm"] < math.inf


def test_left_out_steps_are_the_corrupted_ones_and_change_no_weights(text):
    config = replace(CONFIG, corrupted=(38,))
    skipped = spikes.train(config, text, KINDS[1], "left out", 0)["losses"]
    plain = spikes.train(config, text, KINDS[0], "none", 0)["losses"]
    assert skipped[:39] == plain[:39]

    class Unmoved(torch.optim.Adam):
        def step(self, closure=None):
            self.steps = getattr(self, "steps", 0) + 1
            return None if self.steps == 39 else super().step(closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spikes, "ClippedAdam", lambda parameters, lr, **_: Unmoved(parameters, lr=lr, fused=True))
        unmoved = spikes.train(config, text, KINDS[1], "none", 0)["losses"]
    assert skipped[39] == unmoved[39]
    assert skipped[39] != plain[39]


def test_spikes_are_skipped_by_the_rule_of_the_contender(text):
    config = replace(CONFIG, steps=100, corrupted=(80,))
    optimizers = []
    make = spikes.ClippedAdam
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            spikes, "ClippedAdam", lambda *arguments, **named: optimizers.append(make(*arguments, **named)) or optimizers[-1]
        )
        for name in ("skip", "left out"):
            spikes.train(config, text, KINDS[2], name, 0)
    skipping, by_hand = (optimizer.clipping_stats() for optimizer in optimizers)
    assert skipping["skipped_steps"] == skipping["clipped_steps"] == by_hand["skipped_steps"] == 1
    assert spikes.group_of("zclip, cap")["clipping_cap"] == 1.0


def test_training_ends_where_the_loss_is_not_finite(text, monkeypatch):
    loss, count = spikes.next_character_loss, iter(range(40))
    monkeypatch.setattr(
        spikes, "next_character_loss", lambda *arguments: loss(*arguments) * (math.inf if next(count) == 12 else 1)
    )
    result = spikes.train(CONFIG, text, KINDS[0], "none", 0)
    assert len(result["losses"]) == 13
    assert not math.isfinite(result["losses"][-1])
    (one,) = summarize([result], CONFIG.corrupted)["contenders"]
    assert one["final_loss"] is None
    assert one["corrupted_norm"] is None
    assert one["recovery_steps"] is None
    assert one["not_recovered"] == 2


def test_spike_score_is_the_share_of_losses_far_from_the_rolling_mean():
    noise = np.random.default_rng(0).normal(3, 0.1, 1000)
    assert spike_score(noise) == 0
    for place, value in ((400, 4.5), (600, 1.5), (800, math.nan)):
        noise[place] = value
    noise = noise[:801]
    before = [noise[t - 128 : t] for t in range(128, 801)]
    far = [not abs(noise[t] - b.mean()) < 7 * b.std() for t, b in zip(range(128, 801), before, strict=True)]
    assert sum(far) == 3
    assert spike_score(noise) == pytest.approx(3 / 673)
    assert spike_score(noise[:128]) is None


@pytest.mark.parametrize("loss", [0.0, 0.1, 1.0])
def test_losses_that_never_change_have_no_spikes(loss):
    assert spike_score([loss] * 200) == 0
    assert spike_score([loss] * 199 + [loss + 0.1]) == pytest.approx(1 / 72)


def test_recovery_is_the_first_window_after_the_batch_that_is_no_higher_than_before_it():
    losses = [2.0] * 31 + [5.0] * 7 + [2.0] * 40  # step 30 is corrupted, losses 31 to 37 show it
    assert recovery(losses, 30, 78) == 8
    assert recovery(losses, 30, 46) is None  # the first window that is low ends with loss 47
    assert recovery(losses, 30, 47) == 8  # measured before step 47
    assert recovery([2.0] * 50, 30, 50) == 1
    assert recovery([2.0] * 30, 30, 30) is None


def test_picture_shows_all_contenders_and_marks_the_corrupted_batches(written, tmp_path, monkeypatch):
    labels, marks = [], []
    plot, axvline = Axes.plot, Axes.axvline
    monkeypatch.setattr(Axes, "plot", lambda axes, *a, **k: labels.append(k.get("label")) or plot(axes, *a, **k))
    monkeypatch.setattr(Axes, "axvline", lambda axes, x, **k: marks.append(x) or axvline(axes, x, **k))
    spikes_picture.plot(written[0] / "spikes.csv", written[0] / "spikes.json", tmp_path / "spikes.png")
    assert (tmp_path / "spikes.png").read_bytes().startswith(b"\x89PNG")
    upper = ["no corrupted batch", "not clipped", "zclip at 2.5", "corrupted batches skipped"]
    assert [label for label in labels if label] == 2 * upper
    assert marks == 4 * [20, 30]


def test_every_contender_has_a_style_of_its_own():
    assert list(spikes_picture.STYLES) == list(spikes.CONTENDERS)
    assert len({style["color"] for style in spikes_picture.STYLES.values()}) == len(spikes.CONTENDERS)


def interrupt_training(monkeypatch, number):
    """Press Ctrl-C in the training of that number."""
    train, count = spikes.train, iter(range(99))

    def pressed(*arguments):
        if next(count) == number:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(spikes, "train", pressed)


@pytest.mark.usefixtures("short")
def test_interrupted_command_keeps_what_is_done_and_resumes_to_the_same_files(tmp_path, monkeypatch, capsys):
    command = ["spikes", "--quick", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        interrupt_training(patch, 3)
        assert main([*command, str(tmp_path / "parts")]) == 130
    assert len(json.loads((tmp_path / "parts" / "spikes.partial.json").read_text())["trainings"]) == 3
    assert (tmp_path / "parts" / "spikes.partial.png").exists()
    with pytest.raises(SystemExit, match="2"):
        main([*command, str(tmp_path / "parts"), "--resume", "--seed", "1"])
    assert "seed was 0 and is 1" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        interrupt_training(patch, 2)  # the two that are left are numbers 0 and 1
        assert main([*command, str(tmp_path / "parts"), "--resume"]) == 0
    for name in ("spikes.csv", "spikes.json"):
        assert (tmp_path / "parts" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {"spikes.csv", "spikes.json", "spikes.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
        (["--out", __file__], "out must be a folder that can be written"),
    ],
)
@pytest.mark.usefixtures("short")
def test_wrong_options_are_named(options, message, capsys):
    for name in ("spikes", "thresholds"):
        with pytest.raises(SystemExit, match="2"):
            main([name, "--quick", *options])
        assert message in capsys.readouterr().err
