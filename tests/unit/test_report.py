"""``python -m torch_clipped FILE``: what is read from files of several kinds, and what is said about it."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from torch_clipped import ClippedSGD, NormRecorder, suggest_level
from torch_clipped.__main__ import main
from torch_clipped._norm_files import read_norms
from torch_clipped._report import advice, replay


def norms_of_a_run(steps=400, drift=1.0, spikes=0.01):
    generator = np.random.default_rng(0)
    norms = np.exp(0.3 * generator.standard_normal(steps)) * np.linspace(1.0, drift, steps)
    return norms * np.where(generator.random(steps) < spikes, 50.0, 1.0)


NORMS = norms_of_a_run()
HEADER = "steps,clipped_steps,skipped_steps,grad_norm,clipped_norm,threshold,coefficient"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_plain(path):
    path.write_text("\n".join(map(str, NORMS)) + "\n")


def write_export(path):
    names = ["Step", "run-1 - train/grad_norm", "run-1 - train/grad_norm__MIN", "run-1 - train/grad_norm__MAX"]
    lines = [",".join(f'"{name}"' for name in names), *(f'"{i}","{x}","{x / 2}","{2 * x}"' for i, x in enumerate(NORMS))]
    lines.insert(5, '"3","","",""')  # a step of another run
    path.write_text("\n".join(lines) + "\n")


def write_recorded(path):
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = ClippedSGD([weight])
    with NormRecorder(optimizer, path):
        for norm in NORMS:
            weight.grad = torch.tensor([norm])
            optimizer.step()


def write_windows(path):
    path.write_bytes("\r\n".join(["\ufeffgrad_norm", *map(str, NORMS)]).encode())


def write_unfinished(path):
    write_recorded(path)
    path.write_text(path.read_text() + "401,1,0,9")


@pytest.mark.parametrize(
    ("write", "name", "left_out"),
    [
        (write_plain, "column 1", 0),
        (write_export, "run-1 - train/grad_norm", 1),
        (write_recorded, "grad_norm", 0),
        (write_unfinished, "grad_norm", 0),
        (write_windows, "grad_norm", 0),
    ],
)
def test_norms_are_read_from_tables(tmp_path, write, name, left_out):
    write(tmp_path / "norms.csv")
    recorded = read_norms(tmp_path / "norms.csv")
    assert (recorded.name, recorded.left_out) == (name, left_out)
    np.testing.assert_allclose(recorded.norms, NORMS, rtol=1e-12)


def test_norms_are_read_from_event_files_of_tensorboard(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="needs tensorboard")
    with tensorboard.SummaryWriter(str(tmp_path / "events")) as writer:
        for step, norm in enumerate(NORMS):
            writer.add_scalar("train/grad_norm", norm, step)
            writer.add_scalar("train/loss", 1.0, step)
    (file,) = (tmp_path / "events").iterdir()
    for path in (file, tmp_path / "events"):
        recorded = read_norms(path)
        assert recorded.name == "train/grad_norm"
        np.testing.assert_allclose(recorded.norms, NORMS, rtol=1e-6)
    with pytest.raises(ValueError, match="--column must be one of train/grad_norm, train/loss, got 'loss'"):
        read_norms(file, "loss")


def test_steps_without_a_norm_are_left_out(tmp_path):
    lines = [f"{i},0,0,{norm},1,1,1" for i, norm in enumerate([*NORMS, float("nan"), float("inf"), 0.0], 1)]
    (tmp_path / "norms.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    recorded = read_norms(tmp_path / "norms.csv")
    assert (len(recorded.norms), recorded.left_out) == (len(NORMS), 3)


GOOD = "\n".join(map(str, NORMS[:30]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold norms, but is empty"),
        ("hello\nworld\n", "line 2: 'hello' must be a number, got 'world'"),
        (f"{GOOD}\nabc\n", "line 31: '1' must be a number, got 'abc'"),
        (f"{GOOD}\n-1.0\n", "which are at least 0, got -1.0 in 'column 1'"),
        ("grad_norm\n1.0\n2.0\n", "must hold at least 20 norms that are positive and finite, got 2 in 'grad_norm'"),
        (f"{GOOD}\n1.7e308\n", "must hold norms of at most 1e+300, got 1.7e+308 in 'column 1'"),
        (
            "step;grad_norm\n1;2,5\n",
            "must have commas between its columns and points in its numbers, but begins",
        ),
        ("step\tgrad_norm\n1\t2.5\n", "must have commas between its columns and points"),
        ("grad_norm\n1,5\n", "line 2: 1 values are named, got 2 (decimal commas?)"),
        (f'grad_norm\n"{"1" * 200_000}"\n', "must be a csv file: field larger than field limit"),
        ("a,b\n1,2\n", "has the columns a, b; name the one to take by --column"),
        ("x_norm,y_norm\n1,2\n", "has several that may be norms: x_norm, y_norm; name the one"),
    ],
)
def test_what_holds_no_norms_is_refused(tmp_path, capsys, text, message):
    (tmp_path / "norms.csv").write_text(text)
    assert main(["norms.csv"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert [path.name for path in tmp_path.iterdir()] == ["norms.csv"]


def test_bytes_and_missing_files_are_refused(tmp_path, capsys):
    (tmp_path / "norms.bin").write_bytes(bytes(range(256)))
    assert main(["norms.bin"]) == main(["missing.csv"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "norms.bin must be a csv file in UTF-8 or a TensorBoard event file, but is neither" in first
    assert "No such file" in second


def test_picture_that_is_there_is_not_touched(tmp_path, capsys):
    write_plain(tmp_path / "norms.csv")
    (tmp_path / "norms-norms.png").write_text("mine")
    assert main(["norms.csv"]) == 2
    assert "--picture must be a new file, but there is norms-norms.png" in capsys.readouterr().err
    assert (tmp_path / "norms-norms.png").read_text() == "mine"


def test_report_says_which_level_and_what_each_type_would_have_done(tmp_path, capsys):
    write_recorded(tmp_path / "norms.csv")
    assert main(["norms.csv", "--picture", "picture.png"]) == 0
    output = capsys.readouterr().out
    level = output.partition("\n0.1 ")[2].split()[0]
    assert (len(level), (float(level) < NORMS).mean()) == (4, pytest.approx(0.1, rel=0.05))
    names = ["norm", "auto", "linear_rand_auto", "quadratic_rand_auto", "zscore", "zclip", "adagc"]
    table = output.partition("clipping_type  ")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in table.splitlines()[1:]] == names
    assert output.endswith("picture: picture.png\n")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_replay_clips_as_the_type_does():
    clipped = replay(NORMS, "norm", suggest_level(NORMS, 0.1))
    assert clipped.is_clipped.mean() == 0.1
    wanted = [suggest_level(NORMS, 0.1) / norm for norm in NORMS if norm > suggest_level(NORMS, 0.1)]
    assert clipped.coefficient == pytest.approx(np.median(wanted))
    assert replay(NORMS, "auto").level == 0.75
    assert not replay(np.ones(50), "zscore").is_clipped.any()


@pytest.mark.parametrize(
    ("norms", "named"),
    [
        (norms_of_a_run(spikes=0.0), ["norm"]),
        (norms_of_a_run(drift=20.0, spikes=0.0), ["norm", "auto"]),
        (NORMS, ["norm", "zclip", "zscore"]),
    ],
    ids=["quiet", "drifting", "spiky"],
)
def test_advice_names_the_types_that_fit(norms, named):
    text = " ".join(advice(norms))
    assert [name for name in ("norm", "auto", "zclip", "zscore") if f'clipping_type="{name}"' in text] == named


def test_advice_says_what_the_level_would_have_clipped():
    assert "would have clipped 10% of the steps" in advice(NORMS)[0]
    assert "would have clipped 0% of the steps" in advice(np.full(50, 2.0))[0]


def test_advice_names_a_level_whose_digits_suffice():
    norms = np.linspace(1000.0, 1004.0, 200)
    assert advice(norms)[0] == 'clipping_type="norm", clipping_level=1003.6 would have clipped 10% of the steps.'
    assert (norms > 1003.6).mean() == 0.1


def test_advice_says_how_many_spikes_each_type_would_have_met():
    for share in (0.01, 0.045):
        norms = norms_of_a_run(steps=2000, spikes=share)
        left_out = replay(norms, "zscore", 6.0).is_clipped
        words = f"left out {left_out[norms > 20].mean():.0%} of them and {left_out[norms < 20].mean():.1%} of the other steps"
        assert words in advice(norms)[-1]


@pytest.mark.parametrize("name", ["picture", "picture.txt", "missing/picture.png"])
def test_picture_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, capsys, name):
    (tmp_path / "picture.png").write_text("mine")
    assert main(["norms.csv", "--picture", name]) == 2
    assert "error: --picture must " in capsys.readouterr().err
    assert (tmp_path / "picture.png").read_text() == "mine"


def test_long_files_are_announced(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch_clipped.__main__.LONG", 100)
    write_plain(tmp_path / "norms.csv")
    assert main(["norms.csv"]) == 0
    assert capsys.readouterr().err == "replaying 400 norms with each clipping type: about 8 seconds\n"


def test_command_runs_as_a_module(tmp_path):
    write_plain(tmp_path / "norms.csv")
    done = subprocess.run([sys.executable, "-m", "torch_clipped", "norms.csv"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("400 norms in 'column 1'; the smallest")
    assert (tmp_path / "norms-norms.png").exists()
