"""Clipping statistics in TensorBoard's event files, read back from there."""

import pytest
import torch

from torch_clipped import ClippedAdamW, ClippedSGD
from torch_clipped.integrations import log_clipping_stats

pytest.importorskip("tensorboard", reason="needs tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter


def read(folder):
    """The scalars of the event files in a folder: {name: {step: value}}."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {name: {e.step: e.value for e in accumulator.Scalars(name)} for name in accumulator.Tags()["scalars"]}


def train_and_log(optimizer, steps=5, **options):
    """The statistics after each step, which are written too."""
    statistics = []
    with SummaryWriter("runs") as writer:
        for step in range(steps):
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()
            log_clipping_stats(writer, optimizer, step, **options)
            statistics.append(optimizer.clipping_stats())
    return statistics


def test_every_statistic_of_every_step_is_in_the_event_file():
    optimizer = ClippedSGD([torch.nn.Parameter(torch.zeros(9))], clipping_level=2.5)
    statistics = train_and_log(optimizer)
    found = read("runs")
    assert set(found) == {f"clipping/{name}" for name in statistics[0]}
    for name in statistics[0]:
        assert found[f"clipping/{name}"] == pytest.approx(dict(enumerate(s[name] for s in statistics)), rel=1e-6)
    assert 0 < statistics[-1]["clip_rate"] < 1


def test_sets_have_names_of_their_own_and_the_prefix_stands_before_all():
    weights = [torch.nn.Parameter(torch.zeros(9)) for _ in range(2)]
    optimizer = ClippedSGD([{"params": [weights[0]], "clipping_level": 1.0}, {"params": [weights[1]], "clipping_level": 2.0}])
    train_and_log(optimizer, prefix="gradients.")
    found = read("runs")
    assert all(name.startswith("gradients.") for name in found)
    assert set(found["gradients.set_0/threshold"].values()) == {1.0}
    assert set(found["gradients.set_1/threshold"].values()) == {2.0}
    assert set(found["gradients.threshold"].values()) == {1.5}


def test_values_that_are_unknown_are_left_out():
    train_and_log(ClippedSGD([torch.nn.Parameter(torch.zeros(9))], clipping_type="coord_wise"), steps=1)
    found = read("runs")
    assert "clipping/grad_norm" not in found
    assert found["clipping/threshold"] == {0: pytest.approx(0.1)}


def test_threshold_that_there_is_not_yet_is_left_out():
    train_and_log(ClippedSGD([torch.nn.Parameter(torch.zeros(9))], clipping_type="zscore"))
    found = read("runs")
    assert list(found["clipping/grad_norm"]) == [0, 1, 2, 3, 4]
    assert list(found["clipping/threshold"]) == [2, 3, 4]


def test_optimizer_that_does_not_clip_is_refused():
    with SummaryWriter("runs") as writer, pytest.raises(TypeError, match=r"must be one that clips.*got SGD"):
        log_clipping_stats(writer, torch.optim.SGD([torch.nn.Parameter(torch.zeros(9))]), 0)


@pytest.mark.parametrize("attached", [True, False])
def test_trainer_reports_statistics_to_tensorboard_if_the_callback_stands_in_front(tiny_gpt, sentences, monkeypatch, attached):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    from torch_clipped.integrations import HuggingFaceClippingCallback

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "runs")
    arguments = transformers.TrainingArguments(
        "out", max_steps=6, logging_steps=2, max_grad_norm=0, report_to=["tensorboard"], use_cpu=True, disable_tqdm=True
    )
    model = tiny_gpt()
    optimizer = ClippedAdamW(model.parameters(), clipping_level=0.5)
    trainer = transformers.Trainer(model, arguments, train_dataset=sentences, optimizers=(optimizer, None))
    if attached:
        HuggingFaceClippingCallback.attach(trainer)
    else:
        trainer.add_callback(HuggingFaceClippingCallback)
    trainer.train()
    found = read("runs")
    assert list(found["train/loss"]) == [2, 4, 6]
    assert ("train/clipping/grad_norm" in found) is attached
    for name in optimizer.clipping_stats() if attached else ():
        logged = {logs["step"]: logs[f"clipping/{name}"] for logs in trainer.state.log_history if "loss" in logs}
        assert list(logged) == [2, 4, 6]
        assert found[f"train/clipping/{name}"] == pytest.approx(logged, rel=1e-6)
