"""The command line that all experiments share: its options, where it writes, and what an interruption leaves."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from experiments.__main__ import EXPERIMENTS, main
from experiments.compare import task_graph
from experiments.distributed import run as distributed

NEEDED = {"compare": ["--task", "text"]}
CHANGED = {  # an option that makes other settings of each
    **{name: ["--seed", "7"] for name in EXPERIMENTS},
    "compare": ["--seeds", "2"],
    "launches": ["--tensors", "3"],
}
PLANNED = [name for name in EXPERIMENTS if name != "distributed"]  # whose processes go on from checkpoints instead
RESUMED = [name for name in PLANNED if name != "endurance"]  # which measures one process from its start to its end
EARLIER = "of an earlier run"

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # while torch imports its compiler
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a process of the CPU: the command would take a GPU")
EACH = [pytest.param(name, marks=needs_no_gpu if name == "distributed" else ()) for name in EXPERIMENTS]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    """In a folder without results, with the threads of the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(task_graph, "needed", lambda *names: None)


def command(name, *options):
    """The exit code of an experiment; an interruption that gets through would end all tests."""
    try:
        return main([name, *NEEDED.get(name, []), *options])
    except KeyboardInterrupt:
        pytest.fail("interrupted with a traceback")


def refused(capsys, name, *options):
    """What the command says where it does not start."""
    with pytest.raises(SystemExit, match="2"):
        command(name, *options)
    return capsys.readouterr().err


class Parts:
    """In place of the trainings of an experiment three parts that take no time, and of its files one."""

    def __init__(self, name, monkeypatch):
        self.run, self.interrupted_at, self.parts, self.name = [], None, 0, None
        module = import_module(f"experiments.{name.replace('-', '_')}.run")
        self.real = module.plan
        monkeypatch.setattr(module, "plan", self.plan)

    def plan(self, **options):
        real = self.real(**options)
        self.name = real.name
        return replace(real, steps=3, train=self.train, write=self.write)

    def train(self, journal):
        for part in range(3):
            journal.done(f"part {part}", 1, lambda part=part: self.one(part))

    def one(self, part):
        if part == self.interrupted_at:
            raise KeyboardInterrupt
        self.run.append(part)
        return {"part": part}

    def write(self, results, folder):
        (folder / f"{self.name}.json").write_text(f"{len(results)} parts")
        return "a table"


@pytest.fixture
def parts(request, monkeypatch):
    return Parts(request.getfixturevalue("name"), monkeypatch)


def written(folder="."):
    """All files below a folder, and what is in them."""
    return {str(path): path.read_text() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def test_help_of_all_has_a_line_on_each(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.partition("experiments:")[2].strip().splitlines()]
    assert [name for name, _ in lines] == list(EXPERIMENTS)
    assert all(words.endswith(".") for _, words in lines)


@pytest.mark.parametrize("name", EACH)
def test_help_names_the_options_that_all_have(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    words = capsys.readouterr().out
    assert f"-m experiments {name}" in words
    assert all(option in words for option in ("--out FOLDER", "--quick", "--resume"))


@pytest.mark.parametrize("name", EACH)
def test_unknown_option_is_refused(name, capsys):
    assert "unrecognized arguments: --nonsense" in refused(capsys, name, "--nonsense")
    assert not written()


@pytest.mark.parametrize("name", EACH)
def test_out_that_cannot_be_a_folder_is_refused(name, capsys):
    Path("file").touch()
    assert "out must be a folder that can be written, got 'file' (File exists)" in refused(capsys, name, "--out", "file")


@pytest.mark.parametrize("name", ["heavy-tails", "spikes", "thresholds", "endurance", "toy", "restarts"])
def test_seed_that_torch_cannot_take_is_named(name, capsys):
    seed = "99999999999999999999"
    assert f"seed must be at most {2**62}, got {seed}" in refused(capsys, name, "--seed", seed)


@pytest.mark.parametrize("name", PLANNED)
def test_interruption_while_the_data_load_returns_130(name, monkeypatch, capsys):
    def interrupted(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module(f"experiments.{name.replace('-', '_')}.run"), "plan", interrupted)
    assert command(name, "--quick") == 130
    assert "Interrupted, nothing was finished." in capsys.readouterr().err


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("quick", [True, False], ids=["quick", "changed"])
def test_figures_take_results_of_the_default_settings_only(name, quick, capsys):
    options = ["--quick"] if quick else CHANGED[name]
    words = f"out must name another folder where {options[0]} is given: figures holds results of the default settings"
    assert words in refused(capsys, name, *options, "--out", "figures")
    for folder in (Path.cwd() / "figures", Path(__file__).parents[2] / "figures"):  # the latter from any folder
        assert words in refused(capsys, name, *options, "--out", str(folder))
    assert not Path("figures").exists()


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize(
    ("options", "folder"), [([], "results"), (["--quick"], "results/quick"), (["--out", "figures"], "figures")]
)
def test_results_are_written_where_they_belong(name, options, folder, parts, capsys):
    for other in {"results", "results/quick", "figures"} - {folder}:
        Path(other).mkdir(parents=True, exist_ok=True)
        (Path(other) / "earlier").write_text(EARLIER)
    before = written()
    assert command(name, *options) == 0
    assert written() == before | {f"{folder}/{parts.name}.json": "3 parts"}
    printed = capsys.readouterr()
    assert f"Written: {parts.name}.json in {folder}" in printed.out
    assert printed.err == ""  # no progress bar where the output is no terminal


@pytest.mark.parametrize("name", PLANNED)
def test_results_of_changed_settings_are_written_beside_no_figure(name, parts):
    assert command(name, *CHANGED[name]) == 0
    assert written() == {f"results/{parts.name}.json": "3 parts"}


@pytest.mark.parametrize("name", PLANNED)
def test_interruption_returns_130_and_overwrites_nothing(name, parts, capsys):
    assert command(name) == 0
    before = written()
    parts.interrupted_at = 2
    assert command(name) == 130
    assert before.items() <= written().items()
    assert all(".partial." in path for path in written().keys() - before.keys())
    assert "Interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_run_takes_what_is_left(name, parts, capsys):
    parts.interrupted_at = 2
    assert command(name, "--quick") == 130
    assert f"results/quick/{parts.name}.partial.jsonl" in written()
    parts.interrupted_at = None
    assert "holds 2 trainings of an interrupted run: add --resume, or remove it" in refused(capsys, name, "--quick")
    assert command(name, "--quick", "--resume") == 0
    assert parts.run == [0, 1, 2]
    assert written() == {f"results/quick/{parts.name}.json": "3 parts"}


@pytest.mark.parametrize("name", ["endurance"])
def test_run_of_one_process_is_not_resumed(name, parts, capsys):
    assert "resume is not supported: endurance measures one process" in refused(capsys, name, "--resume")
    parts.interrupted_at = 2
    assert command(name) == 130
    assert written() == {"results/endurance.partial.json": "2 parts"}


@needs_no_gpu
@pytest.mark.parametrize(
    ("options", "folder"), [([], "results"), (["--quick"], "results/quick"), (["--out", "figures"], "figures")]
)
def test_processes_write_where_all_experiments_do(options, folder, monkeypatch):
    jobs = []
    monkeypatch.setattr(distributed, "run", lambda job, *others: jobs.append(job) or 0)
    assert command("distributed", *options) == 0
    (job,) = jobs
    assert job.out == Path(folder)
    assert job.config.steps == (20 if "--quick" in options else 100)


@needs_no_gpu
def test_processes_resume_from_checkpoints_only(capsys):
    assert "resume needs the folder of the checkpoints: --checkpoints FOLDER" in refused(capsys, "distributed", "--resume")


@pytest.mark.parametrize(("name", "options"), [("toy", ["--only", "adagrad"]), ("compare", ["--task", "graph"])])
def test_choice_between_results_is_allowed_in_figures(name, options, monkeypatch):
    parts = Parts(name, monkeypatch)
    assert main([name, *options, "--out", "figures"]) == 0
    assert parts.name == f"{name}_{options[-1]}"
    assert written() == {f"figures/{parts.name}.json": "3 parts"}
