"""``python -m experiments restarts``: what it trains, writes, marks and says."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from tqdm import tqdm

from experiments.__main__ import main
from experiments.common.files import read_csv
from experiments.common.regression import make_data
from experiments.common.text import load_text
from experiments.restarts import picture as restarts_picture
from experiments.restarts import problems as restarts_problems
from experiments.restarts import run as restarts
from experiments.restarts.problems import Point, contender, language_model, regression
from experiments.restarts.table import sentences, summarize, table
from experiments.toy import regression as toy_regression
from torch_clipped import RestartProperties

SCHEDULES = (
    None,
    RestartProperties(2, 1.0),
    RestartProperties(3, 1.5),
    RestartProperties(3, 1.5, average="last"),
)
RESTARTS = {  # in 10 steps: windows 2, 2, 2, 2, 2 and 3, 4, 6
    "no restart": [],
    "restarts from the mean, 2 x 1": [2, 4, 6, 8, 10],
    "restarts from the mean, 3 x 1.5": [3, 7],
    "restarts from the last, 3 x 1.5": [3, 7],
}
SMALL = {"schedules": SCHEDULES, "steps": 10, "measured_every": 5, "seeds": 2}
MEASURED = [0, 2, 3, 4, 5, 6, 7, 8, 10]
SIZES = toy_regression.Config(samples=100, features=4, batch=20)


def train(problem, entrants, seed, measured_every=None):
    with tqdm(disable=True) as progress:
        return restarts.train(problem, entrants, seed, measured_every, progress)


@pytest.fixture(scope="module", autouse=True)
def _few_windows():
    """Of the language model: most of the time would go by measuring it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("BATCH", "TRAINING_WINDOWS", "VALIDATION_WINDOWS"):
            patch.setattr(restarts_problems, name, 8)
        yield


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """Both problems in ten steps, the language model on a book of ten words."""
    book = tmp_path_factory.mktemp("book") / "book.txt"
    words = ["the", "gradient", "of", "a", "heavy", "tail", "is", "clipped", "at", "threshold\n"]
    book.write_text(" ".join(random.Random(0).choices(words, k=1000)))
    return [
        replace(language_model(load_text(book)), lrs=(1.0, 5.0), **SMALL),
        replace(regression(sizes=SIZES), lrs=(0.001, 0.1), **SMALL),
    ]


@pytest.fixture(scope="module")
def written(problems, tmp_path_factory):
    """The folder and the results of both."""
    folder = tmp_path_factory.mktemp("restarts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restarts, "load_text", lambda data: None)
        patch.setattr(restarts, "language_model", lambda text, seed: problems[0])
        patch.setattr(restarts, "regression", lambda seed: problems[1])
        assert main(["restarts", "--out", str(folder)]) == 0
    return folder, json.loads((folder / "restarts.json").read_text())


def test_every_contender_has_a_row_for_each_seed_and_measured_step(written):
    rows = read_csv(written[0] / "restarts.csv")
    assert len(rows) == 2 * len(SCHEDULES) * 2 * len(MEASURED)
    for problem in ("language model", "regression"):
        for name, steps in RESTARTS.items():
            for seed in "01":
                mine = [row for row in rows if (row["problem"], row["contender"], row["seed"]) == (problem, name, seed)]
                assert [int(row["step"]) for row in mine] == MEASURED
                assert [int(row["restarts"]) for row in mine] == [sum(s <= step for s in steps) for step in MEASURED]


def test_config_grid_and_final_losses_are_written(written, problems):
    folder, results = written
    content = json.loads((folder / "restarts.json").read_text(), parse_constant=pytest.fail)
    assert [one["problem"] for one in content] == ["language model", "regression"]
    for one, problem, result in zip(content, problems, results, strict=True):
        assert one["config"]["schedules"] == [None if s is None else vars(s) for s in SCHEDULES]
        assert one["config"]["lrs"] == list(problem.lrs)
        assert one["config"]["steps"] == 10
        assert len(one["ends"]) == len(SCHEDULES) * 2
        assert {end["contender"]: end["restarts"] for end in one["ends"]} == RESTARTS
        assert one["contenders"] == summarize(result["ends"])
        assert one["sentences"] == sentences(result["contenders"], result["grid"])


def test_final_training_loss_is_the_last_of_the_curve(written):
    folder, results = written
    last = {(r["problem"], r["contender"], int(r["seed"])): float(r["loss"]) for r in read_csv(folder / "restarts.csv")}
    for end in results[0]["ends"] + results[1]["ends"]:
        assert last[end["problem"], end["contender"], end["seed"]] == pytest.approx(end["training_loss"], rel=1e-5)


def test_all_contenders_start_alike_and_go_on_alike_until_one_restarts(written):
    rows = [row for row in read_csv(written[0] / "restarts.csv") if row["problem"] == "regression" and row["seed"] == "1"]
    lr = {row["contender"]: row["lr"] for row in rows}
    for name, steps in RESTARTS.items():
        assert lr[name] == lr["no restart"]  # else the comparison below would show nothing
        before = {row["step"]: row["loss"] for row in rows if row["contender"] == name and int(row["step"]) < min([99, *steps])}
        plain = {row["step"]: row["loss"] for row in rows if row["contender"] == "no restart"}
        assert before.items() <= plain.items()
        assert not steps or {row["loss"] for row in rows if row["contender"] == name} - set(plain.values())


def test_each_contender_gets_the_learning_rate_of_its_lowest_training_loss(written):
    for result in written[1]:
        for one in result["contenders"]:
            mine = [row for row in result["grid"] if row["contender"] == one["contender"]]
            assert len(mine) == 2
            best = min(mine, key=lambda row: row["training_loss"])
            assert best["lr"] == one["lr"]
            assert [row["chosen"] for row in mine] == [row is best for row in mine]


def test_mean_of_the_last_quarter_is_that_of_the_iterates(problems, monkeypatch):
    problem = problems[1]
    seen = []
    take_in = restarts._take_in
    monkeypatch.setattr(restarts, "_take_in", lambda means, models: seen.append(copies(models)) or take_in(means, models))
    _, ends = train(problem, [(None, 0.1), (SCHEDULES[1], 0.1)], 0)
    task = problem.task(0)
    assert len(seen) == 2  # a quarter of ten steps
    for end, *iterates in zip(ends, *seen, strict=True):
        mean, last = Point(torch.stack(iterates).mean(0)), Point(iterates[-1])
        for batches, kind in ((task.training, "training_loss"), (task.validation, "validation_loss")):
            assert end["mean_" + kind] == pytest.approx(restarts.measure(task, mean, batches), rel=1e-9)
            assert end[kind] == pytest.approx(restarts.measure(task, last, batches), rel=1e-9)
        assert end["mean_training_loss"] != end["training_loss"]


def copies(models):
    return [next(model.parameters()).detach().clone() for model in models.values()]


def test_regression_is_that_of_the_toy_with_some_samples_held_out(problems):
    task = problems[1].task(3)
    data = make_data(2100, 4, 3)
    ((features, labels),) = task.training
    assert len(features) == 100
    torch.testing.assert_close(torch.cat([features, task.validation[0][0]]), data.features)
    x = data.start.clone().requires_grad_()
    model = task.model.make()
    task.loss(model, (features, labels)).backward()
    torch.testing.assert_close(model.x.grad, toy_regression.gradient(features, labels, x.detach(), 1.75))
    drawn = task.draw(torch.Generator().manual_seed(0))
    assert drawn[0].shape == (20, 4)
    assert all(any(torch.equal(row, sample) for sample in features) for row in drawn[0])


def test_default_schedules_do_not_restart_at_the_last_step(problems):
    """There the last iterate would be a mean, and not what comes of going on from it."""
    for problem in (language_model(load_text(None)), regression()):
        for schedule in filter(None, problem.schedules):
            step, window = 0, schedule.first_restart_steps_cnt
            while step < problem.steps:
                step, window = step + window, int(window * schedule.restart_coeff)
            assert step > problem.steps, contender(schedule)


def test_picture_marks_each_restart_at_its_step(written, tmp_path, monkeypatch):
    marked = []
    plot = Axes.plot

    def record(axes, x, y, *args, **options):
        if options.get("marker") == "v":
            marked.append((list(x), list(y)))
        return plot(axes, x, y, *args, **options)

    monkeypatch.setattr(Axes, "plot", record)
    folder, results = written
    restarts_picture.plot(folder / "restarts.csv", folder / "restarts.json", tmp_path / "restarts.png")
    assert (tmp_path / "restarts.png").read_bytes().startswith(b"\x89PNG")
    assert [x for x, _ in marked] == [steps for _ in results for steps in RESTARTS.values() for _ in ("above", "below")]
    rows = read_csv(folder / "restarts.csv")
    mine = [
        r for r in rows if (r["problem"], r["contender"], r["step"]) == ("regression", "restarts from the mean, 3 x 1.5", "7")
    ]
    assert marked[-4][1][1] == pytest.approx(np.median([float(row["loss"]) for row in mine]))


MADE_UP = [
    {"contender": name, "lr": 0.1, "seed": seed, "restarts": [5] * (name != "no restart")}
    | {"training_loss": t, "validation_loss": v, "mean_training_loss": mt, "mean_validation_loss": mv}
    for name, losses in {
        "no restart": [(2.0, 4.0, 1.0, 5.0), (4.0, 4.0, 3.0, 3.0), (6.0, 8.0, 7.0, 4.0)],
        "helps": [(1.0, 3.0, 1.0, 1.0), (3.0, 2.0, 1.0, 1.0), (6.0, 9.0, 1.0, 1.0)],
        "does not": [(3.0, 4.0, 1.0, 1.0), (2.0, 5.0, 1.0, 1.0), (9.0, 9.0, 1.0, 1.0)],
    }.items()
    for seed, (t, v, mt, mv) in enumerate(losses)
]
GRID = [
    {"contender": name, "lr": lr, "training_loss": loss, "validation_loss": 1.0}
    for name, losses in {"no restart": (2.0, 5.0), "helps": (2.0, 6.0), "does not": (3.0, 4.5)}.items()
    for lr, loss in zip((0.1, 0.2), losses, strict=True)
]


def test_contenders_are_compared_seed_by_seed():
    plain, helps, fails = summarize(MADE_UP)
    assert plain["validation_loss"] == {"median": 4.0, "lowest": 4.0, "highest": 8.0}
    assert plain["mean_training_loss_against_no_restart"] == {"lower": 2, "ratio": 0.75}
    assert helps["training_loss_against_no_restart"] == {"lower": 2, "ratio": 0.75}  # a tie is not lower
    assert helps["validation_loss_against_no_restart"] == {"lower": 2, "ratio": 0.75}
    assert helps["training_loss_against_mean_of_no_restart"] == {"lower": 1, "ratio": 1.0}
    assert fails["training_loss_against_no_restart"] == {"lower": 1, "ratio": 1.5}
    assert fails["seeds"] == 3


def test_sentences_name_who_is_better_in_most_seeds_and_at_which_learning_rate():
    words = sentences(summarize(MADE_UP), GRID)
    assert "lower than no restart in 2 of 3 seeds by training loss (median ratio 0.750), in 2 by validation" in words[0]
    assert words[1].startswith("helps: lower than no restart in 2 of 3 seeds")
    assert words[2].startswith("does not: lower than no restart in 1 of 3 seeds by training loss (median ratio 1.500), in 0 by")
    assert words[3] == "Lower than no restart in most seeds, by both losses: helps"
    assert words[4].endswith("by both losses: none of the restarts")
    half = sentences(summarize([end for end in MADE_UP if end["seed"] != 1]), GRID)
    assert half[1].startswith("helps: lower than no restart in 1 of 2 seeds")
    assert half[3].endswith("by both losses: none of the restarts")  # half is not most
    assert words[5].endswith("all at lr 0.1: lower training loss than no restart (2): none of the restarts")
    assert words[6].endswith("all at lr 0.2: lower training loss than no restart (5): does not (4.5)")


def test_table_has_a_line_for_each_contender_and_says_where_the_grid_ends(written):
    for result in written[1]:
        text = table(result).splitlines()
        for one in result["contenders"]:
            (line,) = [line for line in text if line.startswith(one["contender"] + "  ")]
            assert f"{one['validation_loss']['median']:.4g} (" in line
            assert line.endswith("yes")  # of two learning rates both are ends
    inner = {**written[1][0], "config": {**written[1][0]["config"], "lrs": [0.1, 1.0, 5.0, 9.0]}}
    assert all(line.endswith("no") for line in table(inner).splitlines() if line.startswith(("no restart  ", "restarts  ")))


def test_command_runs_both_problems_with_the_seed_it_is_given(problems, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(restarts, "load_text", lambda data: None)
    monkeypatch.setattr(restarts, "language_model", lambda text, seed: replace(problems[1], name="first", seed=seed))
    monkeypatch.setattr(restarts, "regression", lambda seed: replace(problems[1], name="second", seed=seed))
    assert main(["restarts", "--seed", "3", "--out", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    assert printed.index("first (") < printed.index("second (")
    assert {row["seed"] for row in read_csv(tmp_path / "new" / "restarts.csv")} == {"3", "4"}
    assert {path.suffix for path in (tmp_path / "new").iterdir()} == {".csv", ".json", ".png"}
    (tmp_path / "file").touch()
    out = ["--out", str(tmp_path / "never")]
    for options, message in (
        ([*out, "--seed", "-1"], "seed must be at least 0"),
        ([*out, "--seed", "999"], "seed must not make the seeds include 1000"),  # two seeds
        (["--out", str(tmp_path / "file")], "out must be"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["restarts", *options])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "never").exists()
