"""ZeroRedundancyOptimizer and the older FullyShardedDataParallel: what clips the whole gradient, and what is refused."""

from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
from programs import Model, losses, under_ddp, weights_of

from torch_clipped import ClippedAdamW, ClippedSGD, GradientClipper, clip_gradients_, clip_optimizer
from torch_clipped.clipping import CLIPPING_TYPES

SELDOM = ("none", "zscore", "layer_wise_zscore", "zclip")  # do not clip in so few steps
KINDS = {
    "SGD": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.5}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
}


def zero(params, kind, **arguments):
    """A ZeroRedundancyOptimizer; torch needs a second to import it."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    optimizer_class, own = KINDS[kind]
    return ZeroRedundancyOptimizer(params, optimizer_class, **own, **arguments)


def groups_of(model):
    """Two groups of unequal sizes."""
    first, second = (list(layer.parameters()) for layer in (model.module.first, model.module.second))  # torch uses up iterators
    return [{"params": first}, {"params": second, "lr": 0.005}]


def go_on(model, optimizer, steps, clip=lambda: None):
    """Steps under a learning rate schedule, with clipping arguments that are edited on the way."""
    for step, loss in zip(steps, losses(model, steps, True), strict=True):
        if step == 8:
            for group in optimizer.param_groups:
                group["lr"] /= 2
        optimizer.zero_grad()
        loss.backward()
        clip()
        optimizer.step()


def trained_sharded_and_not(kind, steps):
    """For every type: is the run around ZeRO that of the optimizer without, bit for bit, and the same by hand?"""
    optimizer_class, own = KINDS[kind]
    results = {}
    for clipping_type in CLIPPING_TYPES:
        weights, stats = [], []
        for bucket_view in (None, kind == "SGD"):
            model = under_ddp(Model())
            if bucket_view is None:
                plain = optimizer_class(groups_of(model), fused=False, **own)
            else:
                plain = zero(groups_of(model), kind, parameters_as_bucket_view=bucket_view)
            optimizer = clip_optimizer(plain, clipping_type)
            go_on(model, optimizer, range(steps))
            weights.append(weights_of(model))
            stats.append(optimizer.clipping_stats())
        model = under_ddp(Model())
        clipper = GradientClipper(model.parameters(), clipping_type)
        go_on(model, zero(groups_of(model), kind), range(steps), clipper.step)
        results[clipping_type] = [*weights, weights_of(model)], [*stats, clipper.clipping_stats()]
    return results


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_around_zero_is_clipping_without_it(two, kind):
    results = two.run(trained_sharded_and_not, kind, 14, seconds=180)
    for clipping_type in CLIPPING_TYPES:
        expected = results[0][clipping_type][0][0]
        for weights, stats in (r[clipping_type] for r in results):
            assert all(torch.equal(each, expected) for each in weights)
            assert len({str(each) for each in stats}) == 1
            assert stats[0]["clipped_steps"] > 0 or clipping_type in SELDOM


def inside(clipping_type, optimizer_class):
    """The errors of a clipping optimizer inside ZeRO: made by its class, made by a function."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def made(params, lr):
        return clip_optimizer(torch.optim.SGD(params, lr=lr), clipping_type)

    errors = []
    for inner, arguments in ((optimizer_class, {"clipping_type": clipping_type}), (made, {})):
        params = [torch.nn.Parameter(torch.zeros(3))]  # none for rank 1, which must not wait for rank 0
        try:
            ZeroRedundancyOptimizer(params, inner, lr=0.1, **arguments)
        except ValueError as error:
            errors.append(str(error))
    return errors


@pytest.mark.parametrize("optimizer_class", [ClippedSGD, ClippedAdamW])
def test_clipping_inside_zero_is_refused_on_every_rank(two, optimizer_class):
    assert two.run(inside, "none", optimizer_class) == [[], []]
    for errors in two.run(inside, "norm", optimizer_class):
        assert len(errors) == 2
        for error in errors:
            assert "clipping_type must be 'none'" in error
            assert "'norm'" in error
            assert "clip_optimizer(ZeroRedundancyOptimizer(" in error


def overlapping():
    from torch.distributed.optim import ZeroRedundancyOptimizer

    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = ZeroRedundancyOptimizer([weight], torch.optim.SGD, lr=0.1, overlap_with_ddp=True)
    with pytest.raises(ValueError, match="overlap_with_ddp must be False"):
        clip_optimizer(optimizer)


def test_zero_that_steps_during_backward_is_refused(two):
    two.run(overlapping)


def resumed(kind, clipping_type):
    """The weights and the statistics of an unbroken run, and of one that went on from its consolidated state."""
    model = under_ddp(Model())
    optimizer = clip_optimizer(zero(groups_of(model), kind), clipping_type, clipping_window=7)
    go_on(model, optimizer, range(40))
    optimizer.consolidate_state_dict(to=0)
    state = [deepcopy(optimizer.state_dict()) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(state, src=0)
    other = under_ddp(Model())
    other.module.load_state_dict(model.module.state_dict())
    other_optimizer = clip_optimizer(zero(groups_of(other), kind), "norm")
    other_optimizer.load_state_dict(state[0])
    ends = []
    for each, each_optimizer in ((model, optimizer), (other, other_optimizer)):
        go_on(each, each_optimizer, range(40, 80))
        ends.append((weights_of(each), each_optimizer.clipping_stats()))
    return ends


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clipping_type", ["linear_rand_auto", "layer_wise_auto", "adagc"])
def test_consolidated_state_goes_on_bit_for_bit(two, kind, clipping_type):
    results = two.run(resumed, kind, clipping_type)
    weights, stats = results[0][0]
    for ends in results:
        for each_weights, each_stats in ends:
            assert torch.equal(each_weights, weights)
            assert each_stats == stats
    assert stats["steps"] == 80
    assert stats["clipped_steps"] > 0


def older_sharding():
    """What clipping says to the parameters of FullyShardedDataParallel."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    errors = []
    for use_orig_params in (False, True):
        model = FullyShardedDataParallel(Model(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
        for clip in (
            lambda params: ClippedSGD(params),
            lambda params: clip_optimizer(torch.optim.SGD(params)),
            lambda params: GradientClipper(params),
            lambda params: clip_gradients_(params),
        ):
            with pytest.raises(ValueError, match="parameters must be") as caught:
                clip(model.parameters())
            errors.append(str(caught.value))
        unclipped = ClippedSGD(model.parameters(), clipping_type="none")
        unclipped.step()
        unclipped.param_groups[0]["clipping_type"] = "layer_wise"
        late = ClippedSGD([torch.nn.Parameter(torch.zeros(1))])
        late.add_param_group({"params": model.parameters()})
        for optimizer in (unclipped, late):
            with pytest.raises(ValueError, match="parameters must be") as caught:
                optimizer.step()
            errors.append(str(caught.value))
    return errors


def test_parameters_of_the_older_sharding_are_refused(two):
    for errors in two.run(older_sharding):
        assert len(errors) == 12
        assert all("torch.distributed.fsdp.fully_shard" in error for error in errors)
