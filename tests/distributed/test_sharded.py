"""Clipping of sharded parameters in all placements, against the same steps with whole parameters."""

import math
import warnings
from contextlib import nullcontext
from dataclasses import replace
from itertools import permutations
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
from programs import device_arithmetic
from sharded import heavy_tailed, layouts, parameters, spread, step, tensors, whole
from support.versions import needs_torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode

from torch_clipped import (
    ClippedAdamW,
    ClippedSGD,
    ClippedSSTM,
    Clipping,
    ClippingWarning,
    Constant,
    GradientClipper,
    Quantile,
    clip_gradients_,
    clip_optimizer,
    register_clipping,
)
from torch_clipped._engine import sharding
from torch_clipped._engine.sharding import _reduced, local
from torch_clipped.clipping import CLIPPING_TYPES, MEASURES


def close(one, other):
    return all(
        left == pytest.approx(right, rel=1e-6, nan_ok=True) for left, right in zip(one.values(), other.values(), strict=True)
    )


def same_on_all_ranks(value):
    """Whether this is the same on every rank, to the last bit."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, repr(value))
    return len(set(values)) == 1


def steps_of_every_type(optimizers, partial=False, on_device=False, types=None):
    """Messages about all that differs between whole and sharded parameters."""
    wrong = []
    for name, layout in layouts().items():
        for clipping_type in types or CLIPPING_TYPES:
            for cls, arguments in optimizers:
                params, shards = parameters(), parameters(layout)
                reference = cls(params, lr=0.1, clipping_type=clipping_type, **arguments)
                with device_arithmetic() if on_device else nullcontext():
                    optimizer = cls(shards, lr=0.1, clipping_type=clipping_type, **arguments)
                    for number in range(4):
                        step(optimizer, shards, heavy_tailed(number), layout, partial)
                for number in range(4):
                    step(reference, params, heavy_tailed(number))
                case = f"{name}, {clipping_type}, {cls.__name__}"
                for p, q in zip(params, shards, strict=True):
                    if not torch.allclose(whole(q), p.detach(), rtol=1e-5, atol=1e-6):
                        wrong.append(f"{case}: weights of shape {tuple(p.shape)}")
                    if not torch.allclose(whole(q.grad), p.grad, rtol=1e-5, atol=1e-6):
                        wrong.append(f"{case}: gradient of shape {tuple(p.shape)}")
                if not close(optimizer.clipping_stats(), reference.clipping_stats()):
                    wrong.append(f"{case}: {optimizer.clipping_stats()} for {reference.clipping_stats()}")
                if not same_on_all_ranks([optimizer.clipping_stats(), optimizer.grad_norms().tolist()]):
                    wrong.append(f"{case}: the ranks disagree")
    return wrong


SGD, ADAMW = (ClippedSGD, {}), (ClippedAdamW, {})


def test_every_type_steps_as_on_whole_parameters_on_two_ranks(two):
    assert two.run(steps_of_every_type, [SGD, ADAMW]) == [[]] * 2


def test_every_type_steps_as_on_whole_parameters_on_four_ranks(four):
    assert four.run(steps_of_every_type, [ADAMW]) == [[]] * 4


def test_every_type_steps_as_on_whole_parameters_with_the_arithmetic_of_accelerators(two):
    assert two.run(steps_of_every_type, [ADAMW], False, True) == [[]] * 2


def test_partial_sums_are_summed_up_before_they_are_measured(two):
    assert two.run(steps_of_every_type, [ADAMW], True) == [[]] * 2


def steps_of_a_measure_of_ones_own():
    """The same for types by the root mean square of a tensor, on the host and with the arithmetic of accelerators."""
    MEASURES["rms"] = replace(MEASURES["layer"], norm_type=2.0, divisor=lambda p: p.numel() ** 0.5, gives_norm=False)
    try:
        register_clipping("block_rms", Clipping("rms", Constant(0.1)))
        register_clipping("block_rms_auto", Clipping("rms", Quantile(0.5)))
        types = ["block_rms", "block_rms_auto"]
        return [steps_of_every_type([SGD, ADAMW], False, on_device, types) for on_device in (False, True)]
    finally:
        for rows, name in ((MEASURES, "rms"), (CLIPPING_TYPES, "block_rms"), (CLIPPING_TYPES, "block_rms_auto")):
            rows.pop(name, None)


def test_measure_of_ones_own_is_that_of_the_whole_tensor(two):
    assert two.run(steps_of_a_measure_of_ones_own) == [[[], []]] * 2


def gradients_laid_out_otherwise():
    """What differs after a step with a gradient whose placement is not that of its parameter."""
    mesh, wrong = layouts()["rows"][0][0], []
    for placement, other in permutations([Shard(0), Shard(1), Replicate()], 2):
        for clipping_type in ("norm", "coord_wise", "adaptive"):
            params, shards = (
                [torch.nn.Parameter(torch.ones(6, 3))],
                [torch.nn.Parameter(spread(torch.ones(6, 3), (mesh, [placement])))],
            )
            grads = [torch.arange(18.0).view(6, 3)]
            step(ClippedSGD(params, lr=0.1, clipping_type=clipping_type), params, grads)
            step(ClippedSGD(shards, lr=0.1, clipping_type=clipping_type), shards, grads, [(mesh, [other])])
            if not torch.allclose(whole(shards[0]), params[0]):
                wrong.append(f"{clipping_type}: parameter in {placement}, gradient in {other}")
    return wrong


def test_gradients_may_be_laid_out_otherwise_than_their_parameters(two):
    assert two.run(gradients_laid_out_otherwise) == [[]] * 2


def steps_of_changing_types():
    """Whether steps whose clipping type and whose groups' types change are those of whole parameters."""
    layout, results = layouts()["some"], []
    for own in (None, layout):
        shards = parameters(own)
        optimizer = ClippedSGD([{"params": shards[:3]}, {"params": shards[3:]}], lr=0.1)
        types = [
            ("norm", "norm"),
            ("adaptive", "adaptive"),
            ("adaptive", "layer_wise"),
            ("none", "norm"),
            ("norm", "none"),
            ("norm", "norm"),
        ]
        for number, pair in enumerate(types):
            for group, clipping_type in zip(optimizer.param_groups, pair, strict=True):
                group["clipping_type"], group["clipping_level"] = clipping_type, None if clipping_type == "none" else 0.1
            step(optimizer, shards, heavy_tailed(number), own)
        results.append(torch.cat([whole(p).flatten() for p in shards]))
    return torch.allclose(*results, rtol=1e-5, atol=1e-6)


def test_types_may_change_between_steps(two):
    assert two.run(steps_of_changing_types) == [True] * 2


def all_reduces(clipping_type, missing):
    """How many collectives a step takes, for each layout."""
    counts = {}
    for name, layout in layouts().items():
        shards = parameters(layout)
        optimizer = ClippedSGD(shards, lr=0.1, clipping_type=clipping_type)
        step(optimizer, shards, heavy_tailed(0), layout)
        grads = heavy_tailed(1)
        for place in missing:
            grads[place] = None
        for p, grad, one in zip(shards, grads, layout, strict=True):
            p.grad = None if grad is None else spread(grad, one)
        with CommDebugMode() as communication:
            optimizer.step()
        counts[name] = {str(operation): count for operation, count in communication.get_comm_counts().items()}
    return counts


@pytest.mark.parametrize("missing", [(), (0, 3), range(6)], ids=["all", "some", "none"])
@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise", "coord_wise", "linear_rand_auto", "layer_wise_auto", "adagc"])
def test_step_takes_one_all_reduce_for_each_mesh_dimension_and_no_other_collective(four, clipping_type, missing):
    groups = {"rows": 1, "last dimension": 1, "some": 1, "square": 2, "two meshes": 3}
    expected = {name: {"c10d.allreduce_": count} for name, count in groups.items()} | {"one rank": {}}
    assert four.run(all_reduces, clipping_type, missing) == [expected] * 4


def step_with_bad_entry(nonfinite, bad, where):
    """What becomes of a step in which rank 0 alone sees a bad entry, in gradient number ``where``."""
    outcomes = {}
    for name, layout in layouts().items():
        if name == "one rank":
            continue  # where nobody else has to know
        for clipping_type in ("norm", "coord_wise", "adaptive"):
            shards = parameters(layout)
            groups = [{"params": shards[:2], "weight_decay": 0.1}, {"params": shards[2:]}]
            optimizer = ClippedSGD(groups, lr=0.1, momentum=0.9, clipping_type=clipping_type, nonfinite=nonfinite)
            step(optimizer, shards, heavy_tailed(0), layout)
            before = [whole(p) for p in shards]
            for p, grad, one in zip(shards, heavy_tailed(1), layout, strict=True):
                p.grad = spread(grad, one)
            part = local(shards[where].grad)
            if dist.get_rank() == 0:
                part[(0,) * part.dim()] = bad
            raised = ""
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ClippingWarning)
                try:
                    optimizer.step()
                except RuntimeError as error:
                    raised = str(error).partition("; ")[0]
            stats = optimizer.clipping_stats()
            outcomes[f"{name}, {clipping_type}"] = {
                "raised": raised,
                "unchanged": all(torch.equal(whole(p), b) for p, b in zip(shards, before, strict=True)),
                "finite": all(whole(p).isfinite().all().item() for p in shards),
                "counts": (stats["steps"], stats["skipped_steps"]),
                "agreed": same_on_all_ranks([stats, raised]),
            }
    return outcomes


OUTCOMES = {
    "skip": {"raised": "", "unchanged": True, "finite": True, "counts": (1, 1), "agreed": True},
    "error": {"unchanged": True, "finite": True, "counts": (1, 0), "agreed": True},
    "zero": {"raised": "", "unchanged": False, "finite": True, "counts": (2, 0), "agreed": True},
    "propagate": {"raised": "", "unchanged": False, "finite": False, "counts": (2, 0), "agreed": True},
}


@pytest.mark.parametrize(("bad", "where"), [(math.inf, 0), (math.nan, 0), (math.nan, 5)])
@pytest.mark.parametrize("nonfinite", OUTCOMES)
def test_ranks_agree_about_an_entry_that_only_one_of_them_sees(two, nonfinite, bad, where):
    expected = dict(OUTCOMES[nonfinite])
    if nonfinite == "error":
        expected["raised"] = f"the gradient of parameter group {int(where >= 2)} is not finite"
    for outcomes in two.run(step_with_bad_entry, nonfinite, bad, where):
        assert outcomes
        for case, outcome in outcomes.items():
            clamped = nonfinite == "propagate" and math.isinf(bad) and "coord_wise" in case
            assert outcome == (expected | {"finite": True} if clamped else expected), case


@pytest.mark.parametrize("nonfinite", ["skip", "error"])
def test_ranks_agree_about_an_entry_of_a_gradient_that_is_not_shared(two, nonfinite):
    for outcomes in two.run(step_with_bad_entry, nonfinite, math.inf, 2):
        assert outcomes["some, norm"]["unchanged"]
        assert outcomes["some, norm"]["agreed"]


def norms_of(norm_type, factor):
    """The recorded norm of float64 gradients and what it should be, for each layout."""
    norms = []
    grads = tensors(3, factor, torch.float64)
    expected = torch.linalg.vector_norm(torch.cat([g.flatten() / factor for g in grads]), norm_type).item() * factor
    for layout in layouts().values():
        shards = parameters(layout, torch.float64)
        optimizer = ClippedSGD(shards, norm_type=norm_type)
        step(optimizer, shards, grads, layout)
        norms.append(optimizer.grad_norms().item() / expected)
    return norms


@pytest.mark.parametrize("factor", [1.0, 1e-100, 1e200])
@pytest.mark.parametrize("norm_type", [1, 2, 3.5, math.inf])
def test_norms_of_every_type_and_size(two, norm_type, factor):
    for norms in two.run(norms_of, norm_type, factor):
        assert norms == pytest.approx([1.0] * len(norms), rel=1e-12)


def norm_of_an_entry_with_a_small_square():
    """The recorded norm where the square of all that rank 0 holds, and of nothing else, is too small for float64."""
    layout = layouts()["rows"]
    shards = parameters(layout, torch.float64)
    grads = [torch.zeros_like(grad) for grad in tensors(3, dtype=torch.float64)]
    grads[0][0, 0] = 1e-200
    optimizer = ClippedSGD(shards)
    step(optimizer, shards, grads, layout)
    return optimizer.grad_norms().tolist()


def test_all_ranks_measure_again_where_one_of_them_has_lost_digits(two):
    assert two.run(norm_of_an_entry_with_a_small_square, seconds=20) == [[pytest.approx(1e-200, rel=1e-12)]] * 2


def doors():
    """Norms and gradients of the functional interface, whole and sharded."""
    results = []
    for layout in (None, *layouts().values()):
        shards = parameters(layout)
        found = []
        clipper = GradientClipper(shards, "layer_wise_auto", 0.5)
        for number in range(3):
            for clip in (
                clipper.step,
                lambda: clip_gradients_(shards, "norm", 1.0),  # noqa: B023 (called at once)
                lambda: clip_gradients_(shards, "coord_wise", 0.1),  # noqa: B023
                lambda: clip_gradients_(shards, "none"),  # noqa: B023
            ):
                for p, grad, one in zip(shards, heavy_tailed(number), layout or [None] * len(shards), strict=True):
                    p.grad = spread(grad, one)
                found += [clip().view(1).float(), *(whole(p.grad).flatten() for p in shards)]
        results.append(torch.cat(found))
    return [torch.allclose(result, results[0], rtol=1e-5) for result in results[1:]]


def test_clipping_by_hand(two):
    assert two.run(doors) == [[True] * 4] * 2


def steps_of_wrapped_optimizer():
    """The weights after steps of an optimizer made to clip, whole and sharded."""
    results = []
    for layout in (None, *layouts().values()):
        shards = parameters(layout)
        optimizer = clip_optimizer(torch.optim.RMSprop(shards, lr=0.01, momentum=0.9), "auto", 0.5)
        for number in range(4):
            step(optimizer, shards, heavy_tailed(number), layout)
        results.append(torch.cat([whole(p).flatten() for p in shards]))
    return [torch.allclose(result, results[0], rtol=1e-5, atol=1e-6) for result in results[1:]]


def test_any_optimizer(two):
    assert two.run(steps_of_wrapped_optimizer) == [[True] * 4] * 2


def steps_of_similar_triangles(clipping_type):
    """The weights and the answer after steps of ClippedSSTM, whole and sharded, with partial sums for gradients."""
    results = []
    for layout in (None, *layouts().values()):
        shards = parameters(layout)
        optimizer = ClippedSSTM(shards, lr=0.1, L=10.0, clipping_type=clipping_type)
        for number in range(4):
            step(optimizer, shards, heavy_tailed(number), layout, partial=True)
        weights = torch.cat([whole(p).flatten() for p in shards])
        optimizer.eval()
        results.append(torch.cat([weights, *(whole(p).flatten() for p in shards)]))
    return [torch.allclose(result, results[0], rtol=1e-5, atol=1e-6) for result in results[1:]]


@pytest.mark.parametrize("clipping_type", ["norm", "none"])
def test_similar_triangles(four, clipping_type):
    assert four.run(steps_of_similar_triangles, clipping_type) == [[True] * 6] * 4


def kernels_of(name):
    """Which kernels took the step, for each way to ask for them and each layout."""
    cls = {"sgd": ClippedSGD, "adamw": ClippedAdamW}[name]
    kernel, taken = f"_fused_{name}_", {}
    for layout_name, layout in layouts().items():
        for fused in (None, True, False):
            shards = parameters(layout)
            optimizer = cls(shards, lr=0.1, fused=fused)
            with patch(f"torch.{kernel}", wraps=getattr(torch, kernel)) as spy:
                step(optimizer, shards, heavy_tailed(0), layout)
            taken[layout_name, fused] = spy.called
            assert optimizer.param_groups[0]["fused"] is fused
    return taken


@needs_torch("2.9", "contiguous shards of the last dimension")
def test_fused_adamw_is_taken_for_sharded_parameters_and_fused_sgd_is_not(two):
    everywhere_sharded = ("rows", "last dimension", "one rank")
    for taken in two.run(kernels_of, "adamw"):
        assert taken == {(name, fused): name in everywhere_sharded and fused is not False for name, fused in taken}
    for taken in two.run(kernels_of, "sgd"):
        assert not any(taken.values())
        assert taken


def steps_of_parameters_that_are_sharded_later():
    """The weights after steps of an optimizer that was made of whole parameters, for each type, whole and sharded."""
    results = []
    for clipping_type in CLIPPING_TYPES:
        for layout in (None, layouts()["rows"]):
            params, shards = parameters(), parameters(layout)
            optimizer = ClippedSGD(params, lr=0.1, clipping_type=clipping_type)
            optimizer.param_groups[0]["params"][:] = shards  # as trainers do that shard the model after all
            for number in range(4):
                step(optimizer, shards, heavy_tailed(number), layout)
            results.append(torch.cat([whole(p).flatten() for p in shards]))
    return [torch.allclose(*pair, rtol=1e-5, atol=1e-6) for pair in zip(results[::2], results[1::2], strict=True)]


def test_parameters_may_be_replaced_by_sharded_ones(two):
    assert two.run(steps_of_parameters_that_are_sharded_later) == [[True] * len(CLIPPING_TYPES)] * 2


def collectives_of_a_level_schedule():
    """What is sent in steps each of which has another level."""
    sent = []
    for clipping_type in ("norm", "layer_wise_auto", "adaptive"):
        shards = parameters(layouts()["last dimension"])
        optimizer = ClippedSGD(shards, clipping_type=clipping_type)
        for number in range(3):
            optimizer.param_groups[0]["clipping_level"] = 0.5 + 0.1 * number
            with CommDebugMode() as communication, patch.object(sharding, "_held_blocks", wraps=sharding._held_blocks) as spy:
                step(optimizer, shards, heavy_tailed(number), layouts()["last dimension"])
            sent.append((clipping_type, number, communication.get_total_counts(), spy.called))
    return sent


@needs_torch("2.9", "contiguous shards of the last dimension")
def test_level_schedule_does_not_look_at_the_shards_again(two):
    expected = [("norm", 1), ("layer_wise_auto", 1), ("adaptive", 2)]  # which measures the weights too
    expected = [(clipping_type, number, count, False) for clipping_type, count in expected for number in range(3)]
    assert two.run(collectives_of_a_level_schedule) == [expected] * 2


def test_lengths_of_offloaded_parameters_are_reduced_where_the_group_can(monkeypatch):
    moved = []

    def all_reduce(sent, operation, group):
        moved.append(sent.device.type)

    monkeypatch.setattr(dist, "get_backend_config", lambda group: "meta:nccl")
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda sent: torch.ones(sent.shape, dtype=sent.dtype))
    assert _reduced(np.zeros(2), "SUM", None).tolist() == [1.0, 1.0]
    assert moved == ["meta"]
