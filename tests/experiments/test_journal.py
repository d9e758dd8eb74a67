"""The journal of finished trainings, and the command line of the experiments that keep one."""

import json
import math

import pytest
import torch

from experiments.common.command import Plan, command, parser_of
from experiments.common.journal import Journal

SETTINGS = {"steps": 3, "grid": (0.1, 1.0)}
RESULTS = {"first": {"losses": [math.inf, 0.1 + 0.2]}, "second": {"losses": [-math.inf, 1e-320]}}


def kept(path, settings=SETTINGS):
    """A journal with two trainings."""
    journal = Journal(path, settings, resume=False)
    for name, result in RESULTS.items():
        journal.done(name, 1, lambda result=result: result)
    return journal


def forbidden():
    pytest.fail("trained again")


def test_kept_trainings_are_not_run_again_and_keep_every_digit(tmp_path):
    path = tmp_path / "journal"
    assert not path.exists()
    Journal(path, SETTINGS, resume=False)
    assert not path.exists()  # nothing is finished
    assert kept(path).results == RESULTS
    again = Journal(path, SETTINGS, resume=True)
    assert list(again.results) == list(RESULTS)
    assert again.done("first", 1, forbidden) == RESULTS["first"]
    assert again.done("pair", 1, lambda: {"pair": (1, 2.0)}) == {"pair": [1, 2.0]}  # at once what it would be after resuming
    assert math.isnan(again.done("third", 1, lambda: {"loss": math.nan})["loss"])
    assert math.isnan(Journal(path, SETTINGS, resume=True).done("third", 1, forbidden)["loss"])
    assert {file.name for file in tmp_path.iterdir()} == {"journal"}
    again.remove()
    assert not path.exists()


def test_training_whose_line_was_cut_off_is_run_again(tmp_path):
    path = tmp_path / "journal"
    kept(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    again = Journal(path, SETTINGS, resume=True)
    assert again.results == {"first": RESULTS["first"]}
    again.done("second", 1, lambda: RESULTS["second"])
    assert path.read_bytes() == whole


def test_file_that_could_not_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    def interrupted(*paths):
        raise KeyboardInterrupt

    journal = kept(tmp_path / "journal")
    before = journal.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(type(journal.path), "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.done("third", 1, dict)
    assert journal.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [journal.path]
    assert journal.results == RESULTS  # and it says what is in the file


def test_second_run_in_the_same_folder_does_not_overwrite_the_first(tmp_path):
    path = tmp_path / "journal"
    late, resumed = Journal(path, {"steps": 4}, resume=False), kept(path)
    ahead = Journal(path, SETTINGS, resume=True)
    ahead.done("third", 1, dict)
    whole = path.read_bytes()
    for other in (late, resumed):
        with pytest.raises(ValueError, match="journal must be written by one run at a time"):
            other.done("fourth", 1, dict)
    assert path.read_bytes() == whole
    ahead.done("fourth", 1, dict)
    assert list(Journal(path, SETTINGS, resume=True).results) == [*RESULTS, "third", "fourth"]


@pytest.mark.parametrize("lines", ["", '{"sett', '{"settings": {"steps": 4}}\n', '{"settings": {"steps": 4}}\n{"training": "fi'])
def test_file_without_a_finished_training_is_no_obstacle(lines, tmp_path):
    path = tmp_path / "journal"
    path.write_text(lines)
    for resume in (True, False):
        assert not Journal(path, SETTINGS, resume).results
    assert path.read_text() == lines
    kept(path)
    assert Journal(path, SETTINGS, resume=True).results == RESULTS


@pytest.mark.parametrize("line", [b"{}", b"[]", b"{", b'{"training": "first", "result": 1}', b"\xff", b'{"training": {}}'])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_damaged_file_is_named_and_left_as_it_is(line, place, tmp_path):
    path = tmp_path / "journal"
    kept(path)
    lines = path.read_bytes().split(b"\n")
    lines[place] = line
    path.write_bytes(b"\n".join(lines))
    for resume in (True, False):
        with pytest.raises(ValueError, match=r"journal must hold finished trainings or be removed, and it is damaged: "):
            Journal(path, SETTINGS, resume)
    assert path.read_bytes() == b"\n".join(lines)


def test_other_settings_are_named_with_both_values_and_nothing_is_lost(tmp_path):
    path = tmp_path / "journal"
    kept(path, {"steps": 3, "grid": (0.1,), "old": None, "gone": 1})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"journal: grid was \[0.1\] and is \[0.1, 1.0\]; gone was 1 and is None$"):
        Journal(path, SETTINGS, resume=True)
    with pytest.raises(ValueError, match="journal holds 2 trainings of an interrupted run: add --resume, or remove it"):
        Journal(path, SETTINGS, resume=False)
    assert path.read_bytes() == before


class Made:
    """A plan of three trainings, one of which may be interrupted."""

    def __init__(self):
        self.interrupted_at, self.trained, self.written = None, [], []
        self.writes_parts, self.resumes = True, True
        self.interruption: BaseException = KeyboardInterrupt()

    def plan(self, seeds=3, quick=False):
        return Plan(
            name="made",
            settings={"seeds": seeds, "quick": quick},
            steps=seeds,
            train=self.train,
            write=self.write,
            writes_parts=self.writes_parts,
            resumes=self.resumes,
        )

    def write(self, results, folder):
        self.written.append([result["seed"] for result in results])
        for kind in ("csv", "json", "png"):
            (folder / f"made.{kind}").touch()
        return "a table"

    def train(self, journal):
        for seed in range(3):
            journal.done(f"seed {seed}", 1, lambda seed=seed: self.one(seed))

    def one(self, seed):
        if seed == self.interrupted_at:
            raise self.interruption
        self.trained.append(seed)
        return {"seed": seed}

    def command(self, *options):
        parser = parser_of("made", None)
        parser.add_argument("--seeds", type=int)
        return command(parser, self.plan, {"quick": True}, list(map(str, options)))


@pytest.mark.parametrize("writes_parts", [True, False])
def test_interrupted_command_keeps_what_is_done_says_how_to_go_on_and_does(writes_parts, tmp_path, capsys):
    made, folder = Made(), tmp_path / "a folder"
    made.interrupted_at, made.writes_parts = 2, writes_parts
    assert made.command("--quick", "--out", folder) == 130
    assert made.written == [[0, 1]] * writes_parts
    words = (
        f"2 finished trainings are kept in {folder}/made.partial.jsonl: "
        f"to continue, run the same command with --resume --out '{folder}'"
    )
    assert words in capsys.readouterr().err
    made.interrupted_at = None
    for options, message in (
        ([], "add --resume, or remove it"),
        (["--resume", "--seeds", 2], "seeds was 3 and is 2"),
        (["--resume"], "quick was True and is False"),
    ):
        with pytest.raises(SystemExit, match="2"):
            made.command("--out", folder, *(["--quick"] if "quick" not in message else []), *options)
        assert message in capsys.readouterr().err
    assert made.command("--quick", "--resume", "--out", folder) == 0
    assert made.trained == [0, 1, 2]
    assert made.written[-1] == [0, 1, 2]
    assert {path.name for path in folder.iterdir()} == {"made.csv", "made.json", "made.png"}
    assert "Written: made.csv, made.json, made.png in" in capsys.readouterr().out


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("damaged image"), MemoryError()])
def test_error_in_a_training_is_raised_after_saying_how_to_go_on(error, tmp_path, capsys):
    made = Made()
    made.interrupted_at, made.interruption = 2, error
    with pytest.raises(type(error)):
        made.command("--out", tmp_path)
    words = (
        f"Ended by an error, 2 finished trainings are kept in {tmp_path}/made.partial.jsonl: to continue, run the same command"
    )
    assert words in capsys.readouterr().err
    made.interrupted_at = None
    assert made.command("--out", tmp_path, "--resume") == 0
    assert made.trained == [0, 1, 2]


def test_interruption_while_files_are_written_keeps_the_trainings(tmp_path, capsys, monkeypatch):
    def interrupted(plan, journal, folder, partial):
        raise KeyboardInterrupt

    made = Made()
    made.writes_parts = False
    with monkeypatch.context() as patch:
        patch.setattr("experiments.common.command._write", interrupted)
        assert made.command("--out", tmp_path) == 130
    assert "Interrupted, 3 finished trainings are kept" in capsys.readouterr().err
    assert made.command("--out", tmp_path, "--resume") == 0
    assert made.trained == [0, 1, 2]


def test_trainings_with_other_threads_are_not_gone_on_with(tmp_path, capsys, monkeypatch):
    made = Made()
    made.interrupted_at = 1
    made.command("--out", tmp_path)
    there = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: there + 1)
    with pytest.raises(SystemExit, match="2"):
        made.command("--resume", "--out", tmp_path)
    assert f"threads was {there} and is {there + 1}" in capsys.readouterr().err


def test_trainings_of_other_versions_are_not_gone_on_with(tmp_path, capsys):
    made = Made()
    made.interrupted_at = 1
    made.command("--out", tmp_path)
    path = tmp_path / "made.partial.jsonl"
    first, *lines = path.read_text().splitlines(keepends=True)
    header = json.loads(first)
    header["settings"]["versions"]["torch"] = "1.0"
    path.write_text("".join([json.dumps(header) + "\n", *lines]))
    with pytest.raises(SystemExit, match="2"):
        made.command("--resume", "--out", tmp_path)
    assert "'torch': '1.0'" in capsys.readouterr().err


def test_interruption_before_the_first_training_is_done_leaves_nothing(tmp_path, capsys):
    made = Made()
    made.interrupted_at = 0
    assert made.command("--out", tmp_path) == 130
    assert "Interrupted, nothing was finished." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_run_that_cannot_be_resumed_leaves_its_parts_and_no_journal(tmp_path, capsys):
    made = Made()
    made.interrupted_at, made.resumes = 2, False
    with pytest.raises(SystemExit, match="2"):
        made.command("--out", tmp_path, "--resume")
    assert "resume is not supported: made measures one process from its start to its end" in capsys.readouterr().err
    assert made.command("--out", tmp_path) == 130
    assert "Interrupted, 2 parts were finished." in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"made.partial.csv", "made.partial.json", "made.partial.png"}
    made.interrupted_at = None
    assert made.command("--out", tmp_path) == 0
    assert made.trained == [0, 1, 0, 1, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"made.csv", "made.json", "made.png"}


def test_journal_without_a_file_gives_back_what_one_with_a_file_does(tmp_path):
    journals = [Journal(path, SETTINGS, resume=False) for path in (None, tmp_path / "journal")]
    made = [journal.done("pair", 1, lambda: {"pair": (1, math.inf)}) for journal in journals]
    assert made == [{"pair": [1, math.inf]}] * 2
    journals[0].remove()


def test_folder_that_cannot_be_made_is_an_error(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        Made().command("--out", tmp_path / "file")
    words = f"out must be a folder that can be written, got '{tmp_path}/file' (File exists)"
    assert words in capsys.readouterr().err


def test_folder_that_cannot_be_written_is_an_error_before_any_training(tmp_path, monkeypatch, capsys):
    def refused(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("experiments.common.command.tempfile.TemporaryFile", refused)
    made = Made()
    with pytest.raises(SystemExit, match="2"):
        made.command("--out", tmp_path)
    assert f"out must be a folder that can be written, got '{tmp_path}' (Permission denied)" in capsys.readouterr().err
    assert not made.trained
