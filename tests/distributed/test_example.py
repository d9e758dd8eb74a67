"""``torchrun -m experiments distributed``: what many processes train is what one trains, also after a checkpoint."""

import json
import os
import shutil
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from support.versions import needs_torch
from torch.distributed.tensor import DTensor

from experiments.distributed import checkpoints as distributed_checkpoints
from experiments.distributed import processes as distributed_processes
from experiments.distributed import run as distributed
from experiments.distributed.checkpoints import newest, read_record
from experiments.distributed.options import read_job
from experiments.distributed.processes import Interruption, Processes
from experiments.distributed.report import Curve, allowed, are_equal, differences, table, verdict
from experiments.distributed.run import main
from experiments.distributed.strategies import ALONE, STRATEGIES
from experiments.distributed.training import Training

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="two processes of the CPU: the command would take GPUs"),
    needs_torch("2.12", "a checkpoint without warnings of torch's own"),
]

ROOT = Path(__file__).parents[2]
SECONDS = 120
SHORT = ("--steps", "6", "--batch", "4", "--checkpoint-every", "3")


def torchrun(*arguments, processes=2):
    """The command on several processes, on a port that is free; killed and reported where it takes too long."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "experiments", "distributed", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        try:
            out, err = run.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGTERM)  # which torchrun hands on to the processes that it started
            out, err = run.communicate()
            pytest.fail(f"{command} took more than {SECONDS} s and was ended. It had said:\n{out}\n{err}")
    return subprocess.CompletedProcess(command, run.returncode, out, err)


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path_factory):
    """Where the commands without ``--out`` leave their results."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A text whose letters follow each other by a rule."""
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("".join(chr(97 + i * i % 23) + " " * (i % 7 == 0) for i in range(20_000)))
    return path


@pytest.fixture(scope="module", params=STRATEGIES)
def unbroken(request, book, tmp_path_factory):
    """A run to the end, with a checkpoint half-way."""
    folder = tmp_path_factory.mktemp(request.param)
    options = ("--strategy", request.param, "--data", book, "--checkpoints", folder / "checkpoints", *SHORT)
    ended = torchrun(*options, "--out", folder)
    return request.param, (*options, "--out", folder / "again"), folder, ended


def test_each_strategy_gives_the_losses_of_one_process(unbroken):
    strategy, _, folder, ended = unbroken
    assert ended.returncode == 0, ended.stderr
    assert "Warning" not in ended.stderr
    summary = json.loads((folder / "distributed.json").read_text(), parse_constant=pytest.fail)
    assert summary["settings"]["strategy"] == strategy
    assert summary["settings"]["processes"] == 2
    assert summary["equal"]
    assert not summary["interrupted"]
    assert summary["validation_loss"] == pytest.approx(summary["validation_loss_alone"], abs=1e-4)
    lines = (folder / "distributed.csv").read_text().splitlines()
    assert lines[0] == "step,loss,grad_norm,loss_alone,grad_norm_alone"
    assert len(lines) == 1 + 6
    for line in lines[1:]:
        _, loss, norm, loss_alone, norm_alone = map(float, line.split(","))
        assert loss == pytest.approx(loss_alone, abs=1e-4)
        assert norm == pytest.approx(norm_alone, rel=1e-3)


def test_one_process_speaks(unbroken):
    ended = unbroken[3]
    assert ended.stdout.count("validation loss") == ended.stdout.count("Equal but for rounding") == 1
    assert "1 process:" not in ended.stderr  # a progress bar, which is for terminals
    assert "2 processes:" not in ended.stderr


def resume(options):
    processes = Processes(dist.get_world_size(), dist.get_rank())
    return distributed.run(read_job([*options, "--resume", "--no-reference"], processes), processes, Interruption())


def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(unbroken, two, tmp_path):
    _, options, folder, _ = unbroken
    shutil.copytree(folder / "checkpoints" / "step-00000003", tmp_path / "step-00000003")
    (tmp_path / "step-00000006.unfinished").mkdir()  # what a kill leaves
    assert two.run(resume, [*map(str, options), "--checkpoints", str(tmp_path)]) == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000006"]
    expected, found = (read_record(place / "step-00000006") for place in (folder / "checkpoints", tmp_path))
    assert len(found["losses"]) == 6
    assert found == expected


def test_one_process_goes_on_by_another_strategy(unbroken, tmp_path, capsys):
    _, options, folder, _ = unbroken
    shutil.copytree(folder / "checkpoints" / "step-00000003", tmp_path / "step-00000003")
    assert main([*map(str, options), "--strategy", "ddp", "--checkpoints", str(tmp_path), "--resume"]) == 0
    assert "Equal but for rounding: the largest difference of all 6 steps" in capsys.readouterr().out
    expected, found = (read_record(place / "step-00000006") for place in (folder / "checkpoints", tmp_path))
    assert found["losses"][:3] == expected["losses"][:3]
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-4)
    assert found["grad_norms"] == pytest.approx(expected["grad_norms"], rel=1e-3)


def test_a_wrong_argument_ends_all_processes_with_exit_code_2_and_one_message(book):
    ended = torchrun("--data", book, "--out", book.parent, "--batch", "5")
    assert ended.returncode != 0
    assert ended.stderr.count("error: batch must be a multiple of 2, the number of processes, got 5") == 1
    assert "[rank" not in ended.stderr  # a traceback of one of ours
    assert "exitcode  : 2" in ended.stderr  # torchrun's report of the first that ended; its own exit code is always 1


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "tp"])
def test_without_torchrun_one_process_trains(strategy, book, capsys):
    assert main(["--strategy", strategy, "--data", str(book), *SHORT]) == 0
    assert "Equal but for rounding" in capsys.readouterr().out
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--lr", "nan"], "lr must be positive and finite, got nan"),
        (["--clipping-type", "nrom"], "did you mean 'norm'?"),
        (["--level", "-1"], "clipping_level must be > 0, got -1.0"),
        (["--strategy", "fsdp1"], "argument --strategy: invalid choice: 'fsdp1'"),
        (["--data", "missing.txt"], "data must be a text file that can be read, got 'missing.txt'"),
        (["--checkpoint-every", "0"], "checkpoint-every must be at least 1, got 0"),
        (["--resume"], "resume needs the folder of the checkpoints"),
        (["--out", __file__], "out must be a folder that can be written"),
        (["--checkpoints", __file__], "checkpoints must be a folder that can be written"),
    ],
)
def test_bad_options_are_named_with_their_values(options, message, book, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--data", str(book), *options])
    assert message in capsys.readouterr().err
    assert not dist.is_initialized()


def test_help_is_printed_where_help_belongs(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--strategy {ddp,fsdp2,tp}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def checkpoint(book, tmp_path_factory):
    """Of a run on one process; the folder of its checkpoints and the options."""
    folder = tmp_path_factory.mktemp("checkpoint")
    out = tmp_path_factory.mktemp("results")
    options = ["--data", str(book), "--checkpoints", str(folder), "--out", str(out), *SHORT]
    assert main([*options, "--no-reference"]) == 0
    return folder, options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "checkpoints must be a folder without any, unless --resume is given, got step-00000006 in "),
        (["--resume", "--seed", "1"], "seed must be 0 as in step-00000006 to go on from there, got 1"),
        (["--resume", "--optimizer", "adam"], "optimizer must be 'sgd' as in step-00000006 to go on from there, got 'adam'"),
        (["--resume", "--steps", "5"], "steps must be at least 6, where step-00000006 is, got 5"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(options, message, checkpoint, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*checkpoint[1], *options])
    assert message in capsys.readouterr().err


def test_a_finished_training_can_be_resumed_and_resuming_from_nothing_starts(checkpoint, tmp_path, capsys):
    assert main([*checkpoint[1], "--resume"]) == 0
    assert "Equal but for rounding" in capsys.readouterr().out
    assert main([*checkpoint[1], "--checkpoints", str(tmp_path), "--resume", "--no-reference"]) == 0
    assert read_record(newest(tmp_path)) == read_record(newest(checkpoint[0]))


def test_a_kill_while_a_checkpoint_is_written_loses_that_one_only(book, tmp_path, monkeypatch):
    options = ["--data", str(book), "--checkpoints", str(tmp_path), *SHORT]

    def killed(self, *arguments, **others):
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        calls = []
        dumps = lambda record: killed(record) if calls else calls.append(1) or json.dumps(record)  # noqa: E731
        patched.setattr(distributed_checkpoints, "json", SimpleNamespace(dumps=dumps, loads=json.loads))
        with pytest.raises(RuntimeError, match="killed"):
            main([*options, "--no-reference"])
    assert newest(tmp_path).name == "step-00000003"
    assert (tmp_path / "step-00000006.unfinished").is_dir()
    assert main([*options, "--resume"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000006"]


def test_an_error_lets_go_of_the_model_before_the_group_of_processes_ends(book, monkeypatch):
    trainings, gone, destroy = [], [], distributed_processes.dist.destroy_process_group

    def broken_step(self, *arguments):
        trainings.append(weakref.ref(self))
        raise RuntimeError("broken")

    def destroy_group():
        gone.append(trainings[0]() is None)
        destroy()

    monkeypatch.setattr(Training, "step", broken_step)
    monkeypatch.setattr(distributed_processes.dist, "destroy_process_group", destroy_group)
    with pytest.raises(RuntimeError, match="broken"):
        main(["--data", str(book), *SHORT, "--no-reference"])
    assert gone == [True]


def test_ctrl_c_ends_the_training_after_a_step_with_a_checkpoint(book, tmp_path, monkeypatch, capsys):
    step, calls = Training.step, []

    def interrupted_step(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments)

    monkeypatch.setattr(Training, "step", interrupted_step)
    options = ["--data", str(book), "--out", str(tmp_path), "--checkpoints", str(tmp_path / "checkpoints"), *SHORT]
    assert main([*options, "--no-reference"]) == 130
    steps = len(read_record(newest(tmp_path / "checkpoints"))["losses"])
    assert f"Interrupted: these are the {steps} steps that were done." in capsys.readouterr().out
    assert steps in (2, 3)
    assert json.loads((tmp_path / "distributed.partial.json").read_text())["interrupted"]
    assert len((tmp_path / "distributed.partial.csv").read_text().splitlines()) == 1 + steps
    calls.clear()
    assert main(["--data", str(book), *SHORT]) == 130  # in the run that is compared with
    assert "Interrupted before the first common step" in capsys.readouterr().err


def test_differences_are_judged_by_step_and_nan_is_none_of_rounding():
    def curve(*losses, validation=1.0):
        return Curve(losses=losses, grad_norms=losses, validation_loss=validation)

    alone = curve(*[2.0] * 60)
    assert are_equal(curve(*[2 + 0.9 * allowed(step) for step in range(60)]), alone)
    early = [2.0] * 60
    early[2] += 0.5 * allowed(59)
    assert not are_equal(curve(*early), alone)
    assert verdict(curve(*early), alone).startswith("NOT EQUAL: step 2 differs by")
    assert verdict(curve(*[2.0] * 60, validation=1.1), alone).startswith("NOT EQUAL: the validation loss differs by 1.0e-01")
    assert not are_equal(curve(*[2.0] * 59, float("nan")), alone)
    stopped = curve(2.0, 2.0, validation=None)
    assert differences(stopped, alone) == [0.0, 0.0]
    assert "validation" not in table(stopped, alone, "2 processes")


def test_more_processes_than_gpus_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(distributed_processes.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(distributed_processes.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "nproc-per-node must be at most 1, the GPUs of this machine, got 2" in capsys.readouterr().err


class WrongTraining(Training):
    """Each process clips by the norm of what it holds."""

    def __init__(self, strategy, processes, *arguments, **options):
        super().__init__(strategy, processes, *arguments, **options)
        if processes.count > 1:
            self.optimizer.register_step_pre_hook(lambda *_: self.clip())

    def clip(self):
        held = [p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in self.model.parameters()]
        norm = torch.cat([grad.flatten() for grad in held]).norm()
        for grad in held:
            grad.mul_(min(1.0, 0.25 / norm.item()))


def train_wrongly(kind, optimizer, book):
    processes = Processes(dist.get_world_size(), dist.get_rank())
    options = ["--data", str(book), "--out", str(book.parent), "--optimizer", optimizer, "--strategy", "fsdp2", *SHORT]
    job = read_job(options, processes)
    if kind == "right":
        return distributed.run(job, processes, Interruption())
    if kind == "gradients of one process":
        with patch.dict(STRATEGIES, fsdp2=ALONE._replace(shares_batch=True)):
            return distributed.run(job, processes, Interruption())
    with patch.object(distributed, "Training", WrongTraining):
        return distributed.run(replace(job, config=replace(job.config, level=1e9)), processes, Interruption())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("kind", "code"), [("right", 0), ("gradients of one process", 1), ("own norms", 1)])
def test_wrong_gradients_and_wrong_norms_end_with_exit_code_1(two, book, kind, code, optimizer):
    assert two.run(train_wrongly, kind, optimizer, book)[0] == code
