"""``fully_shard`` with each rank's own data: the weights and the memory of a single process that has all of it."""

from unittest.mock import patch

import programs
import pytest
import torch
import torch.distributed as dist
from programs import Model, losses
from sharded import whole
from support.versions import needs_torch
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from torch_clipped import ClippedAdamW, ClippedSGD
from torch_clipped.clipping import CLIPPING_TYPES, Clipping
from torch_clipped.thresholds import AdaGC, ZClip

pytestmark = needs_torch("2.9", "FSDP2 on the CPU")

SGD = (ClippedSGD, {"lr": 0.01, "momentum": 0.5})
ADAMW = (ClippedAdamW, {"lr": 0.01})
LEVELS = {  # so low that each type clips some of a few steps
    **dict.fromkeys(("norm", "linear_rand_norm", "quadratic_rand_norm"), 2.0),
    **dict.fromkeys(("zscore", "layer_wise_zscore", "zclip", "linear_rand_auto", "quadratic_rand_auto", "coord_wise"), 0.5),
    **{"layer_wise": 1.0, "auto": 0.6, "layer_wise_auto": 0.6, "adaptive": 0.3},
}
FIRST = 40  # steps from here on begin with small gradients
SHORT_WARM_UPS = {"zclip": Clipping("global", ZClip(2.5, warm_up=4)), "adagc": Clipping("layer", AdaGC(1.04, warm_up=4))}


def sharded(model, **arguments):
    """The model spread over all ranks: first dimensions of 6 and 3, of which the last of four ranks has nothing."""
    return fully_shard(model, mesh=programs.mesh(dist.get_world_size()), **arguments)


def by_columns(parameter):
    """Columns where each rank gets as many, for ``shard_placement_fn``."""
    return Shard(1) if parameter.dim() == 2 and parameter.shape[1] % dist.get_world_size() == 0 else None


def train(model, optimizer, steps, distributed=True):
    """Steps on this rank's own batches, or on those of all ranks."""
    for loss in losses(model, steps, distributed, dist.get_world_size()):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def weights_of(model):
    return torch.cat([whole(p).flatten() for p in model.parameters()])


def remembered(optimizer):
    """All that clipping did, to the last bit."""
    return repr(optimizer.clipping_stats()), optimizer.grad_norms().tolist()


def compare(model, optimizer, single_model, single_optimizer, what, rtol=1e-4, atol=1e-5):
    """Weights and statistics are those of the single process, but for rounding."""
    torch.testing.assert_close(
        weights_of(model), weights_of(single_model), rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{what}: {text}"
    )
    stats, single_stats = optimizer.clipping_stats(), single_optimizer.clipping_stats()
    assert stats == pytest.approx(single_stats, rel=1e-4, nan_ok=True), what
    torch.testing.assert_close(optimizer.grad_norms(), single_optimizer.grad_norms(), rtol=1e-4, atol=0)


def agreed(results):
    """What each rank returned, if it is the same on all of them."""
    assert all(result == results[0] for result in results)
    return results[0]


def every_type(names, run, steps, with_unused):
    found = {}
    (optimizer_class, arguments), placement = run
    with patch.dict(CLIPPING_TYPES, SHORT_WARM_UPS):
        for name in names:
            model, single = Model(with_unused), Model(with_unused)
            sharded(model, shard_placement_fn=placement)
            options = {"clipping_type": name, "clipping_level": LEVELS.get(name), **arguments}
            optimizer, alone = (optimizer_class(m.parameters(), **options) for m in (model, single))
            train(model, optimizer, range(FIRST, FIRST + steps))
            train(single, alone, range(FIRST, FIRST + steps), distributed=False)
            compare(model, optimizer, single, alone, name)
            assert name == "none" or optimizer.clipping_stats()["clipped_steps"] > 0, name
            found[name] = remembered(optimizer)
    return found


@pytest.mark.parametrize("run", [(SGD, None), (ADAMW, by_columns)], ids=["SGD on rows", "AdamW on columns"])
def test_every_type_trains_as_in_one_process_on_two_ranks(two, run):
    assert len(agreed(two.run(every_type, [*CLIPPING_TYPES], run, 10, False, seconds=240))) == len(CLIPPING_TYPES)


@pytest.mark.parametrize(("run", "start"), [((SGD, by_columns), 0), ((ADAMW, None), 1)], ids=["SGD on columns", "AdamW on rows"])
def test_every_type_trains_as_in_one_process_on_four_ranks_with_empty_shards_and_missing_gradients(four, run, start):
    agreed(four.run(every_type, [*CLIPPING_TYPES][start::2], run, 8, True, seconds=240))


def precision(policy):
    """Ours and torch's, which starts each step from our weights: so that both round alike in bfloat16."""
    policy, differences = MixedPrecisionPolicy(**policy), []
    for (optimizer_class, options), plain in ((SGD, torch.optim.SGD), (ADAMW, torch.optim.AdamW)):
        model, other = sharded(Model(), mp_policy=policy), sharded(Model(), mp_policy=policy)
        ours, theirs = optimizer_class(model.parameters(), clipping_level=2.0, **options), plain(other.parameters(), **options)
        for step in range(FIRST, FIRST + 8):
            with torch.no_grad():
                for p, q in zip(other.parameters(), model.parameters(), strict=True):
                    p.copy_(q)
            train(model, ours, [step])
            (loss,) = losses(other, [step], True)
            theirs.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(other.parameters(), 2.0).full_tensor().item()
            theirs.step()
            assert ours.clipping_stats()["grad_norm"] == pytest.approx(norm, rel=1e-5)
            torch.testing.assert_close(weights_of(model), weights_of(other), rtol=1e-5, atol=1e-6)
        assert 0 < ours.clipping_stats()["clip_rate"] < 1
    for name in CLIPPING_TYPES:
        model = sharded(Model(), mp_policy=policy)
        optimizer = ClippedAdamW(model.parameters(), clipping_type=name, clipping_level=LEVELS.get(name))
        train(model, optimizer, range(FIRST, FIRST + 3))
        differences.append((remembered(optimizer), weights_of(model).tolist()))
    return differences


@pytest.mark.parametrize("reduced", [torch.float32, torch.bfloat16], ids=str)
def test_mixed_precision_is_clipped_as_by_torch_and_ranks_agree_for_every_type(two, reduced):
    agreed(two.run(precision, {"param_dtype": torch.bfloat16, "reduce_dtype": reduced}, seconds=120))


def average_(parameter):
    """For gradients that ``fully_shard`` does not average."""
    dist.all_reduce(parameter.grad)
    parameter.grad.div_(dist.get_world_size())


def beside_others():
    """Plain parameters beside sharded ones, parameters on the host by policy, gradients that are summed over two batches."""
    found = []
    for name in ("norm", "layer_wise_auto", "coord_wise", "adaptive"):
        for optimizer_class, arguments in (SGD, ADAMW):
            options = {"clipping_type": name, "clipping_level": LEVELS[name], **arguments}
            models = [Model() for _ in range(5)]
            single, parts, ignoring, offloaded, sharded_model = models
            sharded(parts.second)
            sharded(ignoring, ignored_params={ignoring.second.weight})
            for plain in (*parts.first.parameters(), ignoring.second.weight):
                plain.register_post_accumulate_grad_hook(average_)
            sharded(offloaded, offload_policy=CPUOffloadPolicy(pin_memory=False))
            sharded(sharded_model)
            optimizers = [optimizer_class(m.parameters(), **options) for m in models]
            for m, optimizer in zip(models, optimizers, strict=True):
                train(m, optimizer, range(FIRST, FIRST + 6), m is not single)
            for m, optimizer in zip(models[1:], optimizers[1:], strict=True):
                compare(m, optimizer, single, optimizers[0], name)
                found.append(remembered(optimizer))
            assert torch.equal(weights_of(offloaded), weights_of(sharded_model))
    return found


def test_plain_and_offloaded_parameters_train_as_in_one_process(two):
    agreed(two.run(beside_others, seconds=120))


def accumulated():
    """Gradients of two batches, of which only the second is reduced."""
    found = []
    for name in ("norm", "adaptive"):
        models = sharded(Model()), Model()
        optimizers = [ClippedSGD(m.parameters(), lr=0.01, clipping_type=name, clipping_level=LEVELS[name]) for m in models]
        for model, optimizer in zip(models, optimizers, strict=True):
            for i, loss in enumerate(losses(model, range(FIRST, FIRST + 8), model is models[0])):
                if model is models[0]:
                    model.set_requires_gradient_sync(i % 2 == 1)  # before the backward pass
                loss.backward()
                if i % 2:
                    optimizer.step()
                    optimizer.zero_grad()
        compare(models[0], optimizers[0], models[1], optimizers[1], name)
        found.append(remembered(optimizers[0]))
    return found


def test_accumulated_gradients_are_clipped_once_as_one(two):
    agreed(two.run(accumulated))
