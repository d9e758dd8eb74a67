"""Losses and metrics that a collector keeps, its file, and the pictures of them."""

import copy
import csv
import re
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.optim import SGD

from torch_clipped import ClippedSGD, ModelProperties, OptimizerProperties, OptimizersCollector, Restarter, RestartProperties
from torch_clipped.plots import plot_gradient_norms, plot_losses, plot_metric

PLAIN, RESTARTED = "SGD, lr 0.1", "ClippedSGD, lr 0.1, restarts 3 x 1.25 to 2000"


def net():
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))


def new(seed=0):
    contenders = [OptimizerProperties(SGD, lr=0.1), (OptimizerProperties(ClippedSGD, lr=0.1), RestartProperties(3))]
    return OptimizersCollector(ModelProperties(net), contenders, seed=seed)


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
    (line,) = ax.get_lines()
    assert line.get_ydata().tolist() == collector.grad_norms()[RESTARTED].tolist()
    assert line.get_xdata().tolist() == [*range(8)]


def test_what_cannot_be_drawn_is_named():
    collector = trained()
    other = OptimizersCollector(ModelProperties(net), [OptimizerProperties(SGD, lr=0.2)])
    for arguments, message in [
        ((collector, "f1"), "name must be one of loss, got 'f1'"),
        ((other, "loss"), "name must be one of none, since no step was taken, got 'loss'"),
        (([collector, other], "loss"), "collectors must have the same labels"),
        (([], "loss"), "collectors must be an OptimizersCollector or a sequence of them, got []"),
        ((collector, "loss", None, 0), "smoothing must be an integer >= 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            plot_metric(*arguments)
    with pytest.raises(ValueError, match="collectors must hold recorded gradient norms"):
        plot_gradient_norms(other)


@pytest.mark.parametrize("name", ["loss", "restart"])
def test_names_of_metrics_are_not_those_of_losses_and_restarts(name):
    collector = new()
    with pytest.raises(ValueError, match=f"metrics must have names other than loss and restart, got '{name}'"):
        collector.step(batches()[0], squared_error, {name: accuracy})
    with pytest.raises(ValueError, match="metrics must have names"):
        collector.evaluate(batches(), squared_error, {name: accuracy})
    with pytest.raises(ValueError, match="loader must hold at least one batch, got none"):
        collector.evaluate([], squared_error)
    assert collector.history == []


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
