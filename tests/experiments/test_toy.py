"""``python -m experiments toy``: its noise, its methods, and what it writes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tqdm import tqdm

from experiments.__main__ import main
from experiments.common.files import read_csv, write_json
from experiments.common.journal import Journal
from experiments.common.regression import levy, make_data
from experiments.toy import adagrad as toy_adagrad
from experiments.toy import published as toy_published
from experiments.toy import quadratic as toy_quadratic
from experiments.toy import regression as toy_regression
from experiments.toy import run as toy
from experiments.toy.noise import NOISES, infinite_variance
from experiments.toy.table import Expectation, table
from torch_clipped import ClippedSGD
from torch_clipped.clipping import CLIPPING_TYPES

QUADRATIC = toy_quadratic.Config(steps=1200, measured_steps=900, repeats=2, parts=3, dimension=6)
ADAGRAD = toy_adagrad.Config(steps=300, repeats=20)
REGRESSION = toy_regression.Config(samples=100, features=4, batch=20, epochs=2, seeds=2)
PUBLISHED = toy_published.Config(samples=400, features=4, epochs=2, seeds=3)


@pytest.fixture(autouse=True)
def _table_of_types():
    """Forget the row-wise type again: other tests go through the table."""
    before = dict(CLIPPING_TYPES)
    yield
    CLIPPING_TYPES.clear()
    CLIPPING_TYPES.update(before)


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.name)
def test_noise_has_the_quantiles_of_its_distribution_on_the_unit_scale(noise):
    quantile_functions = {
        "normal": lambda u: {0.5: 0.0, 0.9: 1.2815516, 0.99: 2.3263479}[u],
        "exponential": lambda u: -np.log(1 - u),
        "Weibull": lambda u: (-np.log(1 - u)) ** 5,
        "Burr XII": lambda u: (1 - u) ** (-1 / 2.3) - 1,
    }
    values = noise.draw(np.random.default_rng(1), (200_000,)) * noise.std + noise.mean
    for u in (0.5, 0.9, 0.99):
        below = (values <= quantile_functions[noise.name](u)).mean()
        assert below == pytest.approx(u, abs=4 * (u * (1 - u) / 200_000) ** 0.5)


def test_means_and_deviations_are_those_of_numerical_integration():
    t = np.linspace(0, 400, 400_001)  # of an exponential variable, of which all of them are functions
    for noise, values in ((NOISES[1], t), (NOISES[2], t**5), (NOISES[3], np.expm1(t / 2.3))):
        weighted = (torch.from_numpy(values**power * np.exp(-t)) for power in (1, 2))
        mean, second = (torch.trapezoid(y, torch.from_numpy(t)).item() for y in weighted)
        assert mean == pytest.approx(noise.mean, rel=1e-5)
        assert second - mean**2 == pytest.approx(noise.std**2, rel=1e-5)
    assert [round(noise.std, 3) for noise in NOISES] == [1, 1, 1901.158, 2.130]


def test_noise_without_variance_is_symmetric_with_the_right_tail():
    values = infinite_variance(np.random.default_rng(2), (200_000,))
    assert (values > 0).mean() == pytest.approx(0.5, abs=0.005)
    for far in (1.0, 8.0):
        assert (np.abs(values) > far).mean() == pytest.approx((1 + far) ** -1.5, rel=0.05)


def test_levy_numbers_are_cut_where_they_should():
    values = levy(np.random.default_rng(3), 100_000, 0.5, 100.0)
    assert values.max() <= 100
    assert values.min() > 0
    assert np.median(values) == pytest.approx(0.5 / 0.6744898**2 * 0.86, rel=0.1)  # the untruncated one, lowered by the cut


def test_rows_of_one_matrix_run_like_separate_runs():
    config = toy_quadratic.Config(dimension=5, clipping_level=2.0)
    noise = np.random.default_rng(4).standard_t(2, (50, 3, 5))
    together = toy_quadratic.Descent(config, 3, clipped=True)
    values = np.empty((50, 3))
    over = together.through(noise, values)
    for row in range(3):
        x = 0.01 * torch.arange(1, 6, dtype=torch.float64)
        optimizer = ClippedSGD([x], lr=0.001, clipping_level=2.0)
        for step in range(50):
            x.grad = x + torch.from_numpy(noise[step, row])
            optimizer.step()
            assert values[step, row] == pytest.approx(x.square().sum().item() / 2, rel=1e-12)
        assert optimizer.clipping_stats()["clipped_steps"] == over[row]
        torch.testing.assert_close(x, together.weights[row], rtol=1e-12, atol=0)
    assert 0 < over.min() < over.max() < 50


def test_unclipped_descent_is_plain_arithmetic():
    config = toy_quadratic.Config(dimension=5)
    noise = np.random.default_rng(5).standard_normal((20, 2, 5)) * 1000
    descent, values = toy_quadratic.Descent(config, 2, clipped=False), np.empty((20, 2))
    descent.through(noise, values)
    x = np.tile(0.01 * np.arange(1, 6), (2, 1))
    for step in range(20):
        x = x - 0.001 * (x + noise[step])
        assert values[step] == pytest.approx((x**2).sum(axis=1) / 2)


def test_adagrad_is_its_formula_entry_by_entry():
    config = toy_adagrad.Config(steps=40, repeats=3)
    noise = infinite_variance(np.random.default_rng(config.seed), (40, 3))
    for clipped in (False, True):
        x, total = np.full(3, 2.0), np.full(3, 9.0)
        for value, some in zip(toy_adagrad.descend(config, clipped), noise, strict=True):
            g = np.clip(x + some, -0.5, 0.5) if clipped else x + some
            total = total + g**2
            x = x - 0.5 * g / np.sqrt(total)
            assert value == pytest.approx(x**2 / 2)


def test_gradient_of_the_regression_is_autograds():
    data = make_data(REGRESSION.samples, REGRESSION.features, 0)
    x = data.start.clone().requires_grad_()
    (data.features @ x - data.labels).abs().pow(1.75).mean().backward()
    torch.testing.assert_close(toy_regression.gradient(data.features, data.labels, data.start, 1.75), x.grad)
    assert toy_regression.loss(data, data.start, 1.75) > toy_regression.loss(data, data.truth, 1.75)
    torch.testing.assert_close(data.features.std(dim=0, correction=0), torch.ones(4).double())


def test_every_contender_has_a_grid_of_the_same_size_and_learns():
    data = make_data(REGRESSION.samples, REGRESSION.features, 0)
    for method in toy_regression.METHODS:
        assert len(set(method.grid())) == len(toy_regression.HALF_DECADES)
        losses = toy_regression.train(REGRESSION, method, method.middle, data, 0)
        assert len(losses) == 3
        assert losses[-1] < losses[0]


def test_divergence_is_recorded_to_the_last_epoch():
    data = make_data(REGRESSION.samples, REGRESSION.features, 0)
    losses = toy_regression.train(REGRESSION, toy_regression.METHODS[0], 1e200, data, 0)
    assert losses[1:] == [np.inf, np.inf]


def test_score_is_the_share_of_single_runs_in_the_range(tmp_path):
    row = Expectation("a", "b", "c", 1.0, 2.0).against([0.0, 1.5, 9.0])
    assert (row["median"], row["share_inside"], row["runs"], row["source"]) == (1.5, 1 / 3, 3, "read off the picture")
    outside = Expectation("a", "b", "c", 1.0, 2.0, "theory").against([3.0, np.inf, np.inf])
    lines = table("title", [row, outside]).splitlines()
    assert lines[-2].endswith("33% of 3")
    assert lines[-1].endswith("0% of 3")
    assert "theory" in lines[-1]
    write_json(outside, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["median"] is None


def test_mean_of_the_quadratic_is_that_of_theory():
    config = toy_quadratic.Config(dimension=100, lr=0.02, clipping_level=12.0, steps=6000)
    noise = np.random.default_rng(1).standard_normal((6000, 20, 100))
    for clipped in (False, True):
        values = np.empty((6000, 20))
        toy_quadratic.Descent(config, 20, clipped).through(noise, values)
        assert values[1000:].mean() == pytest.approx(toy_quadratic.mean_by_theory(config, NOISES[0], clipped), rel=0.02)
    small = replace(config, clipping_level=8.0)  # clips almost all: norms are about 10
    values = np.empty((6000, 20))
    toy_quadratic.Descent(small, 20, True).through(noise, values)
    assert values[1000:].mean() == pytest.approx(toy_quadratic.mean_by_theory(small, NOISES[0], True), rel=0.02)
    assert toy_quadratic.mean_by_theory(small, NOISES[0], True) < 0.9 * toy_quadratic.mean_by_theory(config, NOISES[0], False)


def test_bias_of_clipped_skewed_noise_is_in_the_theory():
    config = toy_quadratic.Config(dimension=1, lr=0.01, clipping_level=1.0, steps=20_000)
    noise, values = NOISES[1].draw(np.random.default_rng(2), (20_000, 40, 1)), np.empty((20_000, 40))
    toy_quadratic.Descent(config, 40, True).through(noise, values)
    by_theory = toy_quadratic.mean_by_theory(config, NOISES[1], True)
    without_bias = config.lr / (2 - config.lr) * 0.5
    assert by_theory > 3 * without_bias
    assert values[4000:].mean() == pytest.approx(by_theory, rel=0.1)


def test_parts_of_the_quadratic_are_runs_with_seeds_of_their_own():
    first, _ = toy_quadratic.run(QUADRATIC, 0, tqdm(disable=True))
    second, _ = toy_quadratic.run(QUADRATIC, 1, tqdm(disable=True))
    shifted, _ = toy_quadratic.run(replace(QUADRATIC, seed=1), 0, tqdm(disable=True))
    assert [row["run"] for row in first[:4]] == [0, 1, 0, 1]
    assert [row["run"] for row in second[:4]] == [2, 3, 2, 3]
    assert [row["mean"] for row in second] == [row["mean"] for row in shifted] != [row["mean"] for row in first]


def test_published_regression_measures_on_the_other_half_without_noise():
    data = make_data(PUBLISHED.samples, PUBLISHED.features, 5)
    results = {one["method"]: one["losses"] for one in toy_published.train(PUBLISHED, 5)}
    start = (data.features[200:] @ data.start - data.features[200:] @ data.truth).abs().pow(1.75).mean().item()
    assert list(results) == ["SGD", "Adam", "clipped SGD", "clipped SSTM"]
    assert all(losses[0] == pytest.approx(start) for losses in results.values())
    x, order = data.start.clone(), torch.Generator().manual_seed(5)
    optimizer = torch.optim.SGD([x], lr=1e-4, momentum=0.99)
    for _ in range(PUBLISHED.epochs):
        (some,) = torch.randperm(200, generator=order).split(200)
        x.grad = toy_regression.gradient(data.features[some], data.labels[some], x, 1.75)
        optimizer.step()
    end = (data.features[200:] @ (x - data.truth)).abs().pow(1.75).mean().item()
    assert results["SGD"][-1] == pytest.approx(end)
    assert toy_published.steps(PUBLISHED) == 2 * (1 + 20 + 40 + 40)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder and the tables of a very short run of everything."""
    folder = tmp_path_factory.mktemp("toy")
    before = dict(CLIPPING_TYPES)
    texts = []
    for problem in (toy.quadratic(QUADRATIC), toy.adagrad(ADAGRAD), toy.regression(REGRESSION), toy.published(PUBLISHED)):
        journal = Journal(None, {}, resume=False)
        problem.run(journal)
        assert len(journal.results) == problem.parts
        texts.append(problem.write(list(journal.results.values()), folder))
    CLIPPING_TYPES.clear()
    CLIPPING_TYPES.update(before)
    return folder, texts


@pytest.mark.parametrize("name", toy.PROBLEMS)
def test_data_config_table_and_picture_are_written(written, name):
    folder, texts = written
    content = json.loads((folder / f"toy_{name}.json").read_text())
    configs = {"quadratic": QUADRATIC, "adagrad": ADAGRAD, "regression": REGRESSION, "published": PUBLISHED}
    assert content["config"] == vars(configs[name])
    assert (folder / f"toy_{name}.png").read_bytes().startswith(b"\x89PNG")
    text = texts[list(toy.PROBLEMS).index(name)]
    for row in content["expected"]:
        assert any(all(str(row[key]) in line for key in ("setting", "method", "quantity")) for line in text.splitlines())
    for file in of(name):
        assert (folder / file).exists()
        assert not file.endswith("csv") or read_csv(folder / file)


def test_runs_of_the_quadratic_are_counted_in_full(written):
    rows = read_csv(written[0] / "toy_quadratic.csv")
    assert len(rows) == len(NOISES) * 2 * QUADRATIC.repeats * QUADRATIC.parts
    assert all(float(row["median"]) <= float(row["p99"]) <= float(row["max"]) for row in rows)
    curves = read_csv(written[0] / "toy_quadratic_curves.csv")
    assert [int(row["step"]) for row in curves[:3]] == [500, 1000, 1200]


@pytest.fixture
def small(monkeypatch):
    """Problems of a few steps, with the seed that the command is given."""
    monkeypatch.setitem(toy.PROBLEMS, "quadratic", lambda seed, quick: toy.quadratic(replace(QUADRATIC, seed=seed)))
    monkeypatch.setitem(toy.PROBLEMS, "adagrad", lambda seed, quick: toy.adagrad(replace(ADAGRAD, seed=seed)))
    monkeypatch.setitem(toy.PROBLEMS, "regression", lambda seed, quick: toy.regression(replace(REGRESSION, seed=seed)))
    monkeypatch.setitem(toy.PROBLEMS, "published", lambda seed, quick: toy.published(replace(PUBLISHED, seed=seed)))


def of(name):
    runs = set() if name == "published" else {f"toy_{name}.csv"}
    return runs | {f"toy_{name}_curves.csv", f"toy_{name}.json", f"toy_{name}.png"}


def test_command_runs_one_problem(tmp_path, small, capsys):
    assert main(["toy", "--only", "adagrad", "--seed", "3", "--out", str(tmp_path / "new")]) == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == of("adagrad")
    assert json.loads((tmp_path / "new" / "toy_adagrad.json").read_text())["config"]["seed"] == 3
    assert "clipped AdaGrad:" in capsys.readouterr().out
    for options in (["--seed", "-1"], ["--only", "nothing"], ["--seed", "999"]):  # two seeds; 1000 chooses learning rates
        with pytest.raises(SystemExit, match="2"):
            main(["toy", "--out", str(tmp_path), *options])


def test_command_resumes_within_a_problem_to_the_same_files(tmp_path, small, monkeypatch, capsys):
    assert main(["toy", "--out", str(tmp_path / "whole")]) == 0
    train, calls = toy_regression.train, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(*arguments)

    parts = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(toy_regression, "train", interrupted)
        assert main(["toy", "--out", str(parts)]) == 130
    finished = {name.replace(".", ".partial.") for problem in ("quadratic", "adagrad") for name in of(problem)}
    assert {path.name for path in parts.iterdir()} == finished | {"toy.partial.jsonl"}
    assert "7 finished trainings are kept" in capsys.readouterr().err
    assert main(["toy", "--out", str(parts), "--resume"]) == 0
    assert {path.name for path in parts.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}
    for path in parts.iterdir():
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()


def test_quick_run_takes_fewer_steps():
    assert toy.plan(**toy.QUICK).steps < toy.plan().steps / 20
