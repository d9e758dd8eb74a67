"""Hugging Face's Trainer with clipped optimizers, and clipping statistics in what it logs."""

import json
import warnings

import pytest
import torch

from torch_clipped import ClippedAdamW, ClippedSGD, ClippingWarning, clip_optimizer

transformers = pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("accelerate", reason="needs accelerate, which the Trainer is built on")

from torch_clipped.integrations import HuggingFaceClippingCallback  # noqa: E402


class InOrder(torch.utils.data.IterableDataset):
    """Rows that no sampler can shuffle."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


class Regression(torch.nn.Module):
    """A model whose gradients have norms far above 1."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.linear = torch.nn.Linear(4, 1)

    def forward(self, x, labels):
        return {"loss": (self.linear(x) - labels).square().mean()}


def regression_rows(count=64):
    generator = torch.Generator().manual_seed(6)
    return [{"x": torch.randn(4, generator=generator), "labels": 100 * torch.randn(1, generator=generator)} for _ in range(count)]


def arguments(**options):
    defaults = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "max_grad_norm": 0,
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return transformers.TrainingArguments("out", **(defaults | options))


def trained(model, optimizer, rows, callback=True, **options):
    trainer = transformers.Trainer(model, arguments(**options), train_dataset=InOrder(rows), optimizers=(optimizer, None))
    if callback:
        HuggingFaceClippingCallback.attach(trainer)
    trainer.train()
    return trainer


def plain_loop(model, optimizer, rows, steps=6, accumulation=1, batch_size=4, autocast=False):
    """What the Trainer does, by hand."""
    model.train()
    for step in range(steps):
        start = step * batch_size * accumulation
        batches = [rows[i : i + batch_size] for i in range(start, start + batch_size * accumulation, batch_size)]
        targets = sum(row["labels"].ne(-100).sum() for batch in batches for row in batch)
        for batch in batches:
            collated = {name: torch.stack([row[name] for row in batch]) for name in batch[0]}
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = model(**collated, num_items_in_batch=targets).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def logs_of(trainer, name):
    return [logs[name] for logs in trainer.state.log_history if name in logs]


def skip_unless_measured(trainer):
    if not logs_of(trainer, "grad_norm"):
        pytest.skip(f"the Trainer of transformers {transformers.__version__} measures no norm where it does not clip")


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("clipping_type", ["norm", "auto", "linear_rand_norm", "layer_wise_auto"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_optimizer_given_to_the_trainer_makes_the_weights_of_a_plain_loop(
    tiny_gpt, sentences, clip_types, clipping_type, accumulation
):
    by_hand, by_trainer = tiny_gpt(), tiny_gpt()
    optimizers = [ClippedAdamW(m.parameters(), lr=0.01, **clip_types[clipping_type]) for m in (by_hand, by_trainer)]
    plain_loop(by_hand, optimizers[0], sentences, accumulation=accumulation)
    trainer = trained(by_trainer, optimizers[1], sentences, gradient_accumulation_steps=accumulation)
    assert equal(by_hand, by_trainer)
    assert torch.equal(optimizers[0].grad_norms(), optimizers[1].grad_norms())
    assert logs_of(trainer, "clipping/steps") == [1, 2, 3, 4, 5, 6]
    assert optimizers[1].clipping_stats()["clipped_steps"] > 0


def test_optimizer_class_is_made_by_the_trainer_and_its_groups_are_one_clip_set(tiny_gpt, sentences):
    model, by_hand = tiny_gpt(), tiny_gpt()
    options = {"lr": 0.01, "clipping_level": 0.5}
    trainer = transformers.Trainer(
        model,
        arguments(weight_decay=0.1),
        train_dataset=InOrder(sentences),
        optimizer_cls_and_kwargs=(ClippedAdamW, options),
    )
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert len(optimizer.clipping_stats(per_set=True)) == 1
    names = {id(p): name for name, p in model.named_parameters()}
    own = dict(by_hand.named_parameters())
    groups = [
        {"params": [own[names[id(p)]] for p in group["params"]], "weight_decay": group["weight_decay"]}
        for group in optimizer.param_groups
    ]
    plain_loop(by_hand, ClippedAdamW(groups, **options), sentences)
    assert equal(model, by_hand)


def test_bfloat16_trains_as_a_plain_loop_under_autocast(tiny_gpt, sentences):
    by_hand, by_trainer = tiny_gpt(), tiny_gpt()
    optimizers = [ClippedAdamW(m.parameters(), lr=0.01, clipping_level=0.5) for m in (by_hand, by_trainer)]
    plain_loop(by_hand, optimizers[0], sentences, autocast=True)
    trained(by_trainer, optimizers[1], sentences, bf16=True)
    assert equal(by_hand, by_trainer)
    assert optimizers[1].clipping_stats()["clipped_steps"] > 0


@pytest.mark.parametrize("clipping_type", ["auto", "linear_rand_norm"])
def test_resumed_training_is_bit_for_bit_the_unbroken_one(tiny_gpt, sentences, clip_types, clipping_type):
    def train(folder, steps, **options):
        model = tiny_gpt(dropout=0.1)
        settings = arguments(max_steps=8, save_strategy="steps", save_steps=4, lr_scheduler_type="linear", logging_steps=2)
        settings.output_dir = folder
        optimizer = ClippedAdamW(model.parameters(), lr=0.01, **clip_types[clipping_type])
        trainer = transformers.Trainer(model, settings, train_dataset=sentences, optimizers=(optimizer, None))
        HuggingFaceClippingCallback.attach(trainer)
        if steps < 8:
            trainer.add_callback(StopAt(steps))
        trainer.train(**options)
        return model, optimizer, trainer

    class StopAt(transformers.TrainerCallback):
        def __init__(self, step):
            self.step = step

        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= self.step

    model, optimizer, trainer = train("unbroken", 8)
    train("broken", 5)  # the fifth step is lost
    resumed_model, resumed_optimizer, resumed = train("broken", 8, resume_from_checkpoint="broken/checkpoint-4")
    assert equal(model, resumed_model)
    assert torch.equal(optimizer.grad_norms(), resumed_optimizer.grad_norms())
    assert optimizer.clipping_stats() == resumed_optimizer.clipping_stats()
    assert optimizer.clipping_stats()["steps"] == 8
    for name in ("loss", "clipping/grad_norm", "clipping/clip_rate"):
        assert logs_of(trainer, name) == logs_of(resumed, name)


def test_evaluation_in_between_changes_nothing_and_is_not_given_statistics(tiny_gpt, sentences):
    def train(**options):
        model = tiny_gpt()
        optimizer = ClippedAdamW(model.parameters(), lr=0.01, clipping_type="auto")
        trainer = transformers.Trainer(
            model,
            arguments(**options),
            train_dataset=InOrder(sentences),
            eval_dataset=sentences[:8],
            optimizers=(optimizer, None),
        )
        HuggingFaceClippingCallback.attach(trainer)
        trainer.train()
        return model, trainer

    model, _ = train()
    evaluated_model, trainer = train(eval_strategy="steps", eval_steps=2)
    assert equal(model, evaluated_model)
    assert len(logs_of(trainer, "eval_loss")) == 3
    with_statistics = [logs for logs in trainer.state.log_history if "clipping/steps" in logs]
    assert len(with_statistics) == 6
    assert all("loss" in logs for logs in with_statistics)


def test_statistics_are_read_at_steps_that_are_logged_only(tiny_gpt, sentences, monkeypatch):
    calls = []
    read = ClippedAdamW.clipping_stats
    monkeypatch.setattr(ClippedAdamW, "clipping_stats", lambda self, **options: calls.append(options) or read(self, **options))
    model = tiny_gpt()
    trainer = trained(model, ClippedAdamW(model.parameters()), sentences, logging_steps=3)
    assert logs_of(trainer, "clipping/steps") == [3, 6]
    assert len(calls) == 2 * 2  # for the whole, and for the sets


def test_groups_that_are_clipped_apart_have_statistics_each(tiny_gpt, sentences):
    model = tiny_gpt()
    embedding = model.get_input_embeddings().weight
    others = [p for p in model.parameters() if p is not embedding]
    groups = [{"params": others, "clipping_level": 0.5}, {"params": [embedding], "clipping_type": "coord_wise"}]
    trainer = trained(model, ClippedSGD(groups, lr=0.01), sentences)
    last = trainer.state.log_history[-2]
    assert last["clipping/set_0/threshold"] == 0.5
    assert last["clipping/set_1/threshold"] == pytest.approx(0.1)
    assert "clipping/set_1/grad_norm" not in last  # NaN: coord_wise does not measure it
    json.dumps(trainer.state.log_history, allow_nan=False)


def test_only_the_main_process_adds_statistics_and_only_to_its_prefix():
    optimizer = ClippedSGD([torch.nn.Parameter(torch.zeros(2))])
    for main in (True, False):
        state = transformers.TrainerState(is_world_process_zero=main, log_history=[{"loss": 1.0}])
        logs = {"loss": 1.0}
        HuggingFaceClippingCallback("gradients.").on_log(
            arguments(), state, transformers.TrainerControl(), logs=logs, optimizer=optimizer
        )
        assert ("gradients.steps" in logs) is main
        assert state.log_history[-1] == logs


def test_optimizer_that_does_not_clip_is_refused_when_training_begins(tiny_gpt, sentences):
    model = tiny_gpt()
    with pytest.raises(TypeError, match=r"must be one that clips.*got AdamW"):
        trained(model, torch.optim.AdamW(model.parameters()), sentences)
    trainer = trained(model, clip_optimizer(torch.optim.AdamW(model.parameters())), sentences)
    assert logs_of(trainer, "clipping/steps")


def test_logged_norm_is_the_true_one_and_equal_to_ours_where_the_trainer_does_not_clip():
    model = Regression()
    trainer = trained(model, ClippedSGD(model.parameters(), lr=1e-3), regression_rows())
    assert min(logs_of(trainer, "clipping/grad_norm")) > 1
    assert logs_of(trainer, "clipping/clipped_norm") == pytest.approx([1.0] * 6)
    skip_unless_measured(trainer)
    assert logs_of(trainer, "clipping/grad_norm") == pytest.approx(logs_of(trainer, "grad_norm"), rel=1e-6)


def test_trainer_that_clips_logs_the_true_norm_and_ours_is_what_it_left():
    rows, options = regression_rows(), {"max_grad_norm": transformers.TrainingArguments("out").max_grad_norm}
    assert options == {"max_grad_norm": 1.0}
    model = Regression()
    with pytest.warns(ClippingWarning, match="max_grad_norm must be 0 where the optimizer clips, got 1.0"):
        trainer = trained(model, ClippedSGD(model.parameters(), lr=0.0, clipping_level=0.5), rows, **options)
    model = Regression()
    true = trained(model, ClippedSGD(model.parameters(), lr=0.0), rows)
    assert logs_of(trainer, "grad_norm") == pytest.approx(logs_of(true, "clipping/grad_norm"), rel=1e-6)
    assert logs_of(trainer, "clipping/grad_norm") == pytest.approx([1.0] * 6, rel=1e-5)


def test_trainer_may_clip_where_the_optimizer_does_not():
    model = Regression()
    trained(model, ClippedSGD(model.parameters(), clipping_type="none"), regression_rows(), max_grad_norm=1.0)


@pytest.mark.parametrize("max_grad_norm", [0, 1.0])
def test_library_warns_of_gradients_that_the_trainer_has_clipped_and_of_no_others(max_grad_norm):
    model = Regression()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ClippingWarning)
        options = {"max_steps": 220, "logging_steps": 50, "max_grad_norm": max_grad_norm}
        trained(model, ClippedSGD(model.parameters(), lr=0.0), regression_rows(), callback=False, **options)
    messages = [str(warning.message) for warning in caught if warning.category is ClippingWarning]
    assert len(messages) == (max_grad_norm == 1.0)
    assert all("the last 200 gradients all arrived with norm 1" in message for message in messages)


@pytest.mark.parametrize("nonfinite", ["skip", "zero"])
def test_measuring_by_the_trainer_makes_a_gradient_that_is_not_finite_nan_everywhere(nonfinite):
    model = Regression()
    weight, before = model.linear.weight, model.linear.weight.detach().clone()
    model.linear.bias.register_hook(lambda gradient: gradient * torch.inf)
    optimizer = ClippedSGD(model.parameters(), lr=1e-3, nonfinite=nonfinite)
    seen = []
    optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: seen.append(weight.grad.clone()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClippingWarning)  # that the step was left out
        trainer = trained(model, optimizer, regression_rows(), max_steps=1)
    skip_unless_measured(trainer)
    assert seen[0].isnan().all()
    assert torch.equal(weight, before)


def test_callback_given_to_the_trainer_adds_to_the_history(tiny_gpt, sentences):
    model = tiny_gpt()
    trainer = transformers.Trainer(
        model,
        arguments(),
        train_dataset=sentences,
        optimizers=(ClippedAdamW(model.parameters()), None),
        callbacks=[HuggingFaceClippingCallback()],
    )
    trainer.train()
    assert logs_of(trainer, "clipping/steps") == [1, 2, 3, 4, 5, 6]
