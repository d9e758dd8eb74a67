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
from torch_clipped.clipping import CLIPPING_TYPES


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
    assert "norms.bin must be a csv file or a TensorBoard event file, but is neither" in first
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
    assert f"0.1        {suggest_level(NORMS, 0.1):.4g}" in output
    remembering = [name for name, rule in CLIPPING_TYPES.items() if rule is not None and rule.threshold.memory(1, 2)]
    assert all(f"\n{name} " in output for name in ["norm", *remembering])
    assert output.endswith("picture: picture.png\n")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_replay_clips_as_the_type_does():
    clipped = replay(NORMS, "norm", suggest_level(NORMS, 0.1))
    assert clipped.clipped == 0.1
    wanted = [suggest_level(NORMS, 0.1) / norm for norm in NORMS if norm > suggest_level(NORMS, 0.1)]
    assert clipped.coefficient == pytest.approx(np.median(wanted))
    assert replay(NORMS, "auto").level == 0.75
    assert replay(np.ones(50), "zscore").clipped == 0.0


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


def test_command_runs_as_a_module(tmp_path):
    write_plain(tmp_path / "norms.csv")
    done = subprocess.run([sys.executable, "-m", "torch_clipped", "norms.csv"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("400 norms in 'column 1'; the smallest")
    assert (tmp_path / "norms-norms.png").exists()
