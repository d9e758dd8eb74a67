"""``python -m experiments compare``: its runner, on a task that takes no time."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from torch.nn.functional import mse_loss
from tqdm import tqdm

from experiments.__main__ import main
from experiments.common.command import TUNING_SEED
from experiments.common.files import read_csv
from experiments.compare import run as compare
from experiments.compare.methods import Method, methods
from experiments.compare.summary import LONGEST_CSV, choose, rows, summarize, written_every
from experiments.compare.table import table
from experiments.compare.training import Training
from torch_clipped.clipping import CLIPPING_TYPES

STEPS, SEEDS = 12, 3
GRIDS = {"SGD": (0.001, 0.05, 1e4, 1e25), "Adam": (1e-5, 1e-4, 1e-3, 0.1)}
LABELS = ["SGD", "Adam", *(f"ClippedSGD {name}" for name in CLIPPING_TYPES if name != "none"), "ClippedAdam norm"]


class Line:
    """Four weights and dropout; the metric is the negative loss."""

    name, metric, batch, steps, source = "image", "negative loss", 8, STEPS, "a line"

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
            some = torch.randint(48, (self.batch,), generator=generator)
            yield self.inputs[some], self.outputs[some]

    def loss(self, model, batch):
        self.losses += 1
        if self.losses == self.interrupted_at:
            raise KeyboardInterrupt
        return mse_loss(model(batch[0]), batch[1])

    def evaluate(self, model):
        model.eval()
        with torch.no_grad():
            errors = (model(self.inputs) - self.outputs).square()
        model.train()
        return {"train": -float(errors[:48].mean()), "validation": -float(errors[48:].mean()), "worst": -float(errors.max())}


@pytest.fixture
def line(monkeypatch):
    """The task that the command finds."""
    task = Line()
    monkeypatch.setattr(compare, "load", lambda *arguments: task)
    return task


@pytest.fixture
def without_picture(monkeypatch):
    """Drawing one takes longer than all the trainings."""
    monkeypatch.setattr(compare, "plot", lambda *files: files[-1].touch())


def command(folder, *options):
    return main(["compare", "--task", "image", "--out", str(folder), "--seeds", str(SEEDS), *options])


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
    assert {path.name for path in folder.iterdir()} == {f"compare_image.{kind}" for kind in ("csv", "json", "png")}
    assert (folder / "compare_image.png").read_bytes().startswith(b"\x89PNG")
    assert summary["settings"]["tuning_seed"] == TUNING_SEED
    assert summary["settings"]["seeds"] == [0, 1, 2]
    assert summary["settings"]["methods"]["ClippedSGD auto"] == {
        "momentum": 0.9,
        "clipping_type": "auto",
        "clipping_level": 0.75,
    }
    assert {"torch", "python"} < set(summary["versions"])
    assert summary["machine"]["cpu"]


def test_every_type_is_compared_with_sgd_and_adam(written):
    _, summary, table_rows = written
    assert [one["method"] for one in summary["methods"]] == LABELS
    assert [one["baseline"] for one in summary["methods"]] == [None, None, *["SGD"] * (len(LABELS) - 3), "Adam"]
    for label in LABELS:
        for seed in "012":
            mine = [row for row in table_rows if (row["method"], row["seed"]) == (label, seed)]
            assert [int(row["step"]) for row in mine] == list(range(STEPS + 1))
            assert [int(row["step"]) for row in mine if row["validation_metric"]] == [0, STEPS // 2, STEPS]


def test_a_type_of_ones_own_is_compared_too(monkeypatch):
    monkeypatch.setitem(CLIPPING_TYPES, "own", CLIPPING_TYPES["norm"])
    assert "ClippedSGD own" in [method.label for method in methods()]


def test_start_and_order_of_batches_are_the_same_for_all_methods(written):
    starts, firsts = {}, {}
    for row in written[2]:
        if row["step"] == "0":
            starts.setdefault(row["seed"], set()).add((row["train_metric"], row["validation_metric"]))
        if row["step"] == "1":
            firsts.setdefault(row["seed"], set()).add((row["loss"], row["gradient_norm"]))
    for found in (starts, firsts):
        assert [len(values) for values in found.values()] == [1] * SEEDS
        assert len(set.union(*found.values())) == SEEDS
    # zclip leaves the first 25 steps alone: dropout included, they are those of SGD
    plain, zclip = (
        [float(row["loss"]) for row in written[2] if row["method"] == label and row["loss"]]
        for label in ("SGD", "ClippedSGD zclip")
    )
    assert zclip == pytest.approx(plain, rel=1e-4)


def test_lengths_are_those_before_clipping_and_clipped_steps_are_marked(written):
    mine = [row for row in written[2] if row["method"] == "ClippedSGD norm" and row["loss"]]
    assert [row["clipped"] == "1" for row in mine] == [float(row["gradient_norm"]) > 1 for row in mine]
    rate = sum(row["clipped"] == "1" for row in mine) / len(mine)
    assert 0 < rate == pytest.approx(of(written[1], "ClippedSGD norm")["clip_rate"])
    entries = [float(row["gradient_norm"]) for row in written[2] if row["method"] == "ClippedSGD coord_wise" and row["loss"]]
    assert all(map(math.isfinite, entries))


def test_tuning_takes_the_learning_rate_that_is_best_when_tried_by_hand(written):
    task, found = Line(), {}
    for lr in GRIDS["SGD"]:
        torch.manual_seed(TUNING_SEED)
        model, batches = task.make_model(TUNING_SEED), task.batches(TUNING_SEED)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        for _ in range(STEPS):
            optimizer.zero_grad()
            task.loss(model, next(batches)).backward()
            optimizer.step()
        found[lr] = task.evaluate(model)["validation"]
    one = of(written[1], "SGD")
    sound = {row["lr"]: row["validation"] for row in one["grid"] if not row["diverged"]}
    assert sound == {lr: pytest.approx(found[lr]) for lr in sound}
    assert 1e25 not in sound  # where a loss overflows
    assert one["lr"] == max(sound, key=found.get) == 0.05
    assert not one["lr_is_an_end_of_the_grid"]
    assert of(written[1], "Adam")["lr"] == 0.1
    assert of(written[1], "Adam")["lr_is_an_end_of_the_grid"]


def test_final_metrics_are_those_of_the_rows(written):
    for one in written[1]["methods"]:
        ends = [
            float(row["validation_metric"]) for row in written[2] if (row["method"], row["step"]) == (one["method"], str(STEPS))
        ]
        assert one["validation"]["by_seed"] == pytest.approx(ends, rel=1e-4)
        assert one["validation"]["mean"] == pytest.approx(sum(ends) / SEEDS, rel=1e-4)
        assert (one["validation"]["lowest"], one["validation"]["highest"]) == pytest.approx((min(ends), max(ends)), rel=1e-4)


def test_every_metric_of_the_task_is_written(written):
    for one in written[1]["methods"]:
        assert list(one["other_metrics"]) == ["worst"]
        worst = one["other_metrics"]["worst"]
        assert len(worst["by_seed"]) == SEEDS
        assert worst["mean"] == pytest.approx(sum(worst["by_seed"]) / SEEDS)
        assert all(low < mean for low, mean in zip(worst["by_seed"], one["validation"]["by_seed"], strict=True))


def made_up(validation, lr=0.1, loss=1.0, diverged=False, seed=0, method="SGD"):
    points = [(step, {"train": 0.25 * step, "validation": validation, "third": 8.0}) for step in (0, 2)]
    values = {"losses": [3.0, loss], "norms": [1.0, 2.0], "clipped": [0, 1], "points": points, "diverged": diverged}
    return Training(method=method, lr=lr, seed=seed, **values)


def test_a_diverged_training_loses_and_among_equals_the_lower_loss_wins():
    assert choose([made_up(0.9, lr=1.0, diverged=True), made_up(0.1, lr=0.1)]).lr == 0.1
    assert choose([made_up(0.5, lr=0.1, loss=2.0), made_up(0.5, lr=0.2, loss=1.0), made_up(0.4, lr=0.3, loss=0.1)]).lr == 0.2
    assert choose([made_up(0.5, lr=lr, diverged=True) for lr in (0.3, 0.1, 0.2)]).lr == 0.1


def test_table_marks_ends_of_the_grid_and_counts_seeds_and_divergence():
    plain = [made_up(value, seed=seed) for seed, value in enumerate((0.5, 0.6, 0.7))]
    mine = [made_up(0.6, seed=0), made_up(0.6, seed=1), made_up(0.9, seed=2, diverged=True)]
    grid = [made_up(0.5, lr=lr) for lr in (0.1, 0.2)]
    method = Method("ClippedSGD norm", "SGD", torch.optim.SGD)
    summary = summarize(method, grid, mine, plain)
    assert (summary["seeds_above_baseline"], summary["seeds_below_baseline"], summary["diverged"]) == (1, 1, 1)
    settings = {"task": "image", "source": "a line", "steps": 2, "seeds": [0, 1, 2], "metric": "accuracy"}
    without = summarize(Method("SGD", "SGD", torch.optim.SGD), grid, plain, plain)
    summary["validation"] |= {"mean": None}  # as it is read again
    text = table({"settings": settings, "methods": [without, summary]}).splitlines()
    assert text[2].split()[:6] == ["lr", "validation", "accuracy", "training", "accuracy", "third"]
    assert text[3].startswith("SGD              0.1*  0.6000 (0.5000, 0.7000)  0.5000 (0.5000, 0.5000)  8.0000 (8.0000, 8.0000)")
    assert text[4].startswith("ClippedSGD norm  0.1*  -, 1 diverged")
    assert text[4].endswith("1 up, 1 down")
    assert "* The learning rate is an end of its grid, a better one may lie beyond: SGD (0.1), ClippedSGD norm (0.1)." in text


def test_long_trainings_are_thinned_in_the_csv_but_not_at_measured_points():
    assert written_every(200, 51) == 1
    assert written_every(10_000, 51) * LONGEST_CSV >= 10_000 * 51
    training = made_up(0.5)
    training.losses, training.norms, training.clipped = [1.0] * 10, [1.0] * 10, [0] * 10
    assert [row["step"] for row in rows(training, 4)] == [0, 2, 4, 8, 10]


def test_resumed_run_is_bit_for_bit_the_unbroken_one(written, line, without_picture, tmp_path, capsys):
    line.interrupted_at = 700
    assert command(tmp_path) == 130
    finished = line.models - 1
    path = tmp_path / "compare_image.partial.jsonl"
    assert list(tmp_path.iterdir()) == [path]
    words = f"{finished} finished trainings are kept in {path}: the same command with --resume --out {tmp_path} goes on"
    assert words in capsys.readouterr().err
    for option, value, message in (
        ("--steps", "7", "steps was 12 and is 7"),
        ("--data", "other", "data was None and is 'other'"),
        ("--seeds", "4", "seeds was [0, 1, 2] and is [0, 1, 2, 3]"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command(tmp_path, "--resume", option, value)
        assert message in capsys.readouterr().err
    line.interrupted_at, line.models = math.inf, 0
    torch.rand(3)  # the state of torch's global generator is no part of it
    assert command(tmp_path, "--resume") == 0
    assert line.models == len(LABELS) * (len(GRIDS["SGD"]) + SEEDS) - finished
    for name in ("compare_image.csv", "compare_image.json"):
        assert (tmp_path / name).read_bytes() == (written[0] / name).read_bytes()
    assert not path.exists()


def test_picture_and_summary_are_written_where_everything_diverges(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compare, "load", lambda *arguments: Line({"SGD": (1e28, 1e30), "Adam": (1e28, 1e30)}))
    assert command(tmp_path, "--seeds", "1") == 0
    summary = json.loads((tmp_path / "compare_image.json").read_text(), parse_constant=pytest.fail)
    assert of(summary, "SGD")["diverged"] == 1
    assert of(summary, "SGD")["validation"]["mean"] is None
    assert of(summary, "SGD")["lr"] == 1e28
    assert "-, 1 diverged" in capsys.readouterr().out


def test_weights_that_are_not_finite_after_the_last_step_are_a_divergence():
    task = Line()
    method = Method("SGD", "SGD", torch.optim.SGD)
    training = compare.train(task, method, 3e38, 0, 1, "cpu", tqdm(disable=True))
    assert math.isfinite(training.losses[-1])
    assert training.diverged
    assert math.isnan(training.validation)
    assert json.loads(json.dumps(asdict(training)))["points"] == [list(training.points[0])]


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
def test_picture_and_summary_are_written_where_no_loss_is_ever_finite(factor, monkeypatch, tmp_path, capsys):
    class Broken(Line):
        def loss(self, model, batch):
            return factor * super().loss(model, batch)

    monkeypatch.setattr(compare, "load", lambda *arguments: Broken({"SGD": (0.1,), "Adam": (0.1,)}))
    assert command(tmp_path, "--seeds", "1", "--steps", "2") == 0
    summary = json.loads((tmp_path / "compare_image.json").read_text(), parse_constant=pytest.fail)
    assert of(summary, "SGD")["unclipped_lengths"] == {"count": 0, "mean": None, "std": None, "largest": None}
    assert (tmp_path / "compare_image.png").read_bytes().startswith(b"\x89PNG")
