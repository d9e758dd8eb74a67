"""Training loops: scalers, accumulation, groups that are added, flags of torch."""

import math
from itertools import cycle

import pytest
import torch
from support.assertions import assert_close, equal
from support.cases import FLAGS, TYPES, flat, gradients_of, pairwise
from support.loops import CLASSES, ClippedRMSprop, each_type_with
from support.reference import ReferenceClipper

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD, clip_optimizer
from torch_clipped.clipping import CLIPPING_TYPES
from torch_clipped.decisions import uniform

F64 = torch.float64
ALL = list(CLIPPING_TYPES)


# GradScaler


SCALED_STEPS = 12


def scaled_run(problem, name, clipping_type, flags, scaled, unscale, overflow, way="class"):
    """Weights, statistics and history after steps with a scaler, or without one but the steps that overflow left out."""
    clipped_class, plain_class, options = CLASSES[name]
    params = problem.parameters()
    arguments = {"clipping_type": clipping_type, "clipping_window": 5, "clipping_seed": 1}
    if way == "class":
        optimizer = clipped_class(params, **options, **flags, **arguments)
    else:
        optimizer = clip_optimizer(plain_class(params, **options, **flags), **arguments)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3, enabled=scaled)
    scales = set()
    for step in range(SCALED_STEPS):
        grads = problem.gradients(step)
        if step in overflow:
            if not scaled:
                continue
            grads[step % 2].view(-1)[1] = math.inf if step % 3 else math.nan
        problem.scaled_step(scaler, optimizer, grads, unscale=unscale)
        scales.add(scaler.get_scale())
    assert len(scales) > 1 or not scaled
    return problem.copies(params), optimizer.clipping_stats(), optimizer.grad_norms()


@pairwise(name=["SGD", "AdamW"], clipping_type=ALL, overflow=[(), (0, 1, 6, 11)], ids=str)
def test_every_flow_of_a_grad_scaler_gives_the_run_without_one(problem, name, clipping_type, overflow):
    weights, stats, norms = scaled_run(problem, name, clipping_type, FLAGS["loop"], False, False, overflow)
    assert stats["skipped_steps"] == 0 or clipping_type == "none"
    flows = dict(FLAGS)
    if name == "SGD" and clipping_type == "none" and 0 in overflow:
        del flows["fused"]  # torch's fault: its momentum starts from whatever stood in memory
    for label, flags in flows.items():
        for unscale in (False, True):
            for way in ("class", "clip_optimizer") if label == "chosen" else ("class",):
                flow = f"{label}, {'unscaled by hand' if unscale else 'not unscaled'}, {way}"
                got, got_stats, got_norms = scaled_run(problem, name, clipping_type, flags, True, unscale, overflow, way)
                assert len(got_norms) == len(norms), flow
                torch.testing.assert_close(got_norms, norms, rtol=1e-5, atol=0, msg=flow)
                assert got_stats == pytest.approx(stats, rel=1e-5, nan_ok=True), flow
                for a, b in zip(got, weights, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda text, flow=flow: f"{flow}: {text}")


# Gradient accumulation


@pytest.mark.parametrize(("clipping_type", "set_to_none"), each_type_with(True, False))
def test_accumulated_gradients_are_clipped_once_as_one(problem, clipping_type, set_to_none):
    params = problem.parameters(F64)
    optimizer = ClippedSGD(params, lr=0.05, momentum=0.9, clipping_type=clipping_type, clipping_window=4, clipping_seed=2)
    oracle = ReferenceClipper(clipping_type, window=4)
    for step in range(9):
        optimizer.zero_grad(set_to_none=set_to_none)
        parts = [problem.gradients(10 * step + part, dtype=F64) for part in range(3)]
        for grads in parts:
            sum((p * g).sum() for p, g in zip(params, grads, strict=True)).backward()
        whole = [sum(tensors) for tensors in zip(*parts, strict=True)]
        draw = uniform(2, 0, oracle.steps)
        wanted = oracle.clip(flat(whole), weights=flat(params), uniform=draw, shapes=problem.shapes)
        optimizer.step()
        assert_close([p.grad.flatten() for p in params], [torch.tensor(w, dtype=F64) for w in wanted], 1e-10)
    assert optimizer.clipping_stats()["steps"] == 9


@pytest.mark.parametrize(("clipping_type", "flags"), each_type_with(*FLAGS))
def test_gradients_are_clipped_in_place_and_may_be_zeroed_in_place(problem, clipping_type, flags):
    params = problem.parameters()
    optimizer = ClippedSGD(params, lr=0.05, momentum=0.9, clipping_type=clipping_type, **FLAGS[flags])
    for p, g in zip(params, problem.gradients(0), strict=True):
        p.grad = g
    kept = gradients_of(params)
    for step in range(3):
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        assert all(p.grad is g for p, g in zip(params, kept, strict=True))
        assert all((g == 0).all() for g in kept)
        for g, fresh in zip(kept, problem.gradients(step + 1), strict=True):
            g.copy_(fresh)
    assert optimizer.clipping_stats()["steps"] == 3


# add_param_group


MEDIANS = ("threshold", "coefficient")  # of the blocks, which an added group has more of
GLOBAL_HISTORY = {n for n in TYPES if CLIPPING_TYPES[n].measure == "global" and CLIPPING_TYPES[n].threshold.memory(1, 2)}


@pytest.mark.parametrize(
    ("optimizer_class", "clipping_type"),
    [
        *((ClippedSGD, name) for name in TYPES if name not in GLOBAL_HISTORY),
        *((other, name) for other in (ClippedAdamW, ClippedRMSprop) for name in ("norm", "layer_wise_auto")),
    ],
)
def test_group_added_in_the_middle_keeps_the_history(problem, optimizer_class, clipping_type):
    arguments = {"clipping_type": clipping_type, "clipping_window": 6, "clipping_seed": 3}
    optimizer = optimizer_class(problem.parameters(F64), lr=0.01, **arguments)
    other = optimizer_class(problem.parameters(F64), lr=0.01, **arguments)
    for step in range(40):
        grads = problem.gradients(step, dtype=F64)
        if step in (4, 30):
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, 3, dtype=F64))], "weight_decay": 0.1})
        missing = [None] * (len(optimizer.param_groups) - 1)  # a group without gradients changes nothing for the others
        clipped = problem.step(optimizer, [*grads, *missing])
        wanted = problem.step(other, grads)
        assert equal(clipped[: len(grads)], wanted)
    assert optimizer.grad_norms().tolist() == pytest.approx(other.grad_norms().tolist(), rel=1e-15)  # sums of more zeros
    stats, wanted = ({k: v for k, v in o.clipping_stats().items() if k not in MEDIANS} for o in (optimizer, other))
    assert stats == pytest.approx(wanted, rel=1e-12, nan_ok=True)
    assert len(optimizer.clipping_stats(per_set=True)) == 1


@pytest.mark.parametrize("clipping_type", TYPES)
def test_gradients_of_an_added_group_are_clipped_with_the_others(problem, clipping_type):
    shapes = (*problem.shapes, (2, 3))
    params = problem.parameters(F64, shapes)
    optimizer = ClippedSGD(params[:4], lr=0.01, clipping_type=clipping_type, clipping_window=6, clipping_seed=3)
    oracle = ReferenceClipper(clipping_type, window=6)
    for step in range(12):
        grads = problem.gradients(step, dtype=F64, shapes=shapes)
        if step == 5:
            optimizer.add_param_group({"params": params[4:]})
        if step == 5 and CLIPPING_TYPES[clipping_type].measure == "global":  # a history of another gradient is none
            oracle.histories.clear()
            oracle.zclip.clear()
        if step < 5:
            grads[4] = None
        present = [None if g is None else g.flatten().tolist() for g in grads]
        wanted = oracle.clip(present, weights=flat(params), uniform=uniform(3, 0, oracle.steps), shapes=shapes)
        clipped = problem.step(optimizer, grads[: 4 if step < 5 else 5])
        wanted = [torch.tensor(w, dtype=F64) for w in wanted if w is not None]
        assert_close([g.flatten() for g in clipped], wanted, 1e-10)
    assert oracle.clipped_steps == optimizer.clipping_stats()["clipped_steps"]


# maximize, differentiable, capturable


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_maximize_is_torchs_with_clipped_gradients(problem, name, flags):
    clipped_class, plain_class, options = CLASSES[name]
    params, plain_params = problem.parameters(), problem.parameters()
    optimizer = clipped_class(params, **options, **FLAGS[flags], maximize=True, clipping_level=0.5)
    plain = plain_class(plain_params, **options, maximize=True)
    for step in range(6):
        clipped = problem.step(optimizer, problem.gradients(step, norm=4.0))
        problem.step(plain, [g * (0.5 / 4) for g in problem.gradients(step, norm=4.0)])
        assert_close(clipped, gradients_of(plain_params), 1e-5)  # of the gradient as it came: not negated
    assert_close(params, plain_params, 1e-4)


@pytest.mark.parametrize(
    ("clipping_type", "optimizer_class"), [*zip(TYPES, cycle([ClippedSGD, ClippedAdam, ClippedAdamW]), strict=False)]
)
def test_differentiable_is_refused_where_gradients_are_clipped(problem, optimizer_class, clipping_type):
    with pytest.raises(ValueError, match="differentiable"):
        optimizer_class(problem.parameters(), lr=0.1, differentiable=True, clipping_type=clipping_type)


@pytest.mark.parametrize("name", CLASSES)
def test_differentiable_without_clipping_is_torchs(name):
    results = []
    for clips in (True, False):
        clipped_class, plain_class, options = CLASSES[name]
        start = torch.tensor([1.0, -2.0, 3.0], dtype=F64, requires_grad=True)
        weight = start.clone()
        arguments = {"clipping_type": "none"} if clips else {}
        optimizer = (clipped_class if clips else plain_class)([weight], **options, differentiable=True, **arguments)
        weight.grad = 3 * start**2
        optimizer.step()
        weight.sum().backward()
        results.append((weight.detach(), start.grad))
    assert equal(*results)
    assert results[0][1].abs().sum() > 0


@pytest.mark.parametrize("clipping_type", ["none", "norm", "layer_wise"])
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_capturable_on_the_cpu_gives_torchs_error(problem, name, clipping_type):
    clipped_class, plain_class, _ = CLASSES[name]
    errors = []
    for optimizer in (
        plain_class(problem.parameters(), capturable=True),
        clipped_class(problem.parameters(), capturable=True, clipping_type=clipping_type),
    ):
        before = problem.copies(optimizer.param_groups[0]["params"])
        with pytest.raises(Exception, match="capturable") as error:
            problem.step(optimizer, problem.gradients(0))
        errors.append((error.type, str(error.value)))
        assert equal(optimizer.param_groups[0]["params"], before)
    assert errors[0] == errors[1]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("clipping_type", "name"), [("norm", "Adam"), ("auto", "AdamW"), ("layer_wise", "Adam"), ("coord_wise", "AdamW")]
)
def test_capturable_on_an_accelerator_is_the_ordinary_step(problem, name, clipping_type):
    if not torch.accelerator.is_available():
        pytest.skip("capturable needs an accelerator, there is none")
    device, runs = torch.accelerator.current_accelerator(), []
    for capturable in (False, True):
        params = [torch.nn.Parameter(p.detach().to(device)) for p in problem.parameters()]
        optimizer = CLASSES[name][0](params, lr=0.01, capturable=capturable, clipping_type=clipping_type)
        for step in range(6):
            problem.step(optimizer, [g.to(device) for g in problem.gradients(step)])
        runs.append(params)
    assert_close(*runs, 1e-5)
