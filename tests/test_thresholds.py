"""``python -m experiments thresholds``: what it trains, writes, draws and says."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from torch import nn

from experiments.__main__ import main
from experiments.common.files import read_csv
from experiments.common.journal import Journal
from experiments.common.text import load_text
from experiments.thresholds import picture as thresholds_picture
from experiments.thresholds import run as thresholds
from experiments.thresholds.picture import words_of
from experiments.thresholds.problems import Forecaster, Problem, language_model, sine_waves, waves
from experiments.thresholds.summary import summarize, table


class Line(nn.Module):
    """A weight that predicts weight * x."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(()) + 1)

    def forward(self, x):
        return self.weight * x


def line(name="line", **changes):
    """The loss of weight w is 50 w², up to small things: plain SGD diverges from learning rate 0.02 on."""

    def draw(generator):
        return 10 + 0.1 * torch.rand(8, generator=generator), torch.full((8,), 0.1)

    problem = Problem(
        name=name,
        data=f"a {name}",
        loss_name="half squared error",
        model=Line,
        draw=draw,
        loss=lambda model, batch: 0.5 * (model(batch[0]) - batch[1]).square().mean(),
        validation=[(torch.full((4,), 10.0), torch.tensor([0.0, 0.1, 0.1, 0.2]))],
        lrs=(0.01, 0.1, 1e30),
        levels=(0.1, 1.0),
        steps=60,
        bar=1.1,
        momentum=0.0,
    )
    return replace(problem, **changes)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thresholds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thresholds, "sine_waves", line)
        patch.setattr(thresholds, "load_text", lambda data: None)
        patch.setattr(thresholds, "language_model", lambda text: line("curve", steps=90))
        plan = thresholds.plan()
    plan.train(journal := Journal(folder / "journal", {}, resume=False))
    journal.remove()
    plan.write(list(journal.results.values()), folder)
    return folder, json.loads((folder / "thresholds.json").read_text(), parse_constant=pytest.fail)


def test_every_training_of_the_grid_has_a_row(written):
    rows = read_csv(written[0] / "thresholds.csv")
    assert [(r["seed"], r["problem"], r["lr"], r["level"]) for r in rows] == [
        (seed, name, lr, level)
        for seed in "012"
        for name in ("line", "curve")
        for lr in ("0.01", "0.1", "1e+30")
        for level in ("none", "0.1", "1")
    ]
    assert all((row["clip_rate"] == "") == (row["level"] == "none") for row in rows)
    assert {path.suffix for path in written[0].iterdir()} == {".csv", ".json", ".png"}


def test_config_and_cells_are_written(written):
    content = written[1]
    assert [(p["name"], p["steps"], p["lrs"]) for p in content["problems"]] == [
        ("line", 60, [0.01, 0.1, 1e30]),
        ("curve", 90, [0.01, 0.1, 1e30]),
    ]
    assert content["config"]["seeds"] == 3
    rows = read_csv(written[0] / "thresholds.csv")
    for problem in content["problems"]:
        assert len(problem["cells"]) == 9
        for cell in problem["cells"]:
            mine = [
                float(row["validation_loss"])
                for row in rows
                if (row["problem"], float(row["lr"]), row["level"])
                == (problem["name"], cell["lr"], "none" if cell["level"] == "none" else f"{cell['level']:g}")
            ]
            if cell["validation_loss"] is None:
                assert sum(map(math.isnan, mine)) >= 2
            else:
                assert cell["validation_loss"] == pytest.approx(np.median(mine), rel=1e-5)


def test_diverged_trainings_are_marked_and_clipping_saves_them(written):
    cells = {(cell["lr"], cell["level"]): cell for cell in written[1]["problems"][0]["cells"]}
    assert cells[1e30, "none"]["diverged"] == 3
    assert cells[1e30, "none"]["validation_loss"] is None
    assert cells[0.01, "none"]["validation_loss"] < 0.01
    assert cells[0.1, "none"]["diverged"] == 3
    assert cells[0.1, 1.0]["validation_loss"] < 1
    assert cells[0.01, 0.1]["clip_rate"] == 1


def test_start_and_batches_of_a_seed_are_the_same_for_all_cells():
    results = [thresholds.train(line(steps=1), lr, level, 5) for lr in (0.01, 0.1) for level in (None, 1.0)]
    assert len({result["training_loss"] for result in results}) == 1
    assert thresholds.train(line(steps=1), 0.01, None, 6)["training_loss"] != results[0]["training_loss"]
    state = torch.get_rng_state()
    thresholds.train(line(steps=1), 0.01, None, 5)
    assert torch.equal(torch.get_rng_state(), state)


MADE_UP = {"name": "p", "data": "points", "loss_name": "loss", "lrs": (0.1, 1.0), "levels": (0.5,), "steps": 5, "bar": 1.5}
LOSSES = {
    (0.1, "none"): (1.0, 2.0, 3.0),
    (1.0, "none"): (1.0, math.nan, math.nan),
    (0.1, 0.5): (3.0, 3.0, 1.0),
    (1.0, 0.5): (0.1, 4.0, math.nan),
}
RESULTS = [
    {"problem": "p", "lr": lr, "level": level, "seed": seed, "validation_loss": loss, "clip_rate": None}
    for (lr, level), losses in LOSSES.items()
    for seed, loss in enumerate(losses)
]


def test_usable_learning_rates_are_those_below_the_bar_in_the_median():
    (problem,) = summarize([MADE_UP], RESULTS)
    assert problem["best_unclipped"]["lr"] == 0.1
    assert problem["usable_up_to"] == 3.0  # 1.5 times the median, 2
    found = {(cell["lr"], cell["level"]): cell["validation_loss"] for cell in problem["cells"]}
    assert found == {(0.1, "none"): 2.0, (1.0, "none"): None, (0.1, 0.5): 3.0, (1.0, 0.5): 4.0}
    assert [(one["level"], one["usable_lrs"]) for one in problem["usable"]] == [(0.5, [0.1]), ("none", [0.1])]
    assert [(one["best_lr"], one["best_loss"]) for one in problem["usable"]] == [(0.1, 3.0), (0.1, 2.0)]


@pytest.mark.parametrize(
    ("losses", "median"),
    [
        ((1.0, 2.0), 1.5),
        ((1.0, 2.0, 4.0, 8.0), 3.0),
        ((1.0, math.nan), None),
        ((1.0, 2.0, 3.0, math.nan), 2.5),
        ((math.nan,) * 2, None),
    ],
)
def test_median_of_an_even_number_of_seeds_is_the_mean_of_the_middle_two(losses, median):
    results = [
        {"problem": "p", "lr": 0.1, "level": "none", "seed": seed, "validation_loss": loss, "clip_rate": None}
        for seed, loss in enumerate(losses)
    ]
    ((cell,),) = [problem["cells"] for problem in summarize([MADE_UP], results)]
    assert cell["validation_loss"] == median
    assert cell["diverged"] == sum(map(math.isnan, losses))


def test_nothing_is_usable_where_nothing_is_known_without_clipping():
    (problem,) = summarize([MADE_UP], [result for result in RESULTS if result["level"] != "none"])
    assert problem["usable_up_to"] is None
    assert [one["usable_lrs"] for one in problem["usable"]] == [[], []]
    assert "usable: at most unknown" in table({"problems": [problem]})


def test_table_has_a_line_for_each_level():
    lines = table({"problems": summarize([MADE_UP], RESULTS)}).splitlines()
    assert lines[0] == "points: 5 steps of SGD, loss; usable: at most 3, 1.5 times the lowest without clipping"
    assert lines[3].split() == ["0.5", "3", "0.1", "0.1"]
    assert lines[4].split() == ["none", "2", "0.1", "0.1"]


def test_picture_writes_the_losses_frames_the_usable_and_hatches_the_diverged(written, tmp_path, monkeypatch):
    texts, patches = [], []
    text, add_patch = Axes.text, Axes.add_patch
    monkeypatch.setattr(Axes, "text", lambda axes, x, y, words, **k: texts.append((x, y, words)) or text(axes, x, y, words, **k))
    monkeypatch.setattr(Axes, "add_patch", lambda axes, patch: patches.append(patch) or add_patch(axes, patch))
    thresholds_picture.plot(written[0] / "thresholds.json", tmp_path / "thresholds.png")
    assert (tmp_path / "thresholds.png").read_bytes().startswith(b"\x89PNG")
    problems = written[1]["problems"]
    known = [
        (problem["lrs"].index(cell["lr"]), [*problem["levels"], "none"].index(cell["level"]), cell["validation_loss"])
        for problem in problems
        for cell in problem["cells"]
        if cell["validation_loss"] is not None
    ]
    assert [(y, x, words) for x, y, words in texts] == [(row, column, words_of(loss)) for row, column, loss in known]
    framed = [patch for patch in patches if not patch.get_fill()]
    assert len(framed) == sum(len(one["usable_lrs"]) for problem in problems for one in problem["usable"]) > 0
    assert sum(patch.get_hatch() is not None for patch in patches) == 18 - len(known) > 0


def test_losses_are_written_with_three_digits_in_little_space():
    assert [words_of(loss) for loss in (0.00145, 1.937, 45.4, 21234.0)] == [
        "0.00145",
        "1.94",
        "45.4",
        "2.12e4",
    ]


def test_waves_are_sines_of_the_stated_sizes_and_their_next_value():
    values, following = waves(500, torch.Generator().manual_seed(0))
    assert values.shape == (500, 100)
    assert following.shape == (500,)
    whole = torch.cat([values, following[:, None]], dim=1).double()
    # of a sine: x[t - 1] + x[t + 1] = 2 cos(2 pi / period) x[t]
    inner, sums = whole[:, 1:-1], whole[:, :-2] + whole[:, 2:]
    cosine = (inner * sums).sum(1) / inner.square().sum(1) / 2
    torch.testing.assert_close(sums, 2 * cosine[:, None] * inner, rtol=0, atol=1e-4)
    periods = 2 * math.pi / cosine.arccos()
    assert 9.9 < periods.min() < 11 < 48 < periods.max() < 51
    assert 0.45 < whole.abs().max(1).values.min() < 0.55
    assert 1.45 < whole.abs().max() <= 1.5


def test_default_problems_are_a_forecaster_of_fifty_units_and_the_language_model():
    sine, model = sine_waves(), language_model(load_text(None))
    network = sine.model()
    assert isinstance(network, Forecaster)
    assert network.lstm.hidden_size == 50
    batch = sine.draw(torch.Generator())
    assert network(batch[0]).shape == batch[1].shape == (32,)
    assert sine.loss(network, batch) > 0
    assert model.loss(model.model(), model.draw(torch.Generator())).item() == pytest.approx(math.log(97), abs=0.3)
    assert len(set(sine.lrs)) * len(set(model.lrs)) == 36


def test_command_resumes_what_was_interrupted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(thresholds, "sine_waves", line)
    monkeypatch.setattr(thresholds, "load_text", lambda data: None)
    monkeypatch.setattr(thresholds, "language_model", lambda text: line("curve"))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["thresholds", "--quick", "--out", str(whole)]) == 0
    content = json.loads((whole / "thresholds.json").read_text())
    assert [(p["steps"], p["lrs"], p["levels"]) for p in content["problems"]] == [(20, [0.01, 1e30], [0.1])] * 2
    train, calls = thresholds.train, []

    def pressed(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(thresholds, "train", pressed)
    assert main(["thresholds", "--quick", "--out", str(parts)]) == 130
    assert json.loads((parts / "thresholds.partial.json").read_text())["interrupted"]
    assert main(["thresholds", "--quick", "--out", str(parts), "--resume"]) == 0
    assert len(calls) == 3 + 6
    assert (parts / "thresholds.json").read_text() == (whole / "thresholds.json").read_text()
    assert "usable learning rates" in capsys.readouterr().out
