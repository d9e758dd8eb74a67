"""The norms of a whole run: recorded in memory or in a file, continued after a kill."""

import copy
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings

import pytest
import torch

from torch_clipped import ClippedAdamW, ClippedSGD, NormRecorder, clip_optimizer
from torch_clipped.clipping import CLIPPING_TYPES
from torch_clipped.plots import plot_norms

TYPES = [name for name, rule in CLIPPING_TYPES.items() if rule is not None]


def new(clipping_type="auto", cls=ClippedAdamW, **arguments):
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in ((3, 4), (5,))]
    return params, cls(params, lr=0.01, clipping_type=clipping_type, clipping_window=20, **arguments)


def gradients(params, step, kind="usual"):
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) * (1 + step % 7)
        if kind != "usual":
            p.grad = p.grad.zero_() if kind == "zero" else p.grad.fill_(math.inf)


def train(params, optimizer, steps, kinds=()):
    """Train; what clipping_stats() says after each step that is not without a gradient."""
    seen = []
    for step in steps:
        kind = dict(kinds).get(step, "usual")
        gradients(params, step, kind)
        optimizer.step()
        if kind != "zero":
            seen.append(optimizer.clipping_stats())
    return seen


def assert_same_history(found, wanted):
    """The values of the recorder's rows are those, bit for bit; NaN equals NaN."""
    names = ("steps", "clipped_steps", "skipped_steps", "grad_norm", "clipped_norm", "threshold", "coefficient")
    assert all(tuple(row) == names for row in found)
    left, right = ([[row[name] for name in names] for row in rows] for rows in (found, wanted))
    torch.testing.assert_close(torch.tensor(left).double(), torch.tensor(right).double(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("clipping_type", TYPES)
def test_every_step_is_recorded_as_the_statistics_say_it(clipping_type):
    params, optimizer = new(clipping_type)
    with NormRecorder(optimizer) as recorder:
        wanted = train(params, optimizer, range(250), {40: "zero", 41: "zero"})
    assert_same_history(recorder.history(), wanted)
    norms = [s["grad_norm"] for s in wanted if math.isfinite(s["grad_norm"])]
    assert recorder.grad_norms().tolist() == norms
    assert len(wanted) == 248


def test_accelerators_numbers_are_recorded_too(no_host):
    for clipping_type in ("norm", "layer_wise", "zclip"):
        params, optimizer = new(clipping_type)
        with NormRecorder(optimizer) as recorder:
            wanted = train(params, optimizer, range(130))
        assert_same_history(recorder.history(), wanted)


def test_recording_changes_nothing():
    params, optimizer = new("linear_rand_auto")
    train(params, optimizer, range(120))
    others, recorded = new("linear_rand_auto")
    with NormRecorder(recorded):
        train(others, recorded, range(120))
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    assert optimizer.clipping_stats() == recorded.clipping_stats()


def test_step_that_is_not_finite_is_recorded_without_a_norm(tmp_path):
    params, optimizer = new("norm")
    with NormRecorder(optimizer, tmp_path / "norms.csv") as recorder, pytest.warns(RuntimeWarning, match="not finite"):
        train(params, optimizer, range(5), {2: "inf"})
    rows = recorder.history()
    assert [(row["steps"], row["skipped_steps"]) for row in rows] == [(1, 0), (2, 0), (2, 1), (3, 1), (4, 1)]
    assert math.isnan(rows[2]["grad_norm"])
    assert len(recorder.grad_norms()) == 4


def test_after_close_nothing_is_recorded(tmp_path):
    params, optimizer = new()
    recorder = NormRecorder(optimizer, tmp_path / "norms.csv")
    train(params, optimizer, range(3))
    recorder.close()
    train(params, optimizer, range(3, 6))
    assert len(recorder.history()) == 3


@pytest.mark.parametrize("lost", [0, 37, 150], ids="{} steps after the checkpoint".format)
def test_resumed_run_continues_its_file(tmp_path, lost):
    params, optimizer = new("zscore")
    with NormRecorder(optimizer, tmp_path / "whole.csv") as whole:
        train(params, optimizer, range(400))
    params, optimizer = new("zscore")
    with NormRecorder(optimizer, tmp_path / "norms.csv"):
        train(params, optimizer, range(200))
        saved = copy.deepcopy([[p.detach() for p in params], optimizer.state_dict()])
        train(params, optimizer, range(200, 200 + lost))
    with open(tmp_path / "norms.csv", "a") as file:
        file.write("201,3,0,1.2")  # a line that a kill has cut off
    params, optimizer = new("zscore")
    with NormRecorder(optimizer, tmp_path / "norms.csv", resume=True) as recorder:
        for p, value in zip(params, saved[0], strict=True):
            p.data.copy_(value)
        optimizer.load_state_dict(saved[1])
        train(params, optimizer, range(200, 400))
    assert_same_history(recorder.history(), whole.history())
    assert (tmp_path / "norms.csv").read_text() == (tmp_path / "whole.csv").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"whole.csv", "norms.csv"}


KILLED = """
import os, signal, sys, torch
from torch_clipped import ClippedSGD, NormRecorder
weight = torch.nn.Parameter(torch.zeros(3))
optimizer = ClippedSGD([weight])
recorder = NormRecorder(optimizer, sys.argv[1])
for step in range(250):
    weight.grad = torch.full((3,), 1.0 + step)
    optimizer.step()
    if step == 220:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_run_leaves_all_but_its_last_steps(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "norms.csv")])
    assert done.returncode == -signal.SIGKILL
    lines = (tmp_path / "norms.csv").read_text().splitlines()
    assert len(lines) == 201
    assert float(lines[-1].split(",")[3]) == pytest.approx(200 * 3**0.5)


@pytest.mark.parametrize("end", ["", "    pass\noptimizer = recorder = None\n"], ids=["at the end of the program", "deleted"])
def test_run_that_ends_without_close_has_written_everything(tmp_path, end):
    script = KILLED.partition("    if step")[0] + end
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "norms.csv")], check=True)
    assert len((tmp_path / "norms.csv").read_text().splitlines()) == 251


def test_history_is_what_plot_norms_draws():
    params, optimizer = new("zscore")
    with NormRecorder(optimizer) as recorder:
        train(params, optimizer, range(30))
    assert "clipped, " in plot_norms(recorder.history()).get_legend().get_texts()[2].get_text()


def test_any_optimizer_that_clips_is_recorded():
    params = [torch.nn.Parameter(torch.zeros(3))]
    with pytest.raises(TypeError, match="optimizer must be one that clips, got RMSprop"):
        NormRecorder(torch.optim.RMSprop(params))
    optimizer = clip_optimizer(torch.optim.RMSprop(params), "norm", 1.0)
    with NormRecorder(optimizer) as recorder:
        train(params, optimizer, range(3))
    assert len(recorder.grad_norms()) == 3


# What is refused: nothing is overwritten.


def test_file_that_is_there_is_not_touched(tmp_path):
    path = tmp_path / "norms.csv"
    path.write_text("something else\n")
    _, optimizer = new()
    with pytest.raises(ValueError, match=re.escape(f"path must be a new file unless resume=True, but there is '{path}'")):
        NormRecorder(optimizer, path)
    with pytest.raises(ValueError, match="does not begin with steps,clipped_steps"):
        NormRecorder(optimizer, path, resume=True)
    assert path.read_text() == "something else\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [("1,0,0,abc,1,1,1", "holds something else in line 2: could not convert"), ("1,0,0", "another number of values in line 2")],
)
def test_damaged_file_is_refused(tmp_path, line, message):
    path = tmp_path / "norms.csv"
    path.write_text(f"steps,clipped_steps,skipped_steps,grad_norm,clipped_norm,threshold,coefficient\n{line}\n")
    _, optimizer = new()
    with pytest.raises(ValueError, match=message):
        NormRecorder(optimizer, path, resume=True)


def test_file_of_another_run_is_not_continued_by_one_that_starts_anew(tmp_path):
    path = tmp_path / "norms.csv"
    params, optimizer = new()
    with NormRecorder(optimizer, path):
        train(params, optimizer, range(20))
    before = path.read_text()
    params, optimizer = new()
    recorder = NormRecorder(optimizer, path, resume=True)
    with pytest.raises(ValueError, match="has 20 steps and the optimizer starts anew: load its checkpoint"):
        train(params, optimizer, range(1))
    train(params, optimizer, range(1, 3))
    recorder.close()
    assert path.read_text() == before


def test_training_goes_on_where_the_file_cannot_be_written(tmp_path):
    path = tmp_path / "folder" / "norms.csv"
    path.parent.mkdir()
    params, optimizer = new(cls=ClippedSGD)
    recorder = NormRecorder(optimizer, path)
    shutil.rmtree(path.parent)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(params, optimizer, range(420))
    assert ["no longer recorded" in str(warning.message) for warning in caught] == [True]
    with pytest.raises(FileNotFoundError):
        recorder.close()


def test_checkpoint_is_not_lost_where_the_file_cannot_be_written(tmp_path):
    path = tmp_path / "folder" / "norms.csv"
    path.parent.mkdir()
    params, optimizer = new()
    NormRecorder(optimizer, path)
    shutil.rmtree(path.parent)
    train(params, optimizer, range(20))
    with pytest.warns(RuntimeWarning, match="gradient norms are no longer recorded: .*norms.csv"):
        state = optimizer.state_dict()
    assert optimizer.state_dict()["param_groups"][0]["clipping_type"] == state["param_groups"][0]["clipping_type"]


def test_checkpoint_has_all_steps_before_it_in_the_file(tmp_path):
    params, optimizer = new()
    NormRecorder(optimizer, tmp_path / "norms.csv")
    train(params, optimizer, range(20))
    optimizer.state_dict()
    assert len((tmp_path / "norms.csv").read_text().splitlines()) == 21


def test_run_that_goes_back_to_a_checkpoint_is_recorded_as_it_went():
    params, optimizer = new("zscore")
    with NormRecorder(optimizer) as recorder:
        wanted = train(params, optimizer, range(20))
        saved = copy.deepcopy(optimizer.state_dict())
        wanted += train(params, optimizer, range(20, 30))
        optimizer.load_state_dict(saved)
        wanted += train(params, optimizer, range(40, 60))
    assert_same_history(recorder.history(), wanted)


@pytest.mark.parametrize("kind", ["usual", "inf"])
def test_step_that_is_taken_again_after_a_checkpoint_was_loaded_is_recorded(kind):
    params, optimizer = new("zscore")
    with NormRecorder(optimizer) as recorder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = train(params, optimizer, range(5))
        saved = copy.deepcopy(optimizer.state_dict())
        wanted += train(params, optimizer, [5], {5: kind})
        optimizer.load_state_dict(saved)
        wanted += train(params, optimizer, [5], {5: kind})
    rows = recorder.history()
    assert [(row["steps"], row["skipped_steps"]) for row in rows] == [(s["steps"], s["skipped_steps"]) for s in wanted]
    assert [math.isnan(row["grad_norm"]) for row in rows] == [False] * 5 + [kind == "inf"] * 2


def test_resumed_run_that_begins_with_a_step_without_a_gradient_keeps_its_last_row(tmp_path):
    params, optimizer = new()
    with NormRecorder(optimizer, tmp_path / "norms.csv"):
        train(params, optimizer, range(20))
        saved = copy.deepcopy(optimizer.state_dict())
        train(params, optimizer, range(20, 25))
    params, optimizer = new()
    with NormRecorder(optimizer, tmp_path / "norms.csv", resume=True) as recorder:
        train(params, optimizer, [0], {0: "zero"})  # as torch.distributed.checkpoint does
        optimizer.load_state_dict(saved)
        train(params, optimizer, [20, 21], {20: "zero"})
    assert [row["steps"] for row in recorder.history()] == [*range(1, 22)]


def test_file_of_another_run_is_not_continued_by_one_that_starts_with_a_spike(tmp_path):
    path = tmp_path / "norms.csv"
    params, optimizer = new()
    with NormRecorder(optimizer, path):
        train(params, optimizer, range(20))
    before = path.read_bytes()
    params, optimizer = new("norm", clipping_level=0.1, clipping_action="skip")
    with NormRecorder(optimizer, path, resume=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="has 20 steps and the optimizer starts anew"):
            train(params, optimizer, range(1))
    assert path.read_bytes() == before


def test_recorder_that_stops_leaves_other_hooks_alone(tmp_path):
    params, optimizer = new()
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append("before"))
    recorder = NormRecorder(optimizer, tmp_path / "norms.csv")
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_state_dict_pre_hook(lambda *_: seen.append("saved"))
    (tmp_path / "norms.csv").unlink()
    with pytest.warns(RuntimeWarning, match="no longer recorded"):
        train(params, optimizer, range(100))
    optimizer.state_dict()
    assert (seen.count("before"), seen.count("after"), seen.count("saved")) == (100, 100, 1)
    with pytest.raises(FileNotFoundError):
        recorder.flush()


def test_training_goes_on_where_a_continued_file_is_gone(tmp_path):
    path = tmp_path / "norms.csv"
    params, optimizer = new()
    with NormRecorder(optimizer, path):
        train(params, optimizer, range(20))
    NormRecorder(optimizer, path, resume=True)
    path.unlink()
    with pytest.warns(RuntimeWarning, match="no longer recorded"):
        train(params, optimizer, range(20, 22))
    assert not path.exists()


def test_path_is_that_of_the_beginning_also_if_the_working_directory_changes(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    params, optimizer = new()
    with NormRecorder(optimizer, "norms.csv") as recorder:
        monkeypatch.chdir(tmp_path / "elsewhere")
        train(params, optimizer, range(3))
    assert len(recorder.history()) == 3
    assert len((tmp_path / "norms.csv").read_text().splitlines()) == 4


def test_two_recorders_do_not_share_a_new_file(tmp_path):
    NormRecorder(new()[1], tmp_path / "norms.csv")
    with pytest.raises(ValueError, match="path must be a new file unless resume=True"):
        NormRecorder(new()[1], tmp_path / "norms.csv")


def test_path_must_be_a_file_in_a_folder_that_exists(tmp_path):
    with pytest.raises(ValueError, match=r"path must be in a folder that exists, but there is no '.*missing'"):
        NormRecorder(new()[1], tmp_path / "missing" / "norms.csv")
    with pytest.raises(ValueError, match=r"path must be a file, but '.*' is a folder"):
        NormRecorder(new()[1], tmp_path, resume=True)


@pytest.mark.parametrize("content", ["", "steps,clip"], ids=["empty", "a part of its first line"])
def test_file_of_a_run_that_was_killed_at_once_is_continued(tmp_path, content):
    path = tmp_path / "norms.csv"
    path.write_text(content)
    params, optimizer = new()
    with NormRecorder(optimizer, path, resume=True) as recorder:
        train(params, optimizer, range(3))
    assert [row["steps"] for row in recorder.history()] == [1, 2, 3]


def test_last_evaluation_of_a_step_is_recorded():
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = clip_optimizer(torch.optim.LBFGS([weight], lr=0.1, max_iter=4), "norm", 1.0)

    def closure():
        optimizer.zero_grad()
        loss = (weight - 3).square().sum()
        loss.backward()
        return loss

    with NormRecorder(optimizer) as recorder:
        norms = []
        for _ in range(3):
            optimizer.step(closure)
            norms.append(optimizer.clipping_stats()["grad_norm"])
    assert recorder.grad_norms().tolist() == norms


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_process_writes_nothing(tmp_path):
    params, optimizer = new()
    recorder = NormRecorder(optimizer, tmp_path / "norms.csv")
    train(params, optimizer, range(5))
    if not (child := os.fork()):
        optimizer.state_dict()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    recorder.close()
    assert len((tmp_path / "norms.csv").read_text().splitlines()) == 6
