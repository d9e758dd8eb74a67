"""Training loops of every kind under ``fully_shard``, with each rank's own data: what a single process does with all of it."""

import math
import warnings

import pytest
import torch
import torch.distributed as dist
from programs import Model, losses
from support.versions import needs_torch
from test_fsdp import ADAMW, FIRST, LEVELS, SGD, agreed, compare, remembered, sharded, train, weights_of

from torch_clipped import (
    ClippedSGD,
    ClippedSSTM,
    ClippingWarning,
    GradientClipper,
    LevelScheduler,
    Restarter,
    clip_gradients_,
    clip_optimizer,
    estimate_lipschitz,
    linear_warmup,
)

pytestmark = needs_torch("2.9", "FSDP2 on the CPU")

BAD = FIRST + 3  # the step with a gradient that is not finite; the layer called "sometimes" has none in it


def poisoned(loss, model, distributed):
    """The loss, infinite where rank 1's data enter."""
    return loss * math.inf if not distributed or dist.get_rank() == 1 else loss


def groups_of(model):
    """Parameter groups of which the first has no gradient in the bad step."""
    return [{"params": [*layer.parameters()]} for layer in (model.sometimes, model.second, model.first)]


def steps_through(model, name, policy, distributed):
    """Steps with a bad one among them; the optimizer, and what was seen at the bad one."""
    options = {"clipping_type": name, "clipping_level": LEVELS[name], "nonfinite": policy}
    optimizer = ClippedSGD(groups_of(model), lr=0.01, momentum=0.5, **options)
    seen = []
    for step, loss in enumerate(losses(model, range(FIRST, FIRST + 6), distributed), FIRST):
        optimizer.zero_grad()
        (poisoned(loss, model, distributed) if step == BAD else loss).backward()
        if step != BAD:
            optimizer.step()
            continue
        before = weights_of(model), optimizer.grad_norms()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                optimizer.step()
            seen += [warning.category is ClippingWarning for warning in caught]
        except RuntimeError as error:
            seen.append(str(error))
        seen.append(torch.equal(before[0], weights_of(model)) and torch.equal(before[1], optimizer.grad_norms()))
    return optimizer, seen


def with_a_bad_step():
    found = {}
    for policy in ("skip", "error", "zero", "propagate"):
        for name in ("norm", "layer_wise_auto", "coord_wise", "adaptive"):
            model, single = sharded(Model(True)), Model(True)
            optimizer, seen = steps_through(model, name, policy, True)
            alone, seen_alone = steps_through(single, name, policy, False)
            assert seen == seen_alone
            compare(model, optimizer, single, alone, (policy, name))
            found[policy, name] = seen, remembered(optimizer), weights_of(model).isfinite().all().item()
    return found


def test_ranks_agree_about_an_infinity_that_only_the_data_of_one_makes(two):
    for (policy, _), (seen, _, finite) in agreed(two.run(with_a_bad_step, seconds=120)).items():
        assert finite == (policy != "propagate")
        if policy == "skip":
            assert seen == [True, True]  # it warned, and nothing was changed
        if policy == "error":
            message, unchanged = seen
            assert "parameter group 1 is not finite; nothing was changed" in message
            assert unchanged


def with_spikes(cap):
    """Steps of which two have a spike in the data of rank 1."""
    found = {}
    for name, level in (("zscore", 6.0), ("layer_wise_zscore", 20.0), ("coord_wise", 5.0)):
        arguments = {"clipping_type": name, "clipping_level": level, "clipping_action": "skip", "clipping_cap": cap}
        arguments |= {"clipping_warmup": 4} if "zscore" in name else {}
        model, single = sharded(Model()), Model()
        optimizers = [ClippedSGD(m.parameters(), lr=0.01, momentum=0.5, **arguments) for m in (model, single)]
        for step in range(FIRST, FIRST + 10):
            for m, optimizer, distributed in zip((model, single), optimizers, (True, False), strict=True):
                optimizer.zero_grad()
                (loss,) = losses(m, [step], distributed)
                spike = step in (FIRST + 6, FIRST + 8) and (not distributed or dist.get_rank() == 1)
                (1000 * loss if spike else loss).backward()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ClippingWarning)
                    optimizer.step()
        torch.testing.assert_close(weights_of(model), weights_of(single), rtol=1e-4, atol=1e-5)
        counts, alone = ([o.clipping_stats()[f"{which}steps"] for which in ("", "clipped_", "skipped_")] for o in optimizers)
        assert counts == alone
        found[name] = counts, weights_of(model).tolist()
    return found


@pytest.mark.parametrize("cap", [None, 0.001])
def test_ranks_skip_together_a_spike_that_only_the_data_of_one_makes(two, cap):
    for counts, _ in agreed(two.run(with_spikes, cap, seconds=120)).values():
        assert counts == [10, 2 if cap is None else 10, 2]


def scaled(fused, unscale, run):
    """Steps under a scaler with overflows in rank 1's data, and without a scaler on the others."""
    optimizer_class, arguments = run
    models = sharded(Model()), sharded(Model())
    optimizer, other = (optimizer_class(m.parameters(), clipping_level=2.0, fused=fused, **arguments) for m in models)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(FIRST, FIRST + 6):
        overflow = step in (FIRST, BAD)
        optimizer.zero_grad()
        (loss,) = losses(models[0], [step], True)
        scaler.scale(poisoned(loss, models[0], True) if overflow else loss).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if not overflow:
            train(models[1], other, [step])
    compare(models[0], optimizer, models[1], other, (fused, unscale))
    assert scaler.get_scale() == 2.0**8
    assert 0 < optimizer.clipping_stats()["clip_rate"] < 1
    return remembered(optimizer), weights_of(models[0]).tolist()


def every_flow_of_a_scaler():
    return [scaled(fused, unscale, run) for fused in (None, True, False) for unscale in (False, True) for run in (SGD, ADAMW)]


def test_gradient_scaler_with_overflows_in_the_data_of_one_rank(two):
    agreed(two.run(every_flow_of_a_scaler, seconds=120))


def clip_by_hand(model, distributed, clip):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    norms = []
    for loss in losses(model, range(FIRST, FIRST + 8), distributed):
        optimizer.zero_grad()
        loss.backward()
        norms.append(clip().item())
        optimizer.step()
    return norms


def restarted(model, distributed):
    optimizer = ClippedSGD(model.parameters(), lr=0.01, momentum=0.5, clipping_level=2.0)
    restarter = Restarter(optimizer, first_restart_steps_cnt=3, max_steps_cnt=4)
    for step in range(FIRST, FIRST + 8):
        train(model, optimizer, [step], distributed)
        restarter.step()
        restarter.load_state_dict(restarter.state_dict())
    return [restarter.restarts, restarter.window_steps, *optimizer.grad_norms().tolist()]


def clipper(model, distributed):
    clipper = GradientClipper(model.parameters(), "auto", 0.6)
    return [*clip_by_hand(model, distributed, clipper.step), *clipper.clipping_stats().values()]


def function(model, distributed):
    return clip_by_hand(model, distributed, lambda: clip_gradients_(model.parameters(), "layer_wise", 1.0))


def rmsprop(model, distributed):
    optimizer = clip_optimizer(torch.optim.RMSprop(model.parameters(), lr=0.01), "adaptive", 0.3)
    train(model, optimizer, range(FIRST, FIRST + 8), distributed)
    return [*optimizer.clipping_stats().values()]


def scheduled(model, distributed):
    optimizer = ClippedSGD(model.parameters(), lr=0.01)
    scheduler = LevelScheduler(optimizer, linear_warmup(0.5, 4.0, steps=6))
    for step in range(FIRST, FIRST + 8):
        train(model, optimizer, [step], distributed)
        scheduler.step()
    return [*optimizer.clipping_stats().values()]


def similar_triangles(model, distributed):
    optimizer = ClippedSSTM(model.parameters(), lr=0.1, L=10.0, clipping_type="layer_wise", clipping_level=0.1)
    for step in range(FIRST, FIRST + 8):
        train(model, optimizer, [step], distributed)
        x = weights_of(model)
        optimizer.eval()
        y = weights_of(model)
        optimizer.train()
        torch.testing.assert_close(weights_of(model), x)
    return [*optimizer.clipping_stats().values(), *y.tolist()]


def ways():
    found = {}
    for way in (restarted, clipper, function, rmsprop, scheduled, similar_triangles):
        model, single = sharded(Model()), Model()
        found[way.__name__] = way(model, True)
        assert found[way.__name__] == pytest.approx(way(single, False), rel=1e-4, abs=1e-5), way
        torch.testing.assert_close(weights_of(model), weights_of(single), rtol=1e-4, atol=1e-5)
    return found


def test_restarts_schedules_other_optimizers_and_clipping_by_hand_are_those_of_one_process(two):
    agreed(two.run(ways, seconds=120))


def lipschitz_constant():
    try:
        estimate_lipschitz(sharded(torch.nn.Linear(3, 2)), torch.nn.functional.mse_loss, [])
    except ValueError as error:
        return str(error)


def test_lipschitz_constant_of_a_sharded_model_is_refused(two):
    assert "estimate before fully_shard or parallelize_module" in agreed(two.run(lipschitz_constant))
