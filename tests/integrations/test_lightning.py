"""Lightning with optimizers that clip: its loops give what the same loop by hand gives, and its loggers the statistics."""

import csv
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from support import pages
from support.assertions import assert_same

from torch_clipped import ClippedAdamW, ClippedSGD, ClippingWarning, LevelScheduler, clip_optimizer, linear_warmup
from torch_clipped.clipping import CLIPPING_TYPES

pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed (extra integrations)", exc_type=ImportError)

from lightning.fabric import Fabric  # noqa: E402
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger  # noqa: E402
from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402

from torch_clipped.integrations import LightningClippingCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "`isinstance.treespec, LeafSpec.` is deprecated",  # how Lightning 2.6 asks torch 2.13 about nested batches
        "The 'train_dataloader' does not have many workers",  # its advice on machines with more cores
        "GPU available but not used",  # its advice on machines with an accelerator
    )
]

EPOCHS, BATCHES = 4, 8  # zclip warms up for 25 steps
TYPES = sorted(CLIPPING_TYPES)
WITH_MEMORY = ["auto", "linear_rand_auto", "layer_wise_auto", "zscore", "zclip", "adagc"]
momentum = partial(ClippedSGD, lr=0.05, momentum=0.9)


def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4 * BATCHES, 4, generator=generator)
    noise = torch.distributions.StudentT(torch.tensor(2.0))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        targets = inputs.sum(1, keepdim=True) + noise.sample((4 * BATCHES, 1))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=4)


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))


def loss_of(net, batch):
    return (net(batch[0]) - batch[1]).square().mean()


class Regression(pl.LightningModule):
    def __init__(self, make, schedule=None, scale=1.0):
        super().__init__()
        self.net, self.make, self.schedule, self.scale = network(), make, schedule, scale

    def training_step(self, batch, batch_idx):
        loss = loss_of(self.net, batch) * self.scale
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = self.make(self.net.parameters())
        return optimizer if self.schedule is None else {"optimizer": optimizer, "lr_scheduler": self.schedule(optimizer)}


def trainer(folder, epochs=EPOCHS, callbacks=(), logger=False, **options):
    options = {"enable_checkpointing": False, "accelerator": "cpu", "log_every_n_steps": 1} | options
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(max_epochs=epochs, default_root_dir=folder, callbacks=list(callbacks), logger=logger, **quiet, **options)


def fit(folder, module, loader=None, ckpt_path=None, **options):
    made = trainer(folder, **options)
    made.fit(module, loader or data(), ckpt_path=ckpt_path)
    return made


def plain_loop(make, epochs=EPOCHS, accumulate=1, scaler=None, autocast=None, after_step=lambda optimizer, loss: None):
    """The same training without Lightning."""
    net = network()
    optimizer = make(net.parameters())
    for _ in range(epochs):
        for i, batch in enumerate(data()):
            if i % accumulate == 0:
                optimizer.zero_grad()
            with torch.autocast("cpu", autocast, enabled=autocast is not None, cache_enabled=False):
                loss = loss_of(net, batch) / accumulate
            (scaler.scale(loss) if scaler else loss).backward()
            if i % accumulate == accumulate - 1 or i == BATCHES - 1:
                if scaler:
                    scaler.step(optimizer)
                    scaler.update()
                else:
                    optimizer.step()
                after_step(optimizer, loss)
    return net, optimizer


def assert_same_run(module, optimizer, net, by_hand):
    for left, right in zip(module.net.parameters(), net.parameters(), strict=True):
        assert torch.equal(left, right)
    told = [optimizer.clipping_stats(), *optimizer.clipping_stats(per_set=True)]
    told_by_hand = [by_hand.clipping_stats(), *by_hand.clipping_stats(per_set=True)]
    assert told == [pytest.approx(stats, rel=0, abs=0, nan_ok=True) for stats in told_by_hand]
    assert torch.equal(optimizer.grad_norms(), by_hand.grad_norms())


@pytest.mark.parametrize("clipping_type", TYPES)
def test_automatic_optimization_is_the_plain_loop(clipping_type, tmp_path):
    make = partial(momentum, clipping_type=clipping_type, clipping_level=0.5 if clipping_type == "zclip" else None)
    module = Regression(make)
    optimizer = fit(tmp_path, module).optimizers[0]
    assert_same_run(module, optimizer, *plain_loop(make))
    assert optimizer.clipping_stats()["steps"] == (0 if clipping_type == "none" else EPOCHS * BATCHES)
    assert clipping_type == "none" or optimizer.clipping_stats()["clipped_steps"] > 0


@pytest.mark.parametrize(
    "make",
    [
        partial(ClippedAdamW, lr=0.05, clipping_type="auto"),
        lambda params: clip_optimizer(torch.optim.RMSprop(params), "norm", 0.5),
        lambda params: clip_optimizer(torch.optim.LBFGS(params, lr=0.1, max_iter=3), "norm", 0.5),
    ],
    ids=["adamw", "rmsprop", "lbfgs"],
)
def test_other_optimizers_too(make, tmp_path):
    module = Regression(make)
    optimizer = fit(tmp_path, module).optimizers[0]
    net = network()
    by_hand = make(net.parameters())
    for _ in range(EPOCHS):
        for batch in data():

            def closure():
                by_hand.zero_grad()
                loss = loss_of(net, batch)  # noqa: B023 (called in this turn of the loop)
                loss.backward()
                return loss

            by_hand.step(closure)
    assert_same_run(module, optimizer, net, by_hand)
    assert optimizer.clipping_stats()["clipped_steps"] > 0


def test_fabric_is_the_plain_loop(tmp_path):
    make = partial(momentum, clipping_type="auto")
    fabric = Fabric(accelerator="cpu", devices=1)
    module = Regression(make)
    optimizer = make(module.net.parameters())
    net, wrapper = fabric.setup(module.net, optimizer)
    for _ in range(EPOCHS):
        for batch in data():
            wrapper.zero_grad()
            fabric.backward(loss_of(net, batch))
            wrapper.step()
    assert_same_run(module, wrapper, *plain_loop(make))
    assert wrapper.clipping_stats() == optimizer.clipping_stats()
    fabric.save(tmp_path / "run.ckpt", {"optimizer": wrapper})
    other = fabric.setup_optimizers(make(network().parameters()))
    fabric.load(tmp_path / "run.ckpt", {"optimizer": other})
    assert_same(other.optimizer.state_dict(), optimizer.state_dict())


class Norms(pl.Callback):
    """The true norms as torch takes them, and those that stand in the gradients after the step."""

    def __init__(self):
        self.before, self.after, self.told = [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before.append(torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters()]).item())

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.after.append(torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters()]).item())
        self.told.append(trainer.optimizers[0].clipping_stats())


def test_gradient_of_the_closure_is_measured_and_clipped_in_the_same_step(tmp_path):
    norms = Norms()
    fit(tmp_path, Regression(partial(momentum, clipping_level=0.5)), callbacks=[norms])
    assert len(norms.before) == EPOCHS * BATCHES
    assert max(norms.before) > 0.5
    assert norms.before == pytest.approx([stats["grad_norm"] for stats in norms.told], rel=1e-6)
    assert norms.after == pytest.approx([min(norm, 0.5) for norm in norms.before], rel=1e-6)


def test_accumulated_gradient_is_clipped_once_as_a_whole(tmp_path):
    make = partial(momentum, clipping_type="auto", clipping_level=0.5)
    module = Regression(make)
    made = fit(tmp_path, module, accumulate_grad_batches=3, callbacks=[LightningClippingCallback()])
    assert_same_run(module, made.optimizers[0], *plain_loop(make, accumulate=3))
    assert made.logged_metrics["clipping/steps"] == 3 * EPOCHS  # 8 batches make 3 steps, the last one of 2 batches


def test_training_step_without_a_loss_is_no_step(tmp_path):
    class Sometimes(Regression):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 4 == 1 else super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match="`training_step` returned `None`"):
        made = fit(tmp_path, Sometimes(momentum), epochs=1)
    assert made.optimizers[0].clipping_stats()["steps"] == BATCHES * 3 / 4


def half_precision(init_scale=2.0**4):
    """Lightning's plugin for float16; ``precision="16-mixed"`` does not give it on the CPU. Its scale grows to 2**10 here."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=5))


def test_bfloat16_is_the_plain_loop(tmp_path):
    module = Regression(partial(momentum, clipping_level=0.5))
    optimizer = fit(tmp_path, module, precision="bf16-mixed").optimizers[0]
    assert_same_run(module, optimizer, *plain_loop(module.make, autocast=torch.bfloat16))
    assert optimizer.clipping_stats()["clipped_steps"] > 0


def test_float16_is_not_for_the_cpu_and_becomes_bfloat16(tmp_path):
    module = Regression(partial(momentum, clipping_level=0.5))
    with pytest.warns(UserWarning, match="Using `precision='bf16-mixed'` instead"):
        optimizer = fit(tmp_path, module, precision="16-mixed").optimizers[0]
    assert_same_run(module, optimizer, *plain_loop(module.make, autocast=torch.bfloat16))


@pytest.mark.parametrize("fused", [None, True], ids=["default", "fused"])
@pytest.mark.parametrize("init_scale", [2.0**4, 2.0**30], ids=["fits", "overflows"])
def test_gradient_scaler_is_the_plain_loop(init_scale, fused, tmp_path):
    make = partial(momentum, clipping_level=0.5, fused=fused)
    module, plugin = Regression(make), half_precision(init_scale)
    optimizer = fit(tmp_path, module, plugins=[plugin]).optimizers[0]
    scaler = half_precision(init_scale).scaler
    net, by_hand = plain_loop(make, scaler=scaler, autocast=torch.float16)
    stats = optimizer.clipping_stats()
    assert plugin.scaler.get_scale() == scaler.get_scale()
    assert 0 < stats["steps"] <= EPOCHS * BATCHES
    assert (stats["steps"] == EPOCHS * BATCHES) == (init_scale == 2.0**4)
    assert stats["clipped_steps"] > 0
    assert stats["skipped_steps"] == 0  # the scaler leaves them out by itself
    assert_same_run(module, optimizer, net, by_hand)


def test_fused_optimizer_clips_under_the_gradient_scaler_where_the_trainer_cannot(tmp_path):
    module = Regression(partial(torch.optim.SGD, lr=0.05, fused=True))
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(tmp_path, module, plugins=[half_precision()], gradient_clip_val=0.5)
    module = Regression(partial(ClippedSGD, lr=0.05, fused=True, clipping_level=0.5))
    stats = fit(tmp_path, module, plugins=[half_precision()]).optimizers[0].clipping_stats()
    assert stats["clipped_norm"] <= 0.5 * (1 + 1e-6)
    assert stats["clip_rate"] > 0


class Pair(pl.LightningModule):
    """Two networks against each other, each with an optimizer of its own that is stepped by hand."""

    def __init__(self, make, with_closure=False):
        super().__init__()
        self.automatic_optimization = False
        self.left, self.right = network(0), network(1)
        self.make, self.with_closure = make, with_closure

    def losses(self, batch):
        yield loss_of(self.left, batch) + (self.left(batch[0]) - self.right(batch[0]).detach()).square().mean()
        yield (self.right(batch[0]) + self.left(batch[0]).detach()).square().mean()

    def training_step(self, batch, batch_idx):
        for optimizer, loss in zip(self.optimizers(), self.losses(batch), strict=True):

            def backward():
                optimizer.zero_grad()  # noqa: B023 (called in this turn of the loop)
                self.manual_backward(loss)  # noqa: B023

            if self.with_closure:
                optimizer.step(closure=backward)
            else:
                backward()
                optimizer.step()

    def configure_optimizers(self):
        return self.make(self.left.parameters()), self.make(self.right.parameters(), clipping_level=0.5)


@pytest.mark.parametrize("with_closure", [False, True], ids=["step", "closure"])
@pytest.mark.parametrize("scaled", [False, True], ids=["float32", "float16"])
def test_manual_optimization_of_two_is_the_plain_loop(scaled, with_closure, tmp_path):
    module = Pair(momentum, with_closure)
    made = fit(tmp_path, module, plugins=[half_precision()] if scaled else [], callbacks=[LightningClippingCallback()])
    by_hand = Pair(momentum)
    optimizers, scaler = by_hand.configure_optimizers(), half_precision().scaler
    for _ in range(EPOCHS):
        for batch in data():
            with torch.autocast("cpu", torch.float16, enabled=scaled, cache_enabled=False):
                losses = by_hand.losses(batch)
                for optimizer in optimizers:
                    loss = next(losses)
                    optimizer.zero_grad()
                    if scaled:
                        scaler.scale(loss).backward()
                        scaler.unscale_(optimizer)
                        scaler.step(optimizer)
                        scaler.update()
                    else:
                        loss.backward()
                        optimizer.step()
    for left, right in zip(module.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(left, right)
    for i, (optimizer, other) in enumerate(zip(made.optimizers, optimizers, strict=True)):
        stats = other.clipping_stats()
        assert optimizer.clipping_stats() == stats
        assert stats["clipped_steps"] > 0
        for name, value in stats.items():
            assert made.logged_metrics[f"clipping/optimizer_{i}/{name}"] == pytest.approx(value, rel=1e-6)
    assert module.optimizers()[1].clipping_stats() == stats  # through Lightning's wrapper, which stands for the optimizer
    assert "clipping/grad_norm" not in made.logged_metrics


def every_step(scheduler, **options):
    return {"scheduler": scheduler, "interval": "step"} | options


def one_cycle(optimizer):
    return every_step(torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=EPOCHS * BATCHES + 1))


def plateau(optimizer):
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    return every_step(scheduler, monitor="loss")


@pytest.mark.parametrize("schedule", [one_cycle, plateau])
def test_learning_rate_schedulers_drive_the_optimizer(schedule, tmp_path):
    module = Regression(partial(momentum, clipping_level=0.5), schedule)
    made = fit(tmp_path, module)
    schedulers = {}

    def after_step(optimizer, loss):
        schedulers["it"].step(loss.detach()) if schedule is plateau else schedulers["it"].step()

    def make(params):
        optimizer = module.make(params)
        schedulers["it"] = schedule(optimizer)["scheduler"]
        return optimizer

    net, by_hand = plain_loop(make, after_step=after_step)
    assert_same_run(module, made.optimizers[0], net, by_hand)
    assert made.optimizers[0].param_groups[0]["lr"] == by_hand.param_groups[0]["lr"] != 0.05


class Warming(Regression):
    """A module that steps a LevelScheduler as Lightning steps those of the learning rate."""

    def __init__(self):
        super().__init__(momentum, lambda optimizer: every_step(LevelScheduler(optimizer, linear_warmup(0.1, 0.9, 4 * BATCHES))))

    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step()


def test_level_scheduler_is_stepped_and_resumed_like_others(tmp_path):
    made = fit(tmp_path, Warming(), epochs=1)
    assert made.optimizers[0].param_groups[0]["clipping_level"] == pytest.approx(0.3)
    made.save_checkpoint(tmp_path / "run.ckpt")
    made = fit(tmp_path, Warming(), epochs=2, ckpt_path=tmp_path / "run.ckpt")
    assert made.optimizers[0].param_groups[0]["clipping_level"] == pytest.approx(0.5)


@pytest.mark.parametrize("clipping_type", WITH_MEMORY)
@pytest.mark.parametrize("scaled", [False, True], ids=["float32", "float16"])
def test_resumed_run_is_the_unbroken_one(scaled, clipping_type, tmp_path):
    def plugins():
        return [half_precision()] if scaled else []

    make = partial(momentum, clipping_type=clipping_type, clipping_window=10)
    unbroken = fit(tmp_path, Regression(make), plugins=plugins())
    fit(tmp_path, Regression(make), epochs=2, plugins=plugins()).save_checkpoint(tmp_path / "run.ckpt")
    resumed = fit(tmp_path, Regression(make), ckpt_path=tmp_path / "run.ckpt", plugins=plugins())
    assert resumed.optimizers[0].clipping_stats()["steps"] == EPOCHS * BATCHES
    assert_same_run(resumed.model, resumed.optimizers[0], unbroken.model.net, unbroken.optimizers[0])
    assert_same(resumed.optimizers[0].state_dict(), unbroken.optimizers[0].state_dict())


def test_checkpoint_is_read_without_running_code(tmp_path):
    made = fit(tmp_path, Regression(partial(momentum, clipping_type="auto")), epochs=1)
    made.save_checkpoint(tmp_path / "run.ckpt")
    read = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert_same(read["optimizer_states"][0], made.optimizers[0].state_dict())


@pytest.mark.parametrize("scale", [1.0, 0.1], ids=["norms above 1", "norms below 1"])
@pytest.mark.parametrize("level", [0.3, 0.7], ids=["optimizer clips more", "trainer clips more"])
def test_clipping_by_the_trainer_too_is_told(level, scale, tmp_path):
    module = Regression(partial(ClippedSGD, lr=1e-5, clipping_level=level * scale), scale=scale)
    norms = Norms()
    with pytest.warns(ClippingWarning, match="already .*gradient_clip_val") as caught:
        made = fit(tmp_path, module, epochs=25, gradient_clip_val=0.5 * scale, callbacks=[norms])
    assert len([w for w in caught if w.category is ClippingWarning]) == 1
    assert min(norms.before) > 0.5 * scale
    assert made.optimizers[0].clipping_stats()["grad_norm"] == pytest.approx(0.5 * scale, rel=1e-4)  # not the true one


def test_clipping_by_the_optimizer_alone_tells_the_true_norm_and_warns_of_nothing(tmp_path):
    norms = Norms()
    module = Regression(partial(ClippedSGD, lr=1e-5, clipping_level=0.7))
    made = fit(tmp_path, module, epochs=25, callbacks=[norms, LightningClippingCallback()])
    assert len(norms.before) == 25 * BATCHES
    assert made.optimizers[0].grad_norms().tolist() == pytest.approx(norms.before, rel=1e-6)
    assert made.logged_metrics["clipping/grad_norm"] == pytest.approx(norms.before[-1], rel=1e-6)


def test_callback_tells_of_clipping_by_the_trainer_at_once(tmp_path):
    options = {"epochs": 1, "gradient_clip_val": 0.5, "callbacks": [LightningClippingCallback()]}
    with pytest.warns(ClippingWarning, match=r"gradient_clip_val must be None .* got 0\.5"):
        fit(tmp_path, Regression(momentum), **options)
    fit(tmp_path, Regression(partial(momentum, clipping_type="none")), **options)


def test_statistics_stand_in_the_files_of_the_loggers_at_the_steps_that_are_logged(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board, table, norms = TensorBoardLogger(tmp_path / "board"), CSVLogger(tmp_path / "table"), Norms()
    fit(
        tmp_path,
        Regression(partial(momentum, clipping_level=0.5)),
        logger=[board, table],
        log_every_n_steps=3,
        callbacks=[LightningClippingCallback(), norms],
    )
    steps = list(range(2, EPOCHS * BATCHES, 3))
    events = EventAccumulator(board.log_dir).Reload()
    with (Path(table.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == steps
    for name in norms.told[0]:
        expected = [norms.told[step][name] for step in steps]
        written = events.Scalars(f"clipping/{name}")
        assert [event.step for event in written] == steps
        assert [event.value for event in written] == pytest.approx(expected, rel=1e-6)
        assert [float(row[f"clipping/{name}"]) for row in rows] == pytest.approx(expected, rel=1e-6)
    assert [float(row["clipping/grad_norm"]) for row in rows] == pytest.approx([norms.before[step] for step in steps], rel=1e-6)


def test_statistics_are_read_at_the_steps_that_are_logged_only(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(
        ClippedSGD, "clipping_stats", lambda self, per_set=False: reads.append(per_set) or ([] if per_set else {})
    )
    fit(tmp_path, Regression(momentum), epochs=1, log_every_n_steps=4, callbacks=[LightningClippingCallback()])
    assert reads == [False, True] * 2
    fit(tmp_path, Regression(momentum), epochs=1, log_every_n_steps=0, callbacks=[LightningClippingCallback()])
    assert len(reads) == 4


def test_each_clip_set_has_its_names_and_values_that_are_not_finite_are_left_out(tmp_path):
    def make(params):
        weight, *others = params
        return ClippedSGD(
            [{"params": [weight], "clipping_type": "value"}, {"params": others, "clipping_type": "zscore"}], lr=0.01
        )

    made = fit(tmp_path, Regression(make), epochs=1, callbacks=[LightningClippingCallback()])
    whole, *sets = made.optimizers[0].clipping_stats(), *made.optimizers[0].clipping_stats(per_set=True)
    expected = {f"clipping/{name}": value for name, value in whole.items()}
    expected |= {f"clipping/set_{i}/{name}": value for i, stats in enumerate(sets) for name, value in stats.items()}
    for name in ("clipping/grad_norm", "clipping/set_0/grad_norm"):  # clipping entry by entry takes no norm
        assert expected.pop(name) != expected.get(name)
    logged = {name: value.item() for name, value in made.logged_metrics.items() if name != "loss"}
    assert logged == pytest.approx({name: value for name, value in expected.items() if value == value}, rel=1e-6)
    assert "clipping/set_1/grad_norm" in logged


def test_threshold_that_is_not_known_yet_is_left_out(tmp_path):
    module = Regression(partial(momentum, clipping_type="zscore"))
    made = fit(tmp_path, module, epochs=1, limit_train_batches=1, callbacks=[LightningClippingCallback()])
    assert made.optimizers[0].clipping_stats()["threshold"] == float("inf")
    assert "clipping/threshold" not in made.logged_metrics
    assert made.logged_metrics["clipping/steps"] == 1


def test_optimizer_that_does_not_clip_is_refused_before_training(tmp_path):
    class Half(Pair):
        def configure_optimizers(self):
            return ClippedSGD(self.left.parameters()), torch.optim.SGD(self.right.parameters())

    module = Half(None)
    before = [p.clone() for p in module.parameters()]
    with pytest.raises(TypeError, match=r"optimizer must be one that clips, .* got SGD"):
        fit(tmp_path, module, callbacks=[LightningClippingCallback()])
    assert all(map(torch.equal, before, module.parameters()))


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")  # which Lightning calls experimental
def test_statistics_are_logged_where_the_step_takes_the_iterator(tmp_path):
    class Iterating(Regression):
        def training_step(self, dataloader_iter):
            return loss_of(self.net, next(dataloader_iter)[0])

    made = fit(tmp_path, Iterating(momentum), epochs=1, callbacks=[LightningClippingCallback()])
    assert made.logged_metrics["clipping/steps"] == BATCHES


def test_callback_works_under_the_older_name_of_the_library_too(tmp_path):
    pytorch_lightning = pytest.importorskip(
        "pytorch_lightning", reason="pytorch_lightning is not installed", exc_type=ImportError
    )

    class Older(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, batch_idx):
            return loss_of(self.net, batch)

        def configure_optimizers(self):
            return momentum(self.parameters())

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    options = {"max_epochs": 1, "log_every_n_steps": 1, "accelerator": "cpu", "default_root_dir": tmp_path}
    made = pytorch_lightning.Trainer(callbacks=[LightningClippingCallback()], **options, **quiet)
    made.fit(Older(), data())
    assert made.logged_metrics["clipping/steps"] == BATCHES


class TestWrapper:
    """Lightning's wrapper takes the class of the optimizer and hands attributes on; methods run on the wrapper itself."""

    def make(self):
        params = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))]
        optimizer = ClippedSGD(params[:1], lr=0.1, clipping_type="auto", clipping_window=5)
        return params, optimizer, pl.core.optimizer.LightningOptimizer(optimizer)

    def step(self, params, optimizer):
        for param in params:
            param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(len(optimizer.grad_norms())))
        optimizer.step()

    def test_settings_written_after_it_was_printed_reach_the_optimizer(self):
        _, optimizer, wrapper = self.make()
        state = optimizer.state_dict()
        assert "clipping_type: auto" in repr(wrapper)
        optimizer.load_state_dict(state)  # makes new groups
        wrapper.param_groups[0]["clipping_level"] = 0.3
        assert optimizer.param_groups[0]["clipping_level"] == 0.3

    def test_group_added_through_it_is_clipped_and_told(self):
        params, optimizer, wrapper = self.make()
        self.step(params[:1], optimizer)
        wrapper.add_param_group({"params": params[1:]})
        for _ in range(7):
            self.step(params, optimizer)
            assert wrapper.clipping_stats() == optimizer.clipping_stats()
            assert wrapper.grad_norms().tolist() == optimizer.grad_norms().tolist()
        lengths = torch.cat([param.grad for param in params])
        assert optimizer.clipping_stats()["clipped_norm"] == pytest.approx(lengths.norm().item(), rel=1e-6)
        assert optimizer.clipping_stats()["clipped_steps"] > 0


def test_every_python_block_of_the_guide_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = pages.python_blocks(pages.sections(pages.page("docs/integrations.md"))["Lightning"])
    assert blocks
    pages.run(blocks, "docs/integrations.md, Lightning")
    steps, first_name, level = re.findall(r"^(?:tensor|clipping/|0\.).*", capsys.readouterr().out, flags=re.MULTILINE)
    assert (steps, first_name, round(float(level), 3)) == ("tensor(32.)", "clipping/optimizer_0/clip_rate", 0.82)
