"""``python -m experiments compare``: its runner, on a task that takes no time."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from torch.nn.functional import mse_loss
from tqdm import tqdm

from experiments.__main__ import main
from experiments.common.files import read_csv
from experiments.compare import run as compare
from experiments.compare.methods import CLIPPINGS, Method
from experiments.compare.summary import difference, usable
from experiments.compare.table import claims, table
from experiments.compare.training import BLOCKS, Training
from experiments.compare.tuning import MOST_LRS, TUNING_SEEDS, Outcome, outcomes, tune
from torch_clipped.clipping import CLIPPING_TYPES

STEPS, SEEDS = 12, 3
GRIDS = {"SGD": (0.05, 0.1, 0.2, 1e25), "Adam": (1e-4, 1e-3, 1e-2, 0.1)}


class Line:
    """Four weights and dropout; the metric is the negative loss."""

    name, metric, batch, steps, source = "image", "negative loss", 8, STEPS, "a line"

    trivial = ("nought", -15.0)
    decays = False

    def __init__(self, grids=GRIDS):
        self.learning_rates = grids
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(64, 4, generator=generator)
        self.outputs = self.inputs @ torch.tensor([[1.0], [-2.0], [3.0], [0.5]]) + torch.randn(64, 1, generator=generator)
        self.models = 0
        self.interrupted_at = math.inf  # the call of ``loss``
        self.losses = 0

    def make_model(self, seed):
        self.models += 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(4, 1))

    def batches(self, seed):
        generator = torch.Generator().manual_seed(seed)
        while True:
            some = torch.randint(32, (self.batch,), generator=generator)
            yield self.inputs[some], self.outputs[some]

    def loss(self, model, batch):
        self.losses += 1
        if self.losses == self.interrupted_at:
            raise KeyboardInterrupt
        return mse_loss(model(batch[0]), batch[1])

    def evaluate(self, model, part):
        some = {"train": slice(32), "validation": slice(32, 48), "test": slice(48, 64)}[part]
        model.eval()
        with torch.no_grad():
            error = (model(self.inputs[some]) - self.outputs[some]).square().mean()
        model.train()
        return -float(error)


@pytest.fixture
def line(monkeypatch):
    """The task that the command finds."""
    task = Line()
    monkeypatch.setattr(compare, "load", lambda *arguments: task)
    return task


@pytest.fixture
def without_picture(monkeypatch):
    """Drawing two takes longer than all the trainings."""
    for name in ("plot", "plot_details"):
        monkeypatch.setattr(compare, name, lambda *arguments: arguments[-1].touch())


def command(folder, *options):
    return main(["compare", "--task", "image", "--out", str(folder), "--quick", "--seeds", str(SEEDS), *options])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder, the summary and the rows of an unbroken run."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "load", lambda *arguments: Line())
        assert command(folder) == 0
    return folder, json.loads((folder / "compare_image.json").read_text()), read_csv(folder / "compare_image.csv")


def of(summary, label):
    (one,) = [one for one in summary["methods"] if one["method"] == label]
    return one


def test_files_are_written_and_the_journal_is_gone(written):
    folder, summary, _ = written
    names = {*(f"compare_image.{kind}" for kind in ("csv", "json", "png")), "compare_image_details.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in names if name.endswith("png"))
    assert summary["settings"]["tuning_seeds"] == list(TUNING_SEEDS)
    assert summary["settings"]["seeds"] == [0, 1, 2]
    assert list(summary["settings"]["clippings"]) == list(compare.FEW)
    assert summary["trivial"] == {"method": "nought", "test": -15.0}
    assert {"torch", "python"} < set(summary["versions"])
    assert summary["machine"]["cpu"]


def test_every_clipping_is_compared_with_sgd_and_the_best_with_adam(written):
    _, summary, table_rows = written
    labels = [one["method"] for one in summary["methods"]]
    assert labels[:-1] == ["SGD", "Adam", *(f"SGD {name}" for name in compare.FEW)]
    best = max(summary["methods"][2:-1], key=lambda one: one["tuning_score"])
    assert labels[-1] == best["method"].replace("SGD", "Adam")
    for one in summary["methods"]:
        assert one["baseline"] == (one["method"].split()[0] if " " in one["method"] else None)
        for seed in "012":
            mine = [row for row in table_rows if (row["method"], row["seed"]) == (one["method"], seed)]
            assert [int(row["step"]) for row in mine] == [*range(STEPS + 1)]
            assert [int(row["step"]) for row in mine if row["validation_metric"]] == [0, STEPS // 2, STEPS]


def test_start_and_order_of_batches_are_the_same_for_all_methods(written):
    for step, column in (("0", "validation_metric"), ("1", "loss"), ("1", "gradient_norm")):
        found = {}
        for row in written[2]:
            if row["step"] == step:
                found.setdefault(row["seed"], set()).add(row[column])
        assert [len(values) for values in found.values()] == [1] * SEEDS
        assert len(set.union(*found.values())) == SEEDS


def test_tuning_takes_what_is_best_when_tried_by_hand(written):
    task, found = Line(), {}
    one = of(written[1], "SGD")
    for lr in {candidate["lr"] for candidate in one["candidates"]}:
        torch.manual_seed(TUNING_SEEDS[0])
        model, batches = task.make_model(TUNING_SEEDS[0]), task.batches(TUNING_SEEDS[0])
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        for _ in range(STEPS):
            optimizer.zero_grad()
            task.loss(model, next(batches)).backward()
            optimizer.step()
        found[lr] = task.evaluate(model, "validation")
    sound = {row["lr"]: row["validation"] for row in one["candidates"] if not row["diverged"]}
    assert sound == {lr: pytest.approx(found[lr]) for lr in sound}
    assert 1e25 not in sound  # where a loss overflows
    assert one["lr"] in (0.05, 0.1, 0.2)
    assert {row["seed"] for row in one["finalists"]} == set(TUNING_SEEDS[1:])


def test_results_are_those_of_other_seeds_on_test_data(written):
    for one in written[1]["methods"]:
        ends = [float(row["validation_metric"]) for row in written[2] if (row["method"], row["step"]) == (one["method"], "12")]
        assert one["validation"]["by_seed"] == pytest.approx(ends, rel=1e-4)
        assert one["test"]["mean"] == pytest.approx(sum(one["test"]["by_seed"]) / SEEDS)
        assert one["test"]["by_seed"] != one["validation"]["by_seed"]
        if one["baseline"]:
            plain = of(written[1], one["baseline"])["test"]["by_seed"]
            apart = [mine - theirs for mine, theirs in zip(one["test"]["by_seed"], plain, strict=True)]
            assert one["difference"]["mean"] == pytest.approx(sum(apart) / SEEDS)


# The search


def scored(score):
    """Make trainings whose metric is a function of learning rate, level and seed; NaN for one that diverged."""
    asked = []

    def trained(method, lr, level, seed):
        asked.append((lr, level, seed))
        value = score(lr, level, seed)
        made = Training(method=method.label, lr=lr, level=level, seed=seed, validation=value, test=value, diverged=value != value)
        made.suggested_level, made.training_loss = 2.0, 1.0
        return made

    return trained, asked


def test_grid_is_widened_while_an_end_wins():
    trained, asked = scored(lambda lr, level, seed: -abs(math.log2(lr / 32)))
    outcome = tune(Method("SGD"), (1, 2, 4), (None,), trained)
    assert (outcome.lr, outcome.level) == (32, None)
    assert {lr for lr, _, seed in asked if seed == TUNING_SEEDS[0]} == {1, 2, 4, 8, 16, 32, 64}
    trained, asked = scored(lambda lr, level, seed: -lr)
    assert tune(Method("SGD"), (1, 2, 4), (None,), trained).lr == 2.0 ** (3 - MOST_LRS)
    assert len({lr for lr, *_ in asked}) == MOST_LRS


def test_best_third_is_tried_with_all_tuning_seeds():
    # With the first seed alone (8, 3) wins; over the seeds it is (4, 1).
    score = {(4, 1): (9, 9, 9), (8, 3): (10, 1, 1), (4, 3): (5, 9, 9), (8, 1): (8, 2, 2)}
    trained, asked = scored(lambda lr, level, seed: score.get((lr, level), (0, 0, 0))[TUNING_SEEDS.index(seed)])
    outcome = tune(Method("SGD", "norm"), (2, 4, 8, 16), (1, 3, 9), trained)
    assert (outcome.lr, outcome.level, outcome.tuning_score) == (4, 1, 9)
    assert len([one for one in asked if one[2] == TUNING_SEEDS[0]]) == 12
    assert {one[:2] for one in asked if one[2] != TUNING_SEEDS[0]} == set(score)
    assert (len(outcome.candidates), len(outcome.finalists)) == (12, 8)


def test_grid_is_widened_while_an_end_wins_over_the_seeds():
    # The first seed likes 4 best, the others 1/2.
    trained, asked = scored(lambda lr, level, seed: -abs(math.log2(lr / (4 if seed == TUNING_SEEDS[0] else 0.5))))
    outcome = tune(Method("SGD"), (1, 2, 4, 8), (None,), trained)
    assert sorted({lr for lr, *_ in asked}) == [1, 2, 4, 8]  # of the best third, 4 and 2, none is an end
    assert outcome.lr == 2
    trained, asked = scored(lambda lr, level, seed: -abs(math.log2(lr / (1.9 if seed == TUNING_SEEDS[0] else 0.25))))
    outcome = tune(Method("SGD"), (1, 2, 4), (None,), trained)
    assert (outcome.lr, outcome.tuning_score) == (2, pytest.approx((-math.log2(2 / 1.9) - 6) / 3))
    trained, asked = scored(lambda lr, level, seed: -abs(math.log2(lr / (1.9 if seed == TUNING_SEEDS[0] else 0.25))))
    outcome = tune(Method("SGD"), (1, 2, 4, 8), (None,), trained)
    assert outcome.lr == 0.25
    assert {lr for lr, *_ in asked} == {0.125, 0.25, 0.5, 1, 2, 4, 8}


def test_diverged_trainings_lose_and_where_all_do_the_grid_stays():
    trained, _ = scored(lambda lr, level, seed: math.nan if lr > 2 else lr)
    assert tune(Method("SGD"), (1, 2, 4, 8), (None,), trained).lr == 2
    trained, asked = scored(lambda lr, level, seed: math.nan)
    tune(Method("SGD"), (1, 2, 4), (None,), trained)
    assert {lr for lr, *_ in asked} == {1, 2, 4}


def test_levels_are_the_default_and_a_factor_of_3_on_both_sides():
    assert Method("SGD").levels(7.0) == (None,)
    assert Method("SGD", "norm").levels(6.0) == (2.0, 6.0, 18.0)
    assert Method("SGD", "layer_wise").levels(10.0) == (1.0, 3.0, 9.0)
    assert Method("SGD", "auto").levels(6.0) == (0.25, 0.75, 0.9167)
    assert Method("SGD", "adagc").levels(6.0) == (1.013, 1.04, 1.12)
    assert Method("SGD", "skip").levels(6.0) == (2.0, 6.0, 18.0)
    assert all(Method("SGD", name).make([torch.nn.Parameter(torch.zeros(2))], 0.1, 0.5) for name in CLIPPINGS)
    assert {arguments["clipping_type"] for arguments in CLIPPINGS.values()} <= set(CLIPPING_TYPES)


def test_levels_that_are_lengths_are_scaled_by_the_gradients_without_clipping():
    trained, _ = scored(lambda lr, level, seed: -abs(lr - 2))
    found = outcomes(["norm", "auto", "skip"], {"SGD": (1, 2, 4), "Adam": (1, 2, 4)}, [0, 1], trained)
    assert [outcome.method.label for outcome in found[:5]] == ["SGD", "Adam", "SGD norm", "SGD auto", "SGD skip"]
    assert len(found) == 6
    assert {one.level for one in found[2].candidates} == {0.6667, 2.0, 6.0}
    assert all([one.seed for one in outcome.results] == [0, 1] for outcome in found)


# What is said of the results


def results(values):
    return [
        Training(method="SGD", lr=1, level=None, seed=seed, test=value, diverged=value != value)
        for seed, value in enumerate(values)
    ]


def test_difference_is_paired_and_has_a_t_interval():
    apart = difference(results([0.6, 0.8, 0.7]), results([0.5, 0.6, 0.4]))
    assert apart["mean"] == pytest.approx(0.2)
    assert (apart["low"], apart["high"]) == pytest.approx((0.2 - 4.3027 * 0.1 / 3**0.5, 0.2 + 4.3027 * 0.1 / 3**0.5), rel=1e-4)
    assert apart["words"] == "no difference shown"
    assert difference(results([0.6, 0.71, 0.5]), results([0.5, 0.6, 0.4]))["words"] == "better"
    assert difference(results([0.5, 0.6, 0.4]), results([0.6, 0.71, 0.5]))["words"] == "worse"
    half_lost = difference(results([0.6, 0.71, math.nan]), results([0.5, 0.6, 0.4]))
    assert (half_lost["pairs"], half_lost["words"]) == (2, "diverged")
    assert difference(results([0.6, 0.71, 0.5, math.nan]), results([0.5, 0.6, 0.4, math.nan]))["words"] == "better"
    few = difference(results([0.5, math.nan]), results([0.6, 0.7]))
    assert (few["pairs"], few["words"]) == (1, "too few pairs")


def test_usable_learning_rates_are_those_around_the_best_that_are_nearly_as_good():
    trained, _ = scored(lambda lr, level, seed: {1: 0.5, 2: 0.95, 4: 1.0, 8: 0.93, 16: 0.2, 32: 0.99}[lr])
    outcome = Outcome(Method("SGD"), [trained(Method("SGD"), lr, None, 0) for lr in (1, 2, 4, 8, 16, 32)], [], 4, None, 1.0)
    assert usable(outcome, 0.0) == {"lowest": 2, "highest": 8, "reaches_an_end": False}
    assert usable(outcome, -100.0) == {"lowest": 1, "highest": 32, "reaches_an_end": True}


def test_table_is_sorted_and_says_what_was_shown_and_what_was_not(written):
    lines = table(written[1]).splitlines()
    labels = [one["method"] for one in written[1]["methods"]]
    ordered = sorted(labels, key=lambda label: of(written[1], label)["test"]["mean"], reverse=True)
    assert [line.partition("  ")[0] for line in lines[3 : 3 + len(labels)]] == ordered
    assert lines[3 + len(labels)].split()[:4] == ["nought", "-", "-", "-15.0000"]
    made = {
        "methods": [
            {"method": name, "difference": {"words": words}}
            for name, words in (("a", "better"), ("b", "no difference shown"), ("c", "diverged"))
        ]
    }
    assert claims(made) == [
        "Better than without clipping: a.",
        "Diverged with more seeds than without clipping: c.",
        "No difference shown for 1 of 3 clipped methods; by chance alone, 0.2 of 3 intervals would exclude 0.",
    ]


# Interruptions and divergence


def test_resumed_run_is_bit_for_bit_the_unbroken_one(written, line, without_picture, tmp_path, capsys):
    line.interrupted_at = 400
    assert command(tmp_path) == 130
    finished = line.models - 1
    path = tmp_path / "compare_image.partial.jsonl"
    assert list(tmp_path.iterdir()) == [path]
    words = f"{finished} finished trainings are kept in {path}: to continue, run the same command with --resume --out {tmp_path}"
    assert words in capsys.readouterr().err
    for option, value, message in (
        ("--steps", "7", "steps was 12 and is 7"),
        ("--seeds", "4", "seeds was [0, 1, 2] and is [0, 1, 2, 3]"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command(tmp_path, "--resume", option, value)
        assert message in capsys.readouterr().err
    line.interrupted_at, line.models = math.inf, 0
    torch.rand(3)  # the state of torch's global generator is no part of it
    assert command(tmp_path, "--resume") == 0
    for name in ("compare_image.csv", "compare_image.json"):
        assert (tmp_path / name).read_bytes() == (written[0] / name).read_bytes()
    assert not path.exists()
    asked = sum(len(one["candidates"]) + len(one["finalists"]) + SEEDS for one in written[1]["methods"])
    assert line.models == asked - finished


def test_data_have_files_of_their_own(line, without_picture, tmp_path):
    assert command(tmp_path, "--data", str(tmp_path / "squares")) == 0
    assert (tmp_path / "compare_image_squares.json").exists()


def test_picture_and_summary_are_written_where_everything_diverges(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compare, "load", lambda *arguments: Line({"SGD": (1e28, 1e30), "Adam": (1e28, 1e30)}))
    assert command(tmp_path, "--seeds", "1") == 0
    summary = json.loads((tmp_path / "compare_image.json").read_text(), parse_constant=pytest.fail)
    assert of(summary, "SGD")["diverged"] == 1
    assert of(summary, "SGD")["test"]["mean"] is None
    assert "-, 1 diverged" in capsys.readouterr().out


def test_weights_that_are_not_finite_after_the_last_step_are_a_divergence():
    training = compare.train(Line(), Method("SGD"), 3e38, None, 0, 1, "cpu", tqdm(disable=True), points=1, tested=True)
    assert training.diverged
    assert math.isnan(training.validation)
    assert json.loads(json.dumps(asdict(training)))["points"] == [[0, training.points[0][1]]]


@pytest.mark.parametrize("decays", [False, True])
def test_learning_rate_decays_to_0_where_the_task_says_so(decays):
    task, steps = Line(), 10
    task.decays = decays
    training = compare.train(task, Method("SGD", "norm"), 0.1, 0.5, 3, steps, "cpu", tqdm(disable=True), points=0, tested=True)
    model, batches = task.make_model(3), task.batches(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps) if decays else 0.1
        optimizer.zero_grad()
        task.loss(model, next(batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    assert training.test == pytest.approx(task.evaluate(model, "test"), rel=1e-5)


@pytest.mark.parametrize(("decays", "words"), [(False, "a line"), (True, "a line, learning rate decays to 0")])
def test_settings_say_whether_the_learning_rate_decays(line, decays, words):
    line.decays = decays
    assert compare.plan("image").settings["source"] == words


def test_curve_has_as_many_blocks_as_fit_and_a_mean_of_each():
    training = compare.train(Line(), Method("SGD", "norm"), 0.05, 1.0, 0, 120, "cpu", tqdm(disable=True), points=2, tested=False)
    assert [block[0] for block in training.curve][:3] == [2, 4, 7]
    assert (len(training.curve), training.curve[-1][0]) == (BLOCKS, 120)
    shares = [share * size for (_, _, _, share), size in zip(training.curve, [2, 2, 3] * 50, strict=False)]
    assert sum(shares[:3]) == pytest.approx(round(sum(shares[:3])))
    assert 0 < training.clip_rate < 1
    assert math.isnan(training.test)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "seeds must be at least 1 and at most 1000, got 0"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--device", "nowhere"], "device 'nowhere' cannot be used"),
        (["--pretrained", "bert"], "pretrained is for task text with data, got 'bert' for task image"),
        (["--data", "nowhere"], "data must be a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG, got 'nowhere'"),
        (["--task", "txt"], "argument --task: invalid choice: 'txt'"),
    ],
)
def test_bad_arguments_are_named_with_their_values(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "--task", "image", "--out", str(tmp_path), *options])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_picture_and_summary_are_written_where_no_loss_is_ever_finite(factor, monkeypatch, tmp_path):
    class Broken(Line):
        def loss(self, model, batch):
            return factor * super().loss(model, batch)

    monkeypatch.setattr(compare, "load", lambda *arguments: Broken({"SGD": (0.1,), "Adam": (0.1,)}))
    assert command(tmp_path, "--seeds", "1", "--steps", "2") == 0
    assert (tmp_path / "compare_image.png").read_bytes().startswith(b"\x89PNG")
