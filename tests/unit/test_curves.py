"""Losses and metrics that a collector keeps, its file, and the pictures of them."""

import copy
import csv
import re
import warnings
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.optim import SGD

from torch_clipped import (
    ClippedSGD,
    ModelProperties,
    OptimizerProperties,
    OptimizersCollector,
    Restarter,
    RestartProperties,
    clip_optimizer,
)
from torch_clipped.optimizers_collector import Point
from torch_clipped.plots import plot_gradient_norms, plot_losses, plot_metric

PLAIN, RESTARTED = "SGD, lr 0.1", "ClippedSGD, lr 0.1, restarts 3 x 1.25 to 2000"


def net():
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))


def new(seed=0):
    contenders = [OptimizerProperties(SGD, lr=0.1), (OptimizerProperties(ClippedSGD, lr=0.1), RestartProperties(3))]
    return OptimizersCollector(ModelProperties(net), contenders, seed=seed)


def clipped_lbfgs(params, lr):
    return clip_optimizer(torch.optim.LBFGS(params, lr, max_iter=4), "norm", 1.0)


def batches(count=8):
    return torch.randn(count, 16, 3, generator=torch.Generator().manual_seed(1))


def squared_error(model, batch):
    return (model(batch).squeeze(1) - batch.sum(1)).square().mean()


def accuracy(model, batch):
    return ((model(batch).squeeze(1) > 0) == (batch.sum(1) > 0)).double().mean()


def trained(seed=0, metrics=None, validate=True):
    collector = new(seed)
    for step, batch in enumerate(batches()):
        collector.step(batch, squared_error, metrics)
        if validate and step % 4 == 3:
            collector.evaluate(batches(3), squared_error, metrics)
    return collector


def curve(collector, label, phase, name):
    return [(p.step, p.value) for p in collector.history if (p.label, p.phase, p.name) == (label, phase, name)]


def test_losses_metrics_and_restarts_are_kept_with_their_steps():
    collector = trained(metrics={"accuracy": accuracy})
    for label in (PLAIN, RESTARTED):
        assert [value for _, value in curve(collector, label, "train", "loss")] == collector.losses[label]
        assert [step for step, _ in curve(collector, label, "train", "accuracy")] == [*range(8)]
        assert [step for step, _ in curve(collector, label, "validation", "loss")] == [4, 8]
    assert curve(collector, PLAIN, "train", "restart") == []
    assert curve(collector, RESTARTED, "train", "restart") == [(3, 1), (6, 2)]


def test_validation_is_the_mean_over_the_batches_in_evaluation_mode():
    collector = trained(metrics={"accuracy": accuracy})
    found = collector.evaluate(iter(batches(3)), squared_error, {"accuracy": accuracy})
    for label, model in collector.models.items():
        twin = copy.deepcopy(model).eval()
        for name, function in (("loss", squared_error), ("accuracy", accuracy)):
            wanted = sum(function(twin, batch).item() for batch in batches(3)) / 3
            assert found[label][name] == pytest.approx(wanted, rel=1e-6)
            assert curve(collector, label, "validation", name)[-1] == (8, found[label][name])
        assert all(module.training for module in model.modules())


def test_metrics_and_evaluation_change_nothing_of_the_training():
    state = torch.get_rng_state()
    watched, plain = trained(metrics={"accuracy": accuracy, "random": lambda *_: torch.rand(())}), trained(validate=False)
    assert torch.equal(state, torch.get_rng_state())
    assert watched.losses == plain.losses
    for label, model in watched.models.items():
        for one, other in zip(model.state_dict().values(), plain.models[label].state_dict().values(), strict=True):
            assert torch.equal(one, other)


def test_file_has_a_row_for_each_value(tmp_path):
    collector = trained(metrics={"accuracy": accuracy})
    collector.to_csv(tmp_path / "curves.csv")
    rows = list(csv.DictReader((tmp_path / "curves.csv").read_text().splitlines()))
    assert [*rows[0]] == ["label", "phase", "step", "name", "value"]
    read = [(row["label"], row["phase"], int(row["step"]), row["name"], float(row["value"])) for row in rows]
    assert read == collector.history
    with pytest.raises(ValueError, match="path must be a new file, but there is"):
        new().to_csv(tmp_path / "curves.csv")
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == len(rows) + 1


# Pictures


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_picture_shows_training_validation_and_restarts():
    ax = plot_losses(trained())
    assert labels_of(ax) == [PLAIN, f"{PLAIN}, validation", RESTARTED, f"{RESTARTED}, validation"]
    vertical = {line.get_xdata()[0] for line in ax.get_lines() if line.get_linestyle() == ":"}
    assert vertical == {3, 6}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("steps", "loss")


def test_smoothing_is_the_mean_of_the_last_values():
    collector = trained(validate=False)
    (line, *_) = plot_losses(collector, smoothing=3).get_lines()
    losses = collector.losses[PLAIN]
    wanted = [sum(losses[max(0, i - 2) : i + 1]) / min(i + 1, 3) for i in range(8)]
    assert line.get_ydata().tolist() == pytest.approx(wanted)


def test_several_seeds_are_a_mean_in_a_band():
    collectors = [trained(seed, {"accuracy": accuracy}) for seed in range(3)]
    ax = plot_metric(collectors, "accuracy")
    assert labels_of(ax) == [PLAIN, f"{PLAIN}, validation", RESTARTED, f"{RESTARTED}, validation"]
    words = "steps (lines: mean of 3 seeds, bands: lowest and highest)"
    assert ax.get_xlabel() == plot_gradient_norms(collectors).get_xlabel() == words
    values = torch.tensor([[value for _, value in curve(c, PLAIN, "train", "accuracy")] for c in collectors])
    assert ax.get_lines()[0].get_ydata().tolist() == pytest.approx(values.mean(0).tolist())
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((values.min().item(), values.max().item()))


def test_gradient_norms_are_those_of_the_optimizers_that_clip():
    collector = trained()
    ax = plot_gradient_norms(collector)
    assert labels_of(ax) == [RESTARTED]
    line, *restarts = ax.get_lines()
    assert {each.get_xdata()[0] for each in restarts} == {3, 6}
    assert line.get_ydata().tolist() == collector.grad_norms()[RESTARTED].tolist()
    assert line.get_xdata().tolist() == [*range(8)]


def test_what_cannot_be_drawn_is_named():
    collector = trained()
    other = OptimizersCollector(ModelProperties(net), [OptimizerProperties(SGD, lr=0.2)])
    for arguments, message in [
        ((collector, "f1"), "name must be one of grad_norm, loss, got 'f1'"),
        ((other, "loss"), "collectors must have taken a step, or evaluated a loader"),
        (([collector, other], "loss"), "collectors must have the same labels"),
        (([], "loss"), "collectors must be an OptimizersCollector or a sequence of them, got []"),
        ((3, "loss"), "collectors must be an OptimizersCollector or a sequence of them, got 3"),
        (([collector, trained(1, {"accuracy": accuracy})], "accuracy"), "got 'accuracy' (only some of the collectors have it)"),
        ((collector, "loss", None, 0), "smoothing must be an integer >= 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            plot_metric(*arguments)
    with pytest.raises(ValueError, match="collectors must hold recorded gradient norms"):
        plot_gradient_norms(other)


@pytest.mark.parametrize("name", ["loss", "grad_norm", "restart"])
def test_names_of_metrics_are_not_those_of_other_curves(name):
    collector = new()
    with pytest.raises(ValueError, match=f"metrics must have names other than loss, grad_norm, restart, got '{name}'"):
        collector.step(batches()[0], squared_error, {name: accuracy})
    with pytest.raises(ValueError, match="metrics must have names"):
        collector.evaluate(batches(), squared_error, {name: accuracy})
    with pytest.raises(ValueError, match="loader must hold at least one batch, got none"):
        collector.evaluate([], squared_error)
    assert collector.history == []


@pytest.mark.parametrize("metrics", [["accuracy"], {"accuracy": 3}, {3: accuracy}], ids=["list", "number", "name"])
def test_metrics_are_functions_by_name(metrics):
    with pytest.raises(TypeError, match="metrics must be a mapping from names to functions, got"):
        new().step(batches()[0], squared_error, metrics)


def test_metric_of_several_elements_is_refused():
    with pytest.raises(ValueError, match=r"the value of 'each' must have one element, got shape \(16, 1\)"):
        new().step(batches()[0], squared_error, {"each": lambda model, batch: model(batch)})


def test_value_that_is_not_finite_spoils_no_later_means():
    collector = trained(validate=False)
    points = [i for i, p in enumerate(collector.history) if (p.label, p.name) == (PLAIN, "loss")]
    for step, value in ((1, float("nan")), (4, 1e20)):
        collector.history[points[step]] = collector.history[points[step]]._replace(value=value)
    drawn = plot_losses(collector, smoothing=2).get_lines()[0].get_ydata()
    losses = collector.losses[PLAIN]
    assert drawn[[0, 3, 6, 7]].tolist() == pytest.approx([losses[0], *((losses[i - 1] + losses[i]) / 2 for i in (3, 6, 7))])


def test_seeds_are_paired_by_their_steps():
    collectors = [trained(seed, validate=False) for seed in range(2)]
    for collector, steps in zip(collectors, ([0, 4, 8], [4, 8]), strict=True):
        collector.history += [
            Point(label, "validation", step, "loss", 100.0 * step) for label in (PLAIN, RESTARTED) for step in steps
        ]
    line = next(line for line in plot_losses(collectors).get_lines() if line.get_label() == f"{PLAIN}, validation")
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([4, 8], [400.0, 800.0])
    collectors[1].history = [point for point in collectors[1].history if point.phase == "train"]
    with pytest.raises(ValueError, match=r"collectors must have steps in common, but have none of 'SGD, lr 0.1, validation'"):
        plot_losses(collectors)


def test_gradient_norms_stand_at_their_steps():
    contenders = [OptimizerProperties(clipped_lbfgs, lr=0.1), OptimizerProperties(ClippedSGD, lr=0.1)]
    collector = OptimizersCollector(ModelProperties(nn.Linear, 3, 1), contenders)
    for factor, batch in zip((1.0, 0.0, 1.0, float("inf"), 1.0), batches(5), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a gradient that is not finite
            collector.step(batch, lambda model, batch, factor=factor: factor * squared_error(model, batch))
    norms = curve(collector, "ClippedSGD, lr 0.1", "train", "grad_norm")
    assert [step for step, _ in norms] == [0, 2, 3, 4]
    assert [step for step, norm in norms if norm != norm] == [3]
    assert max(line.get_xdata().max() for line in plot_gradient_norms(collector).get_lines()) == 4


def test_exception_leaves_the_optimizers_after_it_a_step_behind():
    collector = new()

    def fails_once(model, batch, calls=[]):  # noqa: B006
        calls.append(model)
        if len(calls) == 2:
            raise RuntimeError("no memory")
        return squared_error(model, batch)

    first, second = batches(2)
    with pytest.raises(RuntimeError, match="no memory"):
        collector.step(first, fails_once)
    collector.step(second, fails_once)
    assert [step for step, _ in curve(collector, PLAIN, "train", "loss")] == [0, 1]
    assert [step for step, _ in curve(collector, RESTARTED, "train", "loss")] == [0]


def test_loader_that_draws_its_batches_is_not_seeded_anew():
    seen = []
    torch.manual_seed(0)
    new().evaluate((torch.randn(4, 3) for _ in range(3)), lambda model, batch: seen.append(batch) or squared_error(model, batch))
    torch.manual_seed(0)
    assert all(torch.equal(one, torch.randn(4, 3)) for one in seen[::2])


# Names of older code


@pytest.mark.parametrize("module", ["torch_clipped", "torch_clipped.optimizers_collector", "torch_clipped.plots"])
@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("OptimizersCollectorWithRestarts", "OptimizersCollector takes pairs"),
        ("PlotMaker", "plots.plot_losses"),
        ("get_optimal_L", "estimate_lipschitz"),
    ],
)
def test_older_names_are_answered_with_the_new_ones(module, name, instead):
    with pytest.raises(ImportError, match=f"{module} has no '{name}' any more: {instead}"):
        exec(f"from {module} import {name}", {})
    with pytest.raises(AttributeError, match="has no attribute 'nothing_of_this_name'"):
        _ = import_module(module).nothing_of_this_name


@pytest.mark.parametrize(
    ("name", "instead"),
    [("nets", "models"), ("get_optimizer_objects", "optimizers"), ("get_names_optimizers", "list(collector.optimizers)")],
)
def test_older_attributes_of_a_collector_are_answered_with_the_new_ones(name, instead):
    with pytest.raises(AttributeError, match=re.escape(instead)):
        getattr(new(), name)
    with pytest.raises(AttributeError, match=r"OptimizersCollector has no 'other'$"):
        _ = new().other


def test_class_as_first_restart_property_is_answered_with_the_new_arguments():
    with pytest.raises(TypeError, match=r"RestartProperties takes no class any more, got Restarter: write RestartProperties\("):
        RestartProperties(Restarter, 100)
