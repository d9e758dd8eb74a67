"""DistributedDataParallel: all ranks decide alike, and arrive where a single process with all the data arrives."""

import warnings

import pytest
import torch
import torch.distributed as dist
from programs import Model, device_arithmetic, losses, under_ddp, weights_of

from torch_clipped import ClippedAdamW, ClippedSGD, ClippingWarning
from torch_clipped.clipping import CLIPPING_TYPES

RANDOM = ("linear_rand_norm", "quadratic_rand_norm", "linear_rand_auto", "quadratic_rand_auto")
STATEFUL = ("auto", "linear_rand_auto", "layer_wise_zscore", "zclip", "adagc")


def assert_bit_identical(one, other):
    assert torch.equal(one.view(torch.int32), other.view(torch.int32))


def trained(clipping_type, distributed, steps=200, with_unused=False):
    """Weights, statistics and what each step did."""
    model = Model(with_unused)
    if distributed:
        model = under_ddp(model, find_unused_parameters=with_unused)
    optimizer = ClippedSGD(model.parameters(), lr=0.01, momentum=0.5, clipping_type=clipping_type)
    done = []
    for loss in losses(model, range(steps), distributed):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done.append(optimizer.clipping_stats())
    without = [name for name, p in model.named_parameters() if p.grad is None]
    return weights_of(model), done[-1], torch.tensor([[s["grad_norm"], s["threshold"], s["coefficient"]] for s in done]), without


def trained_with_every_type(*arguments):
    """All types in one run: the collectives of one after the other."""
    return {name: trained(name, *arguments) for name in CLIPPING_TYPES}


@pytest.fixture(scope="module")
def of_two_ranks(two):
    return two.run(trained_with_every_type, True, seconds=180)


@pytest.mark.parametrize("clipping_type", CLIPPING_TYPES)
def test_all_ranks_hold_the_same_weights_and_those_of_a_single_process(of_two_ranks, clipping_type):
    (weights, stats, done, _), (other_weights, other_stats, other_done, _) = (r[clipping_type] for r in of_two_ranks)
    assert_bit_identical(weights, other_weights)
    torch.testing.assert_close(done, other_done, rtol=0, atol=0, equal_nan=True)
    alone, alone_stats, alone_done, _ = trained(clipping_type, False)
    torch.testing.assert_close(weights, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(done, alone_done, rtol=1e-3, atol=1e-5, equal_nan=True)
    if clipping_type != "none":
        assert 0 < stats["clipped_steps"] == other_stats["clipped_steps"] == alone_stats["clipped_steps"]
        assert stats["steps"] == 200


@pytest.mark.parametrize("clipping_type", RANDOM)
def test_random_types_clip_some_long_gradients_and_let_others_pass_on_every_rank_alike(of_two_ranks, clipping_type):
    decisions = []
    for results in of_two_ranks:
        norms, thresholds, coefficients = results[clipping_type][2].unbind(1)
        decisions.append(coefficients[norms > thresholds] < 1)
    assert torch.equal(*decisions)
    assert decisions[0].any()
    assert not decisions[0].all()


def trained_on_device(*arguments):
    with device_arithmetic():
        return trained_with_every_type(*arguments)


def test_ranks_agree_in_the_arithmetic_of_accelerators(two):
    results = two.run(trained_on_device, True, 32)
    for clipping_type in CLIPPING_TYPES:
        (weights, stats, *_), (other_weights, other_stats, *_) = (r[clipping_type] for r in results)
        assert_bit_identical(weights, other_weights)
        assert str(stats) == str(other_stats)  # NaN is not equal to itself
        alone, alone_stats, *_ = trained(clipping_type, False, 32)
        torch.testing.assert_close(weights, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stats, alone_stats, rtol=1e-3, atol=1e-5, equal_nan=True)


def test_parameters_without_a_gradient_on_any_rank(two):
    results = two.run(trained_with_every_type, True, 32, True)
    for clipping_type in CLIPPING_TYPES:
        (weights, stats, done, without), (other_weights, _, other_done, _) = (r[clipping_type] for r in results)
        assert without == [f"module.{name}.{kind}" for name in ("sometimes", "never") for kind in ("weight", "bias")]
        assert_bit_identical(weights, other_weights)
        torch.testing.assert_close(done, other_done, rtol=0, atol=0, equal_nan=True)
        alone, alone_stats, _, _ = trained(clipping_type, False, 32, True)
        torch.testing.assert_close(weights, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stats, alone_stats, rtol=1e-3, atol=1e-5, equal_nan=True)


def infinite_on_rank_one(loss, model, distributed):
    """One entry of the last weight gets an infinite gradient, in rank 1's part of the loss only."""
    if distributed and dist.get_rank() != 1:
        return loss
    return loss + torch.inf * model.second.weight[0, 1]


def trained_past_infinity(nonfinite, clipping_type, distributed):
    """Steps of which the fourth has a gradient that is not finite; the weights after each, statistics, errors, warnings."""
    model = Model()
    parallel = under_ddp(model) if distributed else model
    optimizer = ClippedSGD(model.parameters(), lr=0.01, momentum=0.5, clipping_type=clipping_type, nonfinite=nonfinite)
    weights, errors = [], list[str]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step, loss in enumerate(losses(parallel, range(8), distributed)):
            optimizer.zero_grad()
            (infinite_on_rank_one(loss, model, distributed) if step == 3 else loss).backward()
            try:
                optimizer.step()
            except RuntimeError as error:
                errors.append(str(error))
            weights.append(weights_of(model))
    return torch.stack(weights), optimizer.clipping_stats(), errors, [w.category for w in caught]


@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise_auto", "linear_rand_auto"])
@pytest.mark.parametrize("nonfinite", ["skip", "error", "zero", "propagate"])
def test_infinity_on_one_rank_is_answered_alike_by_all(two, nonfinite, clipping_type):
    (weights, stats, errors, caught), (other_weights, *others) = two.run(trained_past_infinity, nonfinite, clipping_type, True)
    assert_bit_identical(weights, other_weights)
    assert str([stats, errors, caught]) == str(others)  # NaN is not equal to itself
    alone, alone_stats, *alone_others = trained_past_infinity(nonfinite, clipping_type, False)
    torch.testing.assert_close(weights, alone, rtol=1e-4, atol=1e-6, equal_nan=True)
    assert [errors, caught] == alone_others
    assert (stats["steps"], stats["skipped_steps"]) == (alone_stats["steps"], alone_stats["skipped_steps"])
    assert len(errors) == (nonfinite == "error")
    assert all("is not finite; nothing was changed" in error for error in errors)
    assert stats["skipped_steps"] == (nonfinite == "skip")
    assert caught == [ClippingWarning] * (nonfinite == "skip")
    assert torch.equal(weights[3], weights[2]) == (nonfinite in ("skip", "error"))
    assert weights.isfinite().all() == (nonfinite != "propagate")


def trained_with_scaler(optimizer_class, fused, clipping_type, distributed):
    """Steps under a gradient scaler, with an overflow in rank 1's part of step 4."""
    model = Model()
    parallel = under_ddp(model) if distributed else model
    optimizer = optimizer_class(model.parameters(), lr=0.01, clipping_type=clipping_type, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=5)
    scales = []
    for step, loss in enumerate(losses(parallel, range(20), distributed)):
        optimizer.zero_grad()
        scaler.scale(infinite_on_rank_one(loss, model, distributed) if step == 4 else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return weights_of(model), scales, optimizer.clipping_stats()


@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise", "linear_rand_auto"])
@pytest.mark.parametrize("fused", [None, True, False])
@pytest.mark.parametrize("optimizer_class", [ClippedSGD, ClippedAdamW])
def test_gradient_scaler_with_an_overflow_on_one_rank(two, optimizer_class, fused, clipping_type):
    (weights, scales, stats), others = two.run(trained_with_scaler, optimizer_class, fused, clipping_type, True)
    assert_bit_identical(weights, others[0])
    assert [scales, stats] == list(others[1:])
    alone, alone_scales, alone_stats = trained_with_scaler(optimizer_class, fused, clipping_type, False)
    torch.testing.assert_close(weights, alone, rtol=1e-4, atol=1e-5)
    assert scales == alone_scales
    assert len(set(scales)) > 2  # one step was left out, and the scale grew after it
    torch.testing.assert_close(stats, alone_stats, rtol=1e-4, atol=1e-5)
    assert stats["steps"] == 19
    assert stats["clipped_steps"] > 0


def trained_through_checkpoint(path, clipping_type, optimizer_class):
    """The weights at the end of an unbroken run, and of one that went on from its checkpoint on rank 0."""

    def made():
        model = under_ddp(Model())
        return model, optimizer_class(model.parameters(), lr=0.01, clipping_type=clipping_type, clipping_window=7)

    def go_on(model, optimizer, steps):
        for loss in losses(model, steps, True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    model, optimizer = made()
    go_on(model, optimizer, range(40))
    if dist.get_rank() == 0:
        torch.save([model.module.state_dict(), optimizer.state_dict()], path)
    dist.barrier()
    go_on(model, optimizer, range(40, 80))
    resumed, resumed_optimizer = made()
    weights, state = torch.load(path, weights_only=True)
    resumed.module.load_state_dict(weights)
    resumed_optimizer.load_state_dict(state)
    go_on(resumed, resumed_optimizer, range(40, 80))
    return [weights_of(model), weights_of(resumed)], [optimizer.clipping_stats(), resumed_optimizer.clipping_stats()]


@pytest.mark.parametrize("optimizer_class", [ClippedSGD, ClippedAdamW])
@pytest.mark.parametrize("clipping_type", STATEFUL)
def test_checkpoint_of_rank_zero_goes_on_bit_for_bit_on_both(two, tmp_path, clipping_type, optimizer_class):
    results = two.run(trained_through_checkpoint, str(tmp_path / "checkpoint.pt"), clipping_type, optimizer_class)
    expected = results[0][0][0]
    for weights, stats in results:
        for each in weights:
            assert_bit_identical(each, expected)
        assert str(stats[0]) == str(stats[1])
    assert results[0][1][0]["clipped_steps"] > 0
