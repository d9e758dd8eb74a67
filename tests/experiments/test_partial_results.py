"""An interrupted experiment leaves the files of a whole one as they are; what it has done goes beside them."""

import random
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from experiments.__main__ import EXPERIMENTS, main
from experiments.benchmark import levels as benchmark_levels
from experiments.benchmark import packages as benchmark_packages
from experiments.benchmark import run as benchmark
from experiments.benchmark.problem import SIZES
from experiments.common.text import load_text
from experiments.compare import run as compare
from experiments.endurance import run as endurance
from experiments.heavy_tails import run as heavy_tails
from experiments.launches import run as launches
from experiments.restarts import problems as restarts_problems
from experiments.restarts import run as restarts
from experiments.spikes import run as spikes
from experiments.thresholds import problems as thresholds_problems
from experiments.thresholds import run as thresholds
from experiments.toy import problems as toy_problems
from experiments.toy import regression as toy_regression
from experiments.toy import run as toy
from torch_clipped import RestartProperties

KINDS = ("csv", "json", "png")

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # while torch imports its compiler


@dataclass(frozen=True)
class Case:
    """A command in small, where Ctrl-C is pressed, and what is there afterwards."""

    options: tuple[str, ...]
    train: tuple[object, str]  # a function that is called for each training, or for a part of the only one
    whole: tuple[str, ...]  # the files of a run that came to its end
    kept: tuple[str, ...]  # those of one that was interrupted in its second training
    plot: tuple[object, str]


def files(name, ending=""):
    return tuple(f"{name}{ending}.{kind}" for kind in KINDS)


def case(module, *options, name, train="train", more=(), kept=None):
    whole = files(name) + more
    partial = (f"{name}.partial.jsonl", *(file.replace(".", ".partial.") for file in whole))
    return Case(options, (module, train), whole, partial if kept is None else kept, (module, "plot"))


CASES = {
    "heavy-tails": case(heavy_tails, "--steps", "3", "--seeds", "1", name="heavy_tails"),
    "benchmark": case(
        benchmark,
        *("--sizes", "tiny", "--optimizers", "sgd", "--budget", "1e-9"),
        name="benchmark",
        train="measure",
        more=("benchmark_targets.csv",),
    ),
    "endurance": case(
        endurance,
        *("--steps", "10", "--window", "10"),
        name="endurance",
        train="take_block",
        kept=files("endurance", ".partial"),  # which is one process from its start to its end
    ),
    "spikes": case(spikes, "--quick", name="spikes"),
    "thresholds": case(thresholds, "--quick", name="thresholds"),
    "restarts": case(restarts, name="restarts"),
    "compare": case(
        compare,
        *("--task", "text", "--quick", "--steps", "1", "--seeds", "1"),
        name="compare_text",
        more=("compare_text_details.png",),
        kept=("compare_text.partial.jsonl",),
    ),
    "toy": Case(
        ("--only", "regression"),
        (toy_regression, "train"),
        (*files("toy_regression"), "toy_regression_curves.csv"),
        ("toy_regression.partial.jsonl",),  # of a problem all is written or nothing
        (toy_problems, "plot_regression"),
    ),
    "launches": Case(
        ("--tensors", "1"),
        (launches, "count"),
        ("launches.csv", "launches.json"),
        ("launches.partial.jsonl",),
        (launches, "table"),  # which comes after the files
    ),
}


def not_installed(package):
    raise PackageNotFoundError(package)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Trainings of a few steps."""
    book = tmp_path / "book.txt"
    words = ["the", "gradient", "of", "a", "heavy", "tail", "is", "clipped", "at", "threshold\n"]
    book.write_text(" ".join(random.Random(0).choices(words, k=1000)))
    text = load_text(book)
    for module in (heavy_tails, restarts, spikes, thresholds):
        monkeypatch.setattr(module, "load_text", lambda data: text)
    for module in (heavy_tails, restarts_problems, spikes, thresholds_problems):
        monkeypatch.setattr(module, "BATCH", 4)
    for module in (heavy_tails, restarts_problems):
        monkeypatch.setattr(module, "VALIDATION_WINDOWS", 8)
    monkeypatch.setattr(spikes, "QUICK", {"steps": 20, "corrupted": (10,), "contenders": ("none", "left out"), "seeds": 1})
    monkeypatch.setattr(thresholds, "QUICK", {"seeds": 1, "every": 4, "shorter": 40})
    sizes = toy_regression.Config(samples=60, features=4, batch=20, epochs=1, seeds=1)
    schedules = (None, RestartProperties(2, 1.0))
    regression = replace(restarts_problems.regression(sizes=sizes), schedules=schedules, lrs=(0.01,), steps=4, seeds=2)
    monkeypatch.setattr(restarts, "language_model", lambda text, seed: replace(regression, name="another"))
    monkeypatch.setattr(restarts, "regression", lambda seed: regression)
    monkeypatch.setitem(toy.PROBLEMS, "regression", lambda seed, shorter: toy.regression(sizes))
    monkeypatch.setattr(compare, "FEW", ("norm",))
    monkeypatch.setitem(SIZES, "tiny", [(4, 3)])
    monkeypatch.setattr(benchmark_levels, "WINDOW", 250)
    monkeypatch.setattr(benchmark_packages, "version", not_installed)
    monkeypatch.setattr(endurance, "BLOCKS", 3)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # of other tests, too


@pytest.fixture
def folder(tmp_path):
    """Where the commands write."""
    folder = tmp_path / "figures"
    folder.mkdir()
    return folder


def press_ctrl_c(monkeypatch, place, call):
    """Interrupt the call of that number; later ones, and those before, go through."""
    real, calls = getattr(*place), []

    def pressed(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(*place, pressed)


def run(*arguments):
    """The exit code; an interruption that gets through would end all tests."""
    try:
        return main(list(map(str, arguments)))
    except KeyboardInterrupt:
        pytest.fail("interrupted with a traceback")


def put_whole(folder, names):
    for name in names:
        (folder / name).write_text("of a whole run")


def others(folder, names):
    """The files beside those, which are still what they were."""
    assert [(folder / name).read_text() for name in names] == ["of a whole run"] * len(names)
    return {path.name for path in folder.iterdir()} - set(names)


def test_every_experiment_is_tried():
    assert set(CASES) == set(EXPERIMENTS) - {"distributed"}  # which has tests of its own


@pytest.mark.parametrize("name", CASES)
def test_interrupted_training_leaves_the_whole_files_as_they_are(name, folder, monkeypatch, capsys):
    case = CASES[name]
    put_whole(folder, case.whole)
    # Each problem of restarts has its learning rates chosen by a training of its own, before that of the first seed.
    press_ctrl_c(monkeypatch, case.train, 3 if name == "restarts" else 2)
    assert run(name, *case.options, "--out", folder) == 130
    assert others(folder, case.whole) == set(case.kept)
    printed = capsys.readouterr()
    for kept in case.kept:
        assert kept in printed.out + printed.err
    assert "nterrupted" in printed.out + printed.err


@pytest.mark.parametrize("name", CASES)
def test_interruption_before_anything_is_done_leaves_nothing(name, folder, monkeypatch, capsys):
    case = CASES[name]
    put_whole(folder, case.whole)
    press_ctrl_c(monkeypatch, case.train, 1)
    assert run(name, *case.options, "--out", folder) == 130
    assert not others(folder, case.whole)
    assert "Interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("name", CASES)
def test_interruption_while_files_are_written_leaves_the_whole_ones_as_they_are(name, folder, monkeypatch):
    case = CASES[name]
    put_whole(folder, case.whole)
    press_ctrl_c(monkeypatch, case.plot, 1)
    assert run(name, *case.options, "--out", folder) == 130
    kept = others(folder, case.whole)
    assert {file.replace(".", ".partial.") for file in case.whole if file.endswith((".csv", ".json"))} <= kept
    assert all(".partial." in file for file in kept)


def test_rows_are_kept_where_the_picture_cannot_be_drawn(folder, monkeypatch):
    def broken(*files):
        raise OSError("no font")

    case = CASES["endurance"]
    put_whole(folder, case.whole)
    monkeypatch.setattr(*case.plot, broken)
    with pytest.raises(OSError, match="no font"):
        main(["endurance", *case.options, "--out", str(folder)])
    assert others(folder, case.whole) == {"endurance.partial.csv", "endurance.partial.json"}


def test_whole_run_takes_the_place_of_whole_and_partial_files(folder, monkeypatch, capsys):
    case = CASES["heavy-tails"]
    command = ["heavy-tails", *case.options, "--out", str(folder)]
    put_whole(folder, case.whole + case.kept)
    assert main(command) == 0
    assert {path.name for path in folder.iterdir()} == set(case.whole)
    assert (folder / "heavy_tails.png").read_bytes().startswith(b"\x89PNG")
    assert f"Written: heavy_tails.csv, heavy_tails.json, heavy_tails.png in {folder}" in capsys.readouterr().out
