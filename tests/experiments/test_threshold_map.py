"""``python -m experiments thresholds``: what it trains, writes, draws and says."""

import json
import math
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from scipy import stats
from support.pages import ROOT, page
from torch import nn

from experiments.__main__ import main
from experiments.common.files import read_csv
from experiments.common.journal import Journal
from experiments.common.text import load_text
from experiments.thresholds import picture as thresholds_picture
from experiments.thresholds import run as thresholds
from experiments.thresholds.comparisons import compare
from experiments.thresholds.picture import is_diverged, percent, power_words
from experiments.thresholds.problems import Forecaster, Problem, language_model, sine_waves, waves
from experiments.thresholds.summary import summarize, usable_range
from experiments.thresholds.table import claims, number, table


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
        plan = thresholds.plan(seeds=3)
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
    assert cells[1e30, "none"]["diverged"] == cells[0.1, "none"]["diverged"] == 1
    assert cells[1e30, "none"]["validation_loss"] is None
    assert cells[0.01, "none"]["validation_loss"] < 0.01
    assert cells[0.1, 1.0]["validation_loss"] < 1
    assert cells[0.1, 1.0]["diverged"] == 0


def test_a_training_that_ends_above_its_first_loss_has_diverged():
    result = thresholds.train(line(steps=4), 0.03, None, 0)  # each step doubles the distance to the minimum
    assert result["validation_loss"] > 1000
    assert result["diverged"] == 1
    assert thresholds.train(line(steps=4), 0.01, None, 0)["diverged"] == 0


def test_cells_say_whether_their_steps_are_normalized(written):
    cells = {(cell["lr"], cell["level"]): cell for cell in written[1]["problems"][0]["cells"]}
    assert cells[0.01, 0.1]["clip_rate"] == 1
    assert cells[0.01, 0.1]["normalized"]
    assert cells[0.01, "none"]["clip_rate"] is None
    assert not cells[0.01, "none"]["normalized"]


@pytest.mark.parametrize(
    ("rates", "normalized", "kind"),
    [
        ((1.0, 0.98), True, "normalized"),
        ((1.0, 0.97), False, "clipped"),
        ((0.0, 0.01), False, "clipped"),
        ((0.0, 0.0), False, "never clipped"),
    ],
)
def test_kind_of_a_cell_follows_its_mean_clip_rate(rates, normalized, kind):
    ((cell,),) = [problem["cells"] for problem in summarize([MADE_UP], made_up({(0.1, 0.5): (1.0, 1.0)}, {(0.1, 0.5): rates}))]
    assert cell["clip_rate"] == pytest.approx(sum(rates) / 2)
    assert (cell["normalized"], cell["kind"]) == (normalized, kind)


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


def made_up(losses, rates=None):
    """Results with these losses and clip rates by learning rate and level; what is NaN has diverged."""
    return [
        {"problem": "p", "lr": lr, "level": level, "seed": seed, "validation_loss": loss}
        | {"diverged": int(math.isnan(loss)), "clip_rate": None if rates is None else rates[lr, level][seed]}
        for (lr, level), ends in losses.items()
        for seed, loss in enumerate(ends)
    ]


RESULTS = made_up(LOSSES)


def test_usable_learning_rates_are_those_whose_median_is_below_the_bar_of_the_row_and_of_all():
    (problem,) = summarize([MADE_UP], RESULTS)
    found = {(cell["lr"], cell["level"]): (cell["validation_loss"], cell["lowest"], cell["highest"]) for cell in problem["cells"]}
    assert found == {
        (0.1, "none"): (2.0, 1.0, 3.0),
        (1.0, "none"): (None, 1.0, None),
        (0.1, 0.5): (3.0, 1.0, 3.0),
        (1.0, 0.5): (4.0, 0.1, None),
    }
    assert problem["usable_up_to"] == 3.0  # 1.5 times the lowest median, 2
    clipped, plain = problem["rows"]
    assert (clipped["level"], clipped["best_lr"], clipped["best_loss"]) == (0.5, 0.1, 3.0)
    assert (plain["level"], plain["best_lr"], plain["best_loss"]) == ("none", 0.1, 2.0)
    assert clipped["usable_of_row"] == {"lowest": 0.1, "highest": 1.0, "factor": 10.0, "reaches_an_end": True}  # up to 4.5
    assert clipped["usable_of_all"]["factor"] == plain["usable_of_row"]["factor"] == 1
    assert (clipped["factors_by_seed"], plain["factors_by_seed"]) == ([1.0, 1.0, 1.0], [0.0, 1.0, 0.0])


def test_usable_range_ends_at_the_first_loss_above_the_bar():
    cells = [{"lr": 2.0**k, "validation_loss": loss} for k, loss in enumerate((1.0, 5.0, 2.0, 1.0, 2.0, None, 1.0))]
    assert usable_range(cells, cells[3], 2.0) == {"lowest": 4.0, "highest": 16.0, "factor": 4.0, "reaches_an_end": False}
    assert usable_range(cells, cells[3], 0.5) is None
    assert usable_range(cells, cells[0], 2.0)["reaches_an_end"]


PAIRED = {  # the first two seeds choose, the others report
    (0.1, "none"): (2.0, 2.2, 2.1, 2.3, 2.2),
    (1.0, "none"): (9.0, 9.0, 0.1, 0.1, 0.1),
    (0.1, 0.5): (1.0, 1.3, 1.0, 1.3, 1.3),
    (1.0, 0.5): (9.0, 9.0, 9.0, 9.0, 9.0),
}
RATES = {place: (0.5 if place == (0.1, 0.5) else 1.0,) * 5 for place in PAIRED}


def test_cells_are_chosen_on_the_first_half_of_the_seeds_and_compared_on_the_others_with_a_t_interval():
    (problem,) = summarize([MADE_UP], made_up(PAIRED, RATES))
    clipped, normalized = problem["comparisons"]
    assert (clipped["chosen_on"], clipped["reported_on"]) == ([0, 1], [2, 3, 4])
    assert (clipped["lr"], clipped["level"], clipped["unclipped_lr"]) == (0.1, 0.5, 0.1)
    differences = np.array([-1.1, -1.0, -0.9])
    interval = stats.t.interval(0.95, 2, differences.mean(), differences.std(ddof=1) / math.sqrt(3))
    assert (clipped["low"], clipped["high"]) == pytest.approx(interval)
    assert (clipped["loss"], clipped["unclipped_loss"]) == pytest.approx((1.2, 2.2))
    assert (clipped["kind"], clipped["words"]) == ("clipped", "better")
    assert (normalized["kind"], normalized["lr"], normalized["words"]) == ("normalized", 1.0, "worse")
    assert normalized["difference"] == pytest.approx(9 - 2.2)
    assert {kind: cell["validation_loss"] for kind, cell in problem["best"].items()} == {
        "unclipped": 0.1,  # of all seeds, for the picture
        "clipped": 1.3,
        "normalized": 9.0,
    }


@pytest.mark.parametrize(
    ("clipped", "words"),
    [
        ((2.0, 1.0, 3.0), "no difference shown"),
        ((2.0, 2.0, 2.0), "no difference shown"),
        ((1.0, math.nan, 1.0), "not known"),
        ((1.0, 1.0), "not known"),
        ((1.0,), "not known"),
    ],
)
def test_what_is_open_is_not_called_a_difference(clipped, words):
    losses = {(0.1, "none"): (2.0, 2.0, 2.0), (0.1, 0.5): clipped}
    (problem,) = summarize([MADE_UP], made_up(losses, dict.fromkeys(losses, (0.5,) * 3)))
    assert problem["comparisons"][0]["words"] == words
    assert f"clipping of less than 99 % of the steps, {words}" in claims(problem)[1]
    assert claims(problem)[0] == "Shown: nothing."


def test_comparison_uses_only_seeds_that_every_cell_has():
    results = made_up(PAIRED, RATES)[:-1]  # interrupted before the last training
    (problem,) = summarize([MADE_UP], results)
    assert [one["reported_on"] for one in problem["comparisons"]] == [[2, 3]] * 2
    assert compare("clipped", problem["cells"], [one for one in results if one["seed"] == 0])["words"] == "not known"


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
    ((cell,),) = [problem["cells"] for problem in summarize([MADE_UP], made_up({(0.1, "none"): losses}))]
    assert cell["validation_loss"] == median
    assert cell["diverged"] == sum(map(math.isnan, losses)) / len(losses)


def test_table_has_a_line_for_each_level_and_says_what_was_shown():
    lines = table({"problems": summarize([MADE_UP], made_up(PAIRED, RATES))}).splitlines()
    assert lines[0] == "points: 5 steps of SGD, loss"
    assert lines[1] == "usable: median loss at most 1.5 times the best of the row, or of all (0.15)"
    end = "at least 1x (1 to 1)"
    assert " ".join(lines[4].split()) == "0.5 0.1 (end) 1.3 at least 1x (0.1 to 0.1) none 1 of 2"
    assert " ".join(lines[5].split()) == f"none 1 (end) 0.1 {end} {end} -"
    assert lines[7].startswith(
        "Shown: clipping of less than 99 % of the steps, better: lr 0.1, level 0.5, 1.2, against lr 0.1, 2.2; "
        "difference -1, 95 % interval -1.2 to -0.75; normalized steps, worse: lr 1, level 0.5, 9, against lr 0.1, 2.2;"
    )
    assert lines[8] == "Not shown: anything about other schedules, more steps or larger models."
    assert lines[9] == "Usable of all: not known, or none with clipping."
    assert lines[10].startswith("Baseline: the same SGD unclipped at the best of 2 learning rates, seed by seed.")
    assert lines[10].endswith("All were chosen on 2 seeds and are reported on 3 others.")
    assert len(lines) == 11


def test_table_says_with_how_many_seeds_clipping_makes_more_learning_rates_usable():
    wide = {(lr, level): (2.0 if level == "none" else 1.0,) * 3 for lr, level in LOSSES}
    wide[0.1, 0.5] = wide[1.0, "none"] = (1.0, 1.0, 3.0)
    words = claims(summarize([MADE_UP], made_up(wide, dict.fromkeys(wide, (0.5,) * 3)))[0])[2]
    assert words == (
        "Usable of all: at least 1x (1 to 1) unclipped, at least 10x (0.1 to 1) at level 0.5, the widest (chosen on the same "
        "seeds); there wider than unclipped with 3 of 3 seeds."
    )


def test_table_does_without_unclipped_trainings_and_without_any_that_is_finite():
    clipped = [result for result in RESULTS if result["level"] != "none"]
    assert "Usable of all: not known" in table({"problems": summarize([MADE_UP], clipped)})
    lost = summarize([MADE_UP], made_up(dict.fromkeys(LOSSES, (math.nan,) * 3)))
    assert "or of all (-)" in table({"problems": lost})


def test_picture_writes_clip_rates_hatches_the_normalized_and_frames_the_best(written, tmp_path, monkeypatch):
    texts, patches = [], []
    text, add_patch = Axes.text, Axes.add_patch
    monkeypatch.setattr(Axes, "text", lambda axes, x, y, words, **k: texts.append((x, y, words)) or text(axes, x, y, words, **k))
    monkeypatch.setattr(Axes, "add_patch", lambda axes, patch: patches.append(patch) or add_patch(axes, patch))
    thresholds_picture.plot(written[0] / "thresholds.json", tmp_path / "thresholds.png")
    assert (tmp_path / "thresholds.png").read_bytes().startswith(b"\x89PNG")
    problems = written[1]["problems"]
    cells = [(problem, cell) for problem in problems for cell in problem["cells"]]
    wanted = [
        (
            problem["lrs"].index(cell["lr"]),
            [*problem["levels"], "none"].index(cell["level"]),
            is_diverged(cell),
            cell["clip_rate"],
        )
        for problem, cell in cells
    ]
    assert texts == [
        (x, y, "\n".join(["\N{MULTIPLICATION SIGN}"] * lost + ([] if rate is None else [percent(rate)])))
        for x, y, lost, rate in wanted
    ]
    hatched = [patch for patch in patches if patch.get_hatch() is not None]
    assert len(hatched) == sum(cell["normalized"] for _, cell in cells) > 0
    framed = [patch for patch in patches if patch.get_linewidth() > 2]
    assert len(framed) == sum(best is not None for problem in problems for best in problem["best"].values()) > 0
    grey = [patch for patch in patches if same_color(patch.get_facecolor(), thresholds_picture.PALE)]
    assert len(grey) == sum(is_diverged(cell) for _, cell in cells) > 0


def test_numbers_of_the_picture_are_short_and_not_rounded_up():
    assert [percent(rate) for rate in (0.0, 0.004, 0.29, 0.989, 0.99, 1.0)] == ["0", "<1", "29", "98", "99", "100"]
    assert [power_words(lr) for lr in (0.03125, 0.5, 0.3, 1.0, 128.0)] == ["1/32", "1/2", "0.3", "1", "128"]


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
    for problem in (sine, model):
        assert {high / low for low, high in pairwise(problem.lrs)} == {2.0}
        assert all(2.9 < high / low < 3.5 for low, high in pairwise(problem.levels))


def test_command_resumes_what_was_interrupted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(thresholds, "sine_waves", line)
    monkeypatch.setattr(thresholds, "load_text", lambda data: None)
    monkeypatch.setattr(thresholds, "language_model", lambda text: line("curve"))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["thresholds", "--quick", "--out", str(whole)]) == 0
    content = json.loads((whole / "thresholds.json").read_text())
    assert [(p["steps"], p["lrs"], p["levels"]) for p in content["problems"]] == [(15, [0.01, 1e30], [0.1])] * 2
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
    assert "usable of all" in capsys.readouterr().out


@pytest.fixture(scope="module")
def committed():
    """The problems of the committed map."""
    return json.loads((ROOT / "figures" / "thresholds.json").read_text())["problems"]


def test_committed_map_has_the_unclipped_optimum_inside_and_a_level_where_nothing_clips(committed):
    for problem in committed:
        *_, highest, plain = problem["rows"]
        assert plain["level"] == "none"
        assert plain["best_at_an_end"] is False
        cells = {(cell["lr"], cell["level"]): cell for cell in problem["cells"]}
        trains = [lr for lr in problem["lrs"] if cells[lr, "none"]["diverged"] == 0]
        assert plain["best_lr"] in trains
        assert [lr for lr in trains if cells[lr, highest["level"]]["clip_rate"] > 0] == []


def test_committed_comparisons_are_those_of_the_committed_csv(committed):
    """Six digits of the csv are enough for the same choices and intervals."""
    rows = read_csv(ROOT / "figures" / "thresholds.csv")
    results = [
        {"problem": row["problem"], "lr": float(row["lr"]), "seed": int(row["seed"]), "diverged": int(row["diverged"])}
        | {"level": "none" if row["level"] == "none" else float(row["level"]), "validation_loss": float(row["validation_loss"])}
        | {"clip_rate": float(row["clip_rate"]) if row["clip_rate"] else None}
        for row in rows
    ]
    for problem, again in zip(committed, summarize(committed, results), strict=True):
        for one, other in zip(problem["comparisons"], again["comparisons"], strict=True):
            assert other["difference"] == pytest.approx(one["difference"], rel=1e-3)
            assert [other[name] for name in ("words", "lr", "level")] == [one[name] for name in ("words", "lr", "level")]


def test_numbers_of_the_guide_are_those_of_the_committed_map(committed):
    """Every number of the paragraph, and what it calls shown."""
    sine, model = committed
    (paragraph,) = re.findall(r"^`python -m experiments thresholds`.*?\n\n", page("docs/results.md"), re.M | re.S)
    words = " ".join(paragraph.split())
    (clipped, normalized), (weak, strong) = model["comparisons"], sine["comparisons"]
    assert [one["words"] for one in (clipped, normalized, weak, strong)] == ["better"] * 2 + ["no difference shown"] * 2
    rates = {(cell["lr"], cell["level"]): cell["clip_rate"] for cell in model["cells"]}
    intervals = [f"{one['low']:+.2g} to {one['high']:+.2g}" for one in (clipped, normalized, weak, strong)]
    widest = max(model["rows"], key=lambda row: row["usable_of_all"]["factor"])
    plain = model["rows"][-1]
    low, high = widest["usable_of_all"]["lowest"], widest["usable_of_all"]["highest"]
    assert plain["usable_of_all"]["factor"] == 1
    narrower = sum(one < other for one, other in zip(plain["factors_by_seed"], widest["factors_by_seed"], strict=True))
    cells = [sum(one["candidates"] for one in problem["comparisons"]) for problem in (model, sine)]
    sentences = [
        "learning rates by factors of 2. Where 99 % of the steps",
        f"Language model, {model['steps']} steps: both kinds are better than no clipping.",
        f"({percent(rates[clipped['lr'], clipped['level']])} % of the steps) it ends at {number(clipped['loss'])} nats a "
        f"character, normalized at {number(normalized['loss'])}, unclipped at {number(clipped['unclipped_loss'])}; the "
        f"differences are {clipped['difference']:+.2g} (95 % interval {intervals[0]}) and "
        f"{normalized['difference']:+.2g} ({intervals[1]}).",
        f"Learning rates from {low:g} to {high:g} are within {model['bar']} times of the best loss at level {widest['level']:g}, "
        f"a factor of {high / low:g}; unclipped only {plain['best_lr']:g} is, and the range is narrower with {narrower} of "
        f"{len(plain['factors_by_seed'])} seeds.",
        f"Sine waves, {sine['steps']} steps: no difference shown; {number(weak['loss'])} clipped at times and "
        f"{number(strong['loss'])} normalized against {number(weak['unclipped_loss'])} unclipped, "
        f"intervals of the differences {intervals[2]} and {intervals[3]}.",
        f"at the best of its {clipped['unclipped_candidates']} and {weak['unclipped_candidates']} learning rates; clipping had "
        f"{cells[0]} and {cells[1]} cells to choose from.",
        f"Choices were made on {len(weak['chosen_on'])} seeds and are reported on {len(weak['reported_on'])} others.",
    ]
    assert [sentence for sentence in sentences if sentence not in words] == []
    assert re.findall(r"\d[\d.]*", words) == re.findall(r"\d[\d.]*", " ".join(sentences))
