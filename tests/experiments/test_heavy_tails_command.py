"""``python -m experiments heavy-tails``: what it writes, prints and refuses."""

import contextlib
import csv
import io
import json
import random

import numpy as np
import pytest
import torch

from experiments.__main__ import main
from experiments.common.language_models import continuation
from experiments.common.text import UNKNOWN, WINDOW, load_text
from experiments.heavy_tails import run as heavy_tails
from torch_clipped import ClippedSGD

RUNS = 1 + len(heavy_tails.UNCLIPPED_SHARES)
DRAWN = 40  # characters before and after a training


class Trained:
    """What the command leaves after a short training on a small text, in small batches."""

    def __init__(self, folder, *options, steps=5, seeds=1, picture=False):
        folder.mkdir(exist_ok=True)
        out, text = folder / "figures", folder / "book.txt"
        write_book(text)
        sizes = ["--steps", str(steps), "--seeds", str(seeds)]
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.setattr(heavy_tails, "BATCH", 8)
            patch.setattr(heavy_tails, "VALIDATION_WINDOWS", 16)
            patch.setattr(heavy_tails, "DRAWN", DRAWN)
            if not picture:  # drawing one takes longer than the training
                patch.setattr(heavy_tails, "plot", lambda *files: None)
            self.code = main(["heavy-tails", "--data", str(text), "--out", str(out), *sizes, *options])
        self.printed = printed.getvalue()
        name = "heavy_tails.partial" if self.code else "heavy_tails"
        self.csv, self.json = ((out / f"{name}.{kind}").read_text() for kind in ("csv", "json"))
        self.rows = list(csv.DictReader(io.StringIO(self.csv)))
        self.summary = json.loads(self.json, parse_constant=pytest.fail)
        self.runs = self.summary["runs"]
        assert not picture or (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def write_book(path):
    """Three thousand words out of ten."""
    words = ["the", "gradient", "of", "a", "heavy", "tail", "is", "clipped", "at", "threshold\n"]
    path.write_text(" ".join(random.Random(0).choices(words, k=3000)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Trained(tmp_path_factory.mktemp("trained"), steps=20, seeds=2, picture=True)


def of(rows, run, **wanted):
    """The rows of a run of the summary."""
    keys = {"run": run["optimizer"], "lr": str(run["lr"])} | {key: str(value) for key, value in wanted.items()}
    return [row for row in rows if keys.items() <= row.items()]


def interrupt_at(monkeypatch, call):
    """Press Ctrl-C in the step of that number, over all runs."""
    calls = []

    def measure(grads):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return torch.nn.utils.get_total_norm(grads)

    monkeypatch.setattr(heavy_tails, "get_total_norm", measure)


def test_every_step_of_every_run_is_a_row_and_every_run_a_line_of_the_table(trained):
    assert trained.code == 0
    assert len(trained.rows) == trained.summary["rows"] == RUNS * 20 * 2
    assert not trained.summary["interrupted"]
    assert trained.summary["settings"]["seeds"] == [0, 1]
    assert len(trained.runs) == RUNS
    for run in trained.runs:
        assert [int(row["step"]) for row in of(trained.rows, run, seed=1)] == list(range(20))
        assert f"{run['optimizer']}, lr {run['lr']:g}" in trained.printed
        assert f"{run['validation_loss']:.3f}" in trained.printed


def test_summary_is_computed_from_the_rows(trained):
    for run in trained.runs:
        norms = [float(row["grad_norm"]) for row in of(trained.rows, run)]
        for q, value in run["grad_norm"]["quantiles"].items():
            assert value == pytest.approx(np.quantile(norms, float(q)))
        assert run["grad_norm"]["mean"] == pytest.approx(np.mean(norms))
        assert run["grad_norm_after_start"]["count"] == 2 * 18
        losses = [float(row["loss"]) for row in of(trained.rows, run, seed=0)]
        assert run["seeds"][0]["train_loss"] == pytest.approx(np.mean(losses[-2:]))
        assert run["clip_rate"] == pytest.approx(np.mean([int(row["clipped"]) for row in of(trained.rows, run)]))
    assert 0 < trained.runs[0]["clip_rate"] < 1


def test_best_unclipped_run_has_the_lowest_mean_validation_loss(trained):
    losses = {run["lr"]: run["validation_loss"] for run in trained.runs if not run["clipped"]}
    assert trained.summary["comparison"]["best_unclipped_lr"] == min(losses, key=losses.get)


def test_summary_names_no_place_of_this_machine(trained):
    assert trained.summary["settings"]["data"] == "book.txt"
    assert "/" not in trained.json
    assert "/" not in load_text(None).source


def test_rows_agree_with_what_the_optimizer_remembers(tmp_path, monkeypatch):
    made = []
    make = heavy_tails.Config.make_optimizer
    monkeypatch.setattr(heavy_tails.Config, "make_optimizer", lambda *args: made.append(make(*args)) or made[-1])
    trained = Trained(tmp_path, steps=12)
    clipped = [optimizer for optimizer in made if isinstance(optimizer, ClippedSGD)][-1]
    rows = of(trained.rows, trained.runs[0])
    assert [float(row["grad_norm"]) for row in rows] == pytest.approx(clipped.grad_norms().tolist(), rel=1e-5)
    assert trained.runs[0]["clip_rate"] == pytest.approx(clipped.clipping_stats()["clip_rate"])
    for row in rows:
        assert (row["clipped"] == "1") == (float(row["grad_norm"]) > float(row["threshold"]))


@pytest.mark.parametrize("options", [(), ("--model", "transformer", "--optimizer", "adamw", "--clipping-type", "coord_wise")])
def test_same_seed_gives_the_same_rows(tmp_path, options):
    assert Trained(tmp_path, *options).csv == Trained(tmp_path, *options).csv


def test_all_runs_start_alike_and_see_the_same_batches(tmp_path):
    trained = Trained(tmp_path, "--level", "1e9", seeds=2)  # never clips
    first = [{row["loss"] for row in trained.rows if row["step"] == "0" and row["seed"] == seed} for seed in "01"]
    assert len(first[0]) == len(first[1]) == 1
    assert first[0] != first[1]
    clipped, unclipped = ([float(row["loss"]) for row in of(trained.rows, run)] for run in trained.runs[:2])
    assert clipped == pytest.approx(unclipped, rel=1e-4)


def test_interruption_leaves_what_was_done(tmp_path, monkeypatch):
    interrupt_at(monkeypatch, call=13)
    trained = Trained(tmp_path, picture=True)
    assert trained.code == 130
    assert len(trained.rows) == trained.summary["rows"] == 2 * 5  # the third training is lost
    assert trained.summary["interrupted"]
    assert [run["seeds"][0]["finished"] for run in trained.runs] == [True, True]
    assert "Interrupted: the results cover the 10 steps that were done." in trained.printed


def test_resumed_run_writes_what_an_unbroken_one_does(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, call=13)
        assert Trained(tmp_path).code == 130
    resumed, whole = Trained(tmp_path, "--resume"), Trained(tmp_path / "whole")
    assert resumed.code == 0
    assert (resumed.csv, resumed.json) == (whole.csv, whole.json)


def test_interruption_before_the_first_step_writes_nothing(tmp_path, monkeypatch, capsys):
    interrupt_at(monkeypatch, call=1)
    assert main(["heavy-tails", "--out", str(tmp_path)]) == 130
    assert "Interrupted, nothing was finished." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("model", "steps_done"), [("lstm", 5), ("transformer", 2)])  # to a finite loss, and to NaN
def test_diverged_runs_are_named_and_lose(tmp_path, model, steps_done):
    trained = Trained(tmp_path, "--model", model, "--lr", "1e30", "--level", "1e-31", picture=True)
    clipped, *unclipped = trained.runs
    assert clipped["diverged"] == 0
    assert [run["diverged"] for run in unclipped] == [1] * len(unclipped)
    assert len(of(trained.rows, unclipped[0])) == steps_done
    assert trained.summary["comparison"]["same_lr"] == {"clipped_is_better": [0], "clipped_is_not_better": []}
    assert trained.printed.count(" diverged ") == len(unclipped)
    assert "Without clipping all of 1e+30, 7e+29" in trained.printed


@pytest.mark.parametrize("clipping_type", ["coord_wise", "auto", "none"])
def test_picture_is_drawn_where_there_is_no_constant_threshold_of_the_whole_gradient(tmp_path, clipping_type):
    assert Trained(tmp_path, "--clipping-type", clipping_type, "--optimizer", "adam", picture=True).code == 0


def test_a_seed_without_advantage_is_named(tmp_path):
    trained = Trained(tmp_path, "--level", "1e-9", seeds=2)  # clipped to a standstill
    assert trained.summary["comparison"]["best_lr"]["clipped_is_not_better"] == [0, 1]
    assert "lower validation loss with 0 of 2 seeds, not with seed 0, 1." in trained.printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--lr", "-5"], "lr must be positive and finite, got -5.0"),
        (["--lr", "nan"], "lr must be positive and finite, got nan"),
        (["--clipping-type", "nrom"], "did you mean 'norm'?"),
        (["--level", "-1"], "clipping_level must be > 0, got -1.0"),
        (["--optimizer", "lion"], "argument --optimizer: invalid choice: 'lion'"),
        (["--device", "nowhere"], "device 'nowhere' cannot be used"),
        (["--data", "missing.txt"], "data must be a text file that can be read, got 'missing.txt'"),
    ],
)
def test_bad_arguments_are_named_with_their_values(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["heavy-tails", "--out", str(tmp_path), *options])
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["heavy-tails", "--out", str(tmp_path), "--device", "cuda"])
    assert "device 'cuda' cannot be used" in capsys.readouterr().err


def test_an_out_that_is_a_file_is_an_error(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        main(["heavy-tails", "--out", str(tmp_path / "file")])
    assert "out must be a folder that can be written" in capsys.readouterr().err


def test_text_that_is_too_short_is_an_error(tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(ValueError, match=rf"data must hold at least {10 * (WINDOW + 1)} characters, got 9 in 'short.txt'"):
        load_text(short)
    short.write_text("x" * 10 * (WINDOW + 1))
    assert len(load_text(short).validation) == WINDOW + 1


def test_last_tenth_of_a_file_is_held_out_and_its_new_characters_are_unknown(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("ab" * 450 + "aé" * 50, encoding="utf-8")
    text = load_text(path)
    assert text.alphabet == 3
    assert text.training.tolist() == [1, 2] * 450
    assert text.validation.tolist() == [1, UNKNOWN] * 50
    assert text.spell(text.validation[:3]) == "a\N{REPLACEMENT CHARACTER}a"


class Counter(torch.nn.Linear):
    """Expects each of five characters after the one before it, and is a little less sure of the one after that."""

    def forward(self, characters):
        odds = 0.7 * torch.eye(5)[(characters + 1) % 5] + 0.3 * torch.eye(5)[(characters + 2) % 5]
        return odds.log()


def test_text_is_drawn_from_the_predictions_of_the_model():
    start = torch.tensor([3, 4])
    drawn = continuation(Counter(1, 1), start, 2000, seed=0)
    steps = drawn.diff(prepend=start[-1:]) % 5
    assert steps.unique().tolist() == [1, 2]
    assert (steps == 1).double().mean().item() == pytest.approx(0.7, abs=0.04)
    assert continuation(Counter(1, 1), start, 50, seed=0).tolist() == drawn[:50].tolist()
    assert continuation(Counter(1, 1), start, 50, seed=1).tolist() != drawn[:50].tolist()


def test_summary_holds_what_the_first_models_wrote_before_and_after(trained):
    texts, first, *_ = trained.summary["texts"], *trained.runs
    assert list(texts) == ["untrained", *(f"{run['optimizer']}, lr {run['lr']:g}" for run in trained.runs)]
    assert {len(text) for text in texts.values()} == {DRAWN}
    assert len({*texts.values()}) == 1 + RUNS
    assert f"untrained: {texts['untrained']!r}" in trained.printed
    assert f"lr {first['lr']:g}: {texts['ClippedSGD, lr 5']!r}" in trained.printed


def test_standard_library_is_cut_and_split_by_file():
    text = load_text(None)
    assert text.source.startswith("Python ")
    assert 0.9e6 < len(text.training) + len(text.validation) <= 1e6
    assert 0.02 < len(text.validation) / len(text.training) < 0.3  # 0.028 with Python 3.12.1


def test_unknown_experiment_lists_the_choices(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["heavy-tail"])
    error = capsys.readouterr().err
    assert "'heavy-tail'" in error
    assert "heavy-tails" in error


def test_quick_run_trains_less():
    short, full = (heavy_tails.plan(**options) for options in (heavy_tails.QUICK, {}))
    assert (short.steps, full.steps) == (3 * 200, 18 * 200)
