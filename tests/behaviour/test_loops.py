"""Training loops of every kind: closures, scalers, accumulation, schedulers, hooks, compilation, levels that change."""

import copy
import inspect
import json
import math
import subprocess
import sys
from itertools import cycle

import pytest
import torch
from support.assertions import assert_close, equal
from support.cases import pairwise
from support.reference import ReferenceClipper
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from torch_clipped import (
    Clipped,
    ClippedAdam,
    ClippedAdamW,
    ClippedSGD,
    ClippingWarning,
    LevelScheduler,
    clip_optimizer,
    linear_warmup,
    multiple_at_start,
)
from torch_clipped.clipping import CLIPPING_TYPES
from torch_clipped.decisions import uniform

F64 = torch.float64
ALL = list(CLIPPING_TYPES)
REAL = [name for name in ALL if name != "none"]
KINDS = ["norm", "layer_wise_auto", "coord_wise", "adaptive", "adagc", "linear_rand_auto"]  # of measures, thresholds, decisions
CLASSES = {
    "SGD": (ClippedSGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "Adam": (ClippedAdam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.01}),
    "AdamW": (ClippedAdamW, torch.optim.AdamW, {"lr": 0.01}),
}


class ClippedRMSprop(Clipped, torch.optim.RMSprop):
    """RMSprop that clips."""


class ClippedLBFGS(Clipped, torch.optim.LBFGS):
    """LBFGS that clips."""


def each_type_with(value, *others):
    """Rows of an axis that does not choose how a type clips: each type with one value, one type of each kind with the others."""
    return [(clipping_type, value) for clipping_type in REAL] + [(kind, other) for other in others for kind in KINDS]


def flat(tensors):
    return [t.detach().double().flatten().tolist() for t in tensors]


def gradients_of(params):
    return [p.grad for p in params]


def closure_of(optimizer, params, grads, calls):
    """A closure whose gradients are ``grads``."""

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = sum((p * g).sum() for p, g in zip(params, grads, strict=True))
        loss.backward()
        return loss

    return closure


# Closures


@pairwise(
    optimizer_class=[ClippedSGD, ClippedAdam, ClippedAdamW, ClippedRMSprop],
    clipping_type=["none", "norm", "layer_wise_auto", "linear_rand_auto", "adaptive"],
    call=["positional", "keyword"],
)
def test_step_with_a_closure_is_the_step_without_one(problem, optimizer_class, clipping_type, call):
    params, other_params = problem.parameters(), problem.parameters()
    optimizer = optimizer_class(params, lr=0.01, clipping_type=clipping_type, clipping_window=4)
    other = optimizer_class(other_params, lr=0.01, clipping_type=clipping_type, clipping_window=4)
    for step in range(6):
        grads, calls = problem.gradients(step), []
        wanted = sum((p * g).sum() for p, g in zip(params, grads, strict=True)).item()
        closure = closure_of(optimizer, params, grads, calls)
        loss = optimizer.step(closure) if call == "positional" else optimizer.step(closure=closure)
        assert calls == [True]
        assert loss.item() == wanted
        assert equal(problem.step(other, grads), gradients_of(params))
    assert equal(params, other_params)


@pytest.mark.parametrize("optimizer_class", [ClippedSGD, ClippedAdam, ClippedAdamW, ClippedRMSprop])
def test_step_without_a_closure_returns_none(problem, optimizer_class):
    optimizer = optimizer_class(problem.parameters(), lr=0.01)
    for p, g in zip(optimizer.param_groups[0]["params"], problem.gradients(0), strict=True):
        p.grad = g
    assert optimizer.step() is None


def lbfgs(problem, search, bad_at=(), value=math.inf, bad_loss=True, **arguments):
    """LBFGS on a quadratic whose gradient is not finite in the evaluations ``bad_at``; weights, start and lengths seen."""
    params, target, lengths = problem.parameters(F64), problem.gradients(0, norm=20.0, dtype=F64), []
    optimizer = ClippedLBFGS(params, lr=0.5, max_iter=5, history_size=3, line_search_fn=search, **arguments)

    def closure():
        optimizer.zero_grad()
        loss = sum(((p - t) ** 2).sum() for p, t in zip(params, target, strict=True))
        loss.backward()
        if len(lengths) in bad_at:
            params[1].grad[2] = value
            loss = loss * value if bad_loss else loss
        lengths.append(problem.length(gradients_of(params)))
        return loss

    return optimizer, params, closure, lengths


@pytest.mark.parametrize(("clipping_type", "search"), each_type_with("strong_wolfe", None))
def test_every_evaluation_of_lbfgs_is_clipped_and_recorded(problem, clipping_type, search):
    optimizer, params, closure, lengths = lbfgs(problem, search, clipping_type=clipping_type)
    kept = []

    def watched():
        kept.append(problem.length(gradients_of(params)) if params[0].grad is not None else None)  # what the last one became
        return closure()

    for _ in range(4):
        optimizer.step(watched)
    assert len(lengths) > 8
    stats = optimizer.clipping_stats()
    assert stats["steps"] == len(lengths)
    if clipping_type in ("norm", "layer_wise"):
        limit = 1.0 if clipping_type == "norm" else 0.3 * math.sqrt(4)
        assert all(length <= limit * (1 + 1e-9) for length in kept[1:])
    if CLIPPING_TYPES[clipping_type].measured.gives_norm:
        assert optimizer.grad_norms().tolist() == pytest.approx(lengths, rel=1e-12)


def run_and_watch_for_finite_weights(optimizer, params, closure):
    for _ in range(12):
        optimizer.step(closure)
        assert all(p.isfinite().all() for p in params)


@pairwise(search=[None, "strong_wolfe"], bad_at=[0, 1, 2, 3, 4, 6, 8], value=[math.inf, math.nan], bad_loss=[False, True])
def test_evaluation_of_lbfgs_that_is_not_finite_leaves_finite_weights(problem, search, bad_at, value, bad_loss):
    optimizer, params, closure, lengths = lbfgs(problem, search, {bad_at, bad_at + 1}, value, bad_loss)
    with pytest.warns(ClippingWarning, match="not finite") as caught:
        run_and_watch_for_finite_weights(optimizer, params, closure)
    assert len(caught) == 1
    assert len(lengths) > bad_at + 1
    stats = optimizer.clipping_stats()
    assert stats["skipped_steps"] == 2
    assert stats["steps"] == len(lengths) - 2
    assert optimizer.grad_norms().isfinite().all()


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_whose_first_evaluation_is_not_finite_stays_where_it_is(problem, search):
    optimizer, params, closure, _ = lbfgs(problem, search, bad_at={0})
    with pytest.warns(ClippingWarning, match="not finite"):
        optimizer.step(closure)
    assert equal(params, problem.parameters(F64))
    optimizer.step(closure)
    assert not equal(params, problem.parameters(F64))


def test_lbfgs_obeys_the_other_policies(problem):
    optimizer, params, closure, _ = lbfgs(problem, None, bad_at={0}, nonfinite="error")
    with pytest.raises(RuntimeError, match="parameter group 0 is not finite"):
        optimizer.step(closure)
    assert equal(params, problem.parameters(F64))
    optimizer, params, closure, _ = lbfgs(problem, None, bad_at={0, 1, 2, 3}, nonfinite="zero")
    optimizer.step(closure)
    assert all(p.isfinite().all() for p in params)
    assert not equal(params, problem.parameters(F64))


# GradScaler

FLAGS = {
    "chosen": {},
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
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


# Learning rate schedulers

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, 1.0, 4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 8, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 10),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.5, 1.0, 3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.5, 1.0, 3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.01, 4),
}


def test_table_of_schedulers_is_torchs():
    classes = {name for name, c in vars(lr_scheduler).items() if inspect.isclass(c) and issubclass(c, lr_scheduler.LRScheduler)}
    assert classes - {"LRScheduler", "_LRScheduler"} == SCHEDULERS.keys() - {"SWALR"}


@pairwise(name=["SGD", "AdamW"], scheduler=SCHEDULERS, attached=["class", "before clip_optimizer", "after clip_optimizer"])
def test_scheduler_drives_the_clipped_optimizer_as_the_plain_one(problem, name, scheduler, attached):
    clipped_class, plain_class, options = CLASSES[name]

    def run(params, clips):
        if clips and attached == "class":
            optimizer = clipped_class(params, **options, clipping_level=1e9)
        else:
            optimizer = plain_class(params, **options)
        if clips and attached == "after clip_optimizer":
            clip_optimizer(optimizer, "norm", 1e9)
        driver = SCHEDULERS[scheduler](optimizer)
        if clips and attached == "before clip_optimizer":
            clip_optimizer(optimizer, "norm", 1e9)
        driven = []
        for step in range(8):
            problem.step(optimizer, problem.gradients(step))
            if scheduler == "ReduceLROnPlateau":
                driver.step(1.0)
            else:
                driver.step()
            group = optimizer.param_groups[0]
            driven.append((float(group["lr"]), group.get("momentum"), group.get("betas")))
        if clips:
            assert optimizer.clipping_stats()["steps"] == 8
        return driven

    params, plain_params = problem.parameters(), problem.parameters()
    driven = run(params, True)
    assert driven == run(plain_params, False)
    assert len({lr for lr, *_ in driven}) > 1
    assert_close(params, plain_params, 1e-5)


@pytest.mark.parametrize("scheduler", ["StepLR", "CyclicLR", "OneCycleLR", "SequentialLR", "ReduceLROnPlateau", "SWALR"])
def test_scheduler_and_optimizer_are_resumed_together(problem, scheduler):
    def new():
        params = problem.parameters()
        optimizer = ClippedSGD(params, lr=0.05, momentum=0.9, clipping_type="auto", clipping_level=0.5)
        return params, optimizer, SCHEDULERS[scheduler](optimizer)

    def go(optimizer, driver, steps):
        for step in steps:
            problem.step(optimizer, problem.gradients(step))
            driver.step(*[1.0] * (scheduler == "ReduceLROnPlateau"))

    params, optimizer, driver = new()
    go(optimizer, driver, range(4))
    other_params, other, other_driver = new()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch's loading shares the tensors it is given
    other_driver.load_state_dict(driver.state_dict())
    for p, q in zip(other_params, params, strict=True):
        p.data.copy_(q.data)
    go(optimizer, driver, range(4, 8))
    go(other, other_driver, range(4, 8))
    assert equal(params, other_params)
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


# add_param_group

MEDIANS = ("threshold", "coefficient")  # of the blocks, which an added group has more of
GLOBAL_HISTORY = {n for n in REAL if CLIPPING_TYPES[n].measure == "global" and CLIPPING_TYPES[n].threshold.memory(1, 2)}


@pytest.mark.parametrize(
    ("optimizer_class", "clipping_type"),
    [
        *((ClippedSGD, name) for name in REAL if name not in GLOBAL_HISTORY),
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


@pytest.mark.parametrize("clipping_type", REAL)
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


# Step hooks


@pairwise(
    clipping_type=["none", "norm"],
    way=["class", "subclass", "clip_optimizer", "mixin"],
    plain=["never", "before", "after"],
)
def test_hooks_of_this_and_of_all_optimizers_run_once(problem, clipping_type, way, plain, monkeypatch):
    parent = torch.optim.RMSprop if way == "mixin" else torch.optim.SGD
    if getattr(parent.step, "hooked", False):  # as if no plain optimizer had ever been made
        monkeypatch.setattr(parent, "step", parent.step.__wrapped__)
    if plain == "before":
        parent(problem.parameters())
    params = problem.parameters()
    arguments = {"clipping_type": clipping_type}
    classes = {"class": ClippedSGD, "subclass": type("Own", (ClippedSGD,), {}), "mixin": ClippedRMSprop}
    optimizer = clip_optimizer(parent(params), **arguments) if way == "clip_optimizer" else classes[way](params, **arguments)
    if plain == "after":
        parent(problem.parameters())
    seen = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: seen.append("pre")),
        optimizer.register_step_post_hook(lambda *_: seen.append("post")),
        register_optimizer_step_pre_hook(lambda *_: seen.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: seen.append("global post")),
    ]
    try:
        problem.step(optimizer, problem.gradients(0))
        closure = closure_of(optimizer, params, problem.gradients(1), [])
        optimizer.step(closure)
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(seen[:4]) == sorted(seen[4:]) == sorted(["pre", "post", "global pre", "global post"])
    assert [name.split()[-1] for name in seen[:4]] == ["pre", "pre", "post", "post"]


@pytest.mark.parametrize("clipping_type", ["none", "norm"])
def test_profiler_shows_one_range_a_step(problem, clipping_type):
    optimizer = ClippedSGD(problem.parameters(), clipping_type=clipping_type)
    problem.step(optimizer, problem.gradients(0))  # without a profiler
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        problem.step(optimizer, problem.gradients(1))
        problem.step(optimizer, problem.gradients(2))
    ranges = {event.key: event.count for event in profiler.key_averages() if event.key.startswith("Optimizer.step#")}
    assert ranges == {"Optimizer.step#ClippedSGD.step": 2}


@pytest.mark.parametrize("way", ["own", "global"])
def test_post_hook_that_is_registered_during_the_step_runs_as_torchs(problem, way):
    def run(cls):
        params, seen = problem.parameters(), []
        optimizer = cls(params)
        register = register_optimizer_step_post_hook if way == "global" else optimizer.register_step_post_hook
        handles = []

        def closure():
            handles.append(register(lambda *_: seen.append("post")))
            return 0.0

        try:
            optimizer.step(closure)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    assert run(ClippedSGD) == run(torch.optim.SGD) == ["post"]


def test_pre_hook_may_replace_the_arguments_of_step(problem):
    """As torch documents it: a pre-hook that returns a tuple of arguments replaces them."""
    params = problem.parameters()
    optimizer, calls = ClippedSGD(params, lr=0.1, clipping_level=0.5), []
    closure = closure_of(optimizer, params, problem.gradients(0, norm=10.0), calls)
    optimizer.register_step_pre_hook(lambda this, args, kwargs: ((this, closure), {}))
    optimizer.step()
    assert calls == [True]
    assert problem.length(gradients_of(params)) == pytest.approx(0.5, rel=1e-5)


# torch.compile


@pytest.mark.parametrize(
    ("name", "clipping_type", "backend"),
    [
        *(("SGD", name, "eager") for name in ("none", "norm", "layer_wise_auto", "linear_rand_auto", "adaptive")),
        *(("AdamW", name, "eager") for name in ("none", "norm")),
        *((name, "norm", "aot_eager") for name in ("SGD", "AdamW")),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")  # torch advises 3.13.1
def test_compiled_step_is_the_eager_one(problem, name, clipping_type, backend):
    clipped_class, _, options = CLASSES[name]
    torch.compiler.reset()
    runs = []
    for compiled in (False, True):
        params = problem.parameters()
        optimizer = clipped_class(params, **options, clipping_type=clipping_type, clipping_window=4)
        step = torch.compile(optimizer.step, backend=backend) if compiled else optimizer.step
        for number in range(5):
            for p, g in zip(params, problem.gradients(number), strict=True):
                p.grad = g
            step()
        runs.append((problem.copies(params), optimizer.clipping_stats()))
    (weights, stats), (compiled_weights, compiled_stats) = runs
    assert_close(compiled_weights, weights, 1e-5)
    assert compiled_stats == pytest.approx(stats, rel=1e-5, nan_ok=True)
    assert stats["steps"] == 5 or clipping_type == "none"


FIRST_STEP = """
import torch
from torch_clipped import ClippedSGD
weight = torch.nn.Parameter(torch.zeros(2))
weight.grad = torch.tensor([3.0, 4.0])
optimizer = ClippedSGD([weight], lr=1.0)
torch.compile(optimizer.step, backend="eager")()
print(weight.tolist())
"""


def test_first_step_of_a_process_may_be_a_compiled_one():
    done = subprocess.run([sys.executable, "-c", FIRST_STEP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx([-0.6, -0.8])


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
    ("clipping_type", "optimizer_class"), [*zip(REAL, cycle([ClippedSGD, ClippedAdam, ClippedAdamW]), strict=False)]
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


# LevelScheduler


def test_level_scheduler_writes_the_level_of_each_step(problem):
    optimizer = ClippedSGD(problem.parameters(), lr=0.1, clipping_level=9.0)
    scheduler = LevelScheduler(optimizer, lambda step: 1.0 + step)
    lengths, levels = [], []
    for step in range(4):
        assert scheduler.last_epoch == step
        assert scheduler.get_last_level() == [1.0 + step]
        lengths.append(problem.length(problem.step(optimizer, problem.gradients(step, norm=100.0))))
        levels.append(optimizer.param_groups[0]["clipping_level"])
        scheduler.step()
    assert levels == [1.0, 2.0, 3.0, 4.0]
    assert lengths == pytest.approx(levels, rel=1e-5)


def test_level_scheduler_takes_one_schedule_a_group(problem):
    params = problem.parameters()
    groups = [{"params": params[:2]}, {"params": params[2:], "clipping_type": "coord_wise"}]
    optimizer = ClippedSGD(groups, lr=0.1)
    scheduler = LevelScheduler(optimizer, [linear_warmup(1.0, 2.0, steps=2), lambda step: 0.1 * (step + 1)])
    seen = []
    for _ in range(3):
        seen.append([group["clipping_level"] for group in optimizer.param_groups])
        assert scheduler.get_last_level() == seen[-1]
        scheduler.step()
    assert seen == [pytest.approx(levels) for levels in ([1.0, 0.1], [1.5, 0.2], [2.0, 0.3])]


def test_level_scheduler_of_one_schedule_drives_all_groups(problem):
    params = problem.parameters()
    optimizer = ClippedSGD([{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.1}], lr=0.1)
    LevelScheduler(optimizer, lambda step: 0.25)
    assert [group["clipping_level"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert len(optimizer.clipping_stats(per_set=True)) == 1


@pytest.mark.parametrize("schedules", [[], [lambda step: 1.0] * 2, (lambda step: 1.0,) * 3], ids=len)
def test_level_scheduler_refuses_another_number_of_schedules(problem, schedules):
    optimizer = ClippedSGD(problem.parameters(), clipping_level=0.7)
    with pytest.raises(ValueError, match="schedule"):
        LevelScheduler(optimizer, schedules)
    assert optimizer.param_groups[0]["clipping_level"] == 0.7


def test_level_scheduler_refuses_an_optimizer_that_does_not_clip(problem):
    with pytest.raises(ValueError, match="optimizer must be one that clips"):
        LevelScheduler(torch.optim.SGD(problem.parameters()), lambda step: 1.0)
    LevelScheduler(clip_optimizer(torch.optim.SGD(problem.parameters())), lambda step: 1.0)


@pytest.mark.parametrize(
    ("nonsense", "at"),
    [*((value, 0) for value in [-1.0, 0.0, math.nan, "high", True, [1.0], 1j]), (-1.0, 2), (math.nan, 2), ("high", 2)],
    ids=str,
)
def test_level_scheduler_refuses_nonsense_and_leaves_every_level_alone(problem, nonsense, at):
    params = problem.parameters()
    optimizer = ClippedSGD([{"params": params[:2]}, {"params": params[2:]}], clipping_level=0.7)
    schedules = [lambda step: 0.5, lambda step: nonsense if step == at else 0.5]
    if at == 0:
        with pytest.raises(ValueError, match="clipping_level"):
            LevelScheduler(optimizer, schedules)
        assert [group["clipping_level"] for group in optimizer.param_groups] == [0.7, 0.7]
        return
    scheduler = LevelScheduler(optimizer, schedules)
    scheduler.step()
    with pytest.raises(ValueError, match="clipping_level"):
        scheduler.step()
    assert scheduler.last_epoch == 1
    assert scheduler.get_last_level() == [0.5, 0.5]
    problem.step(optimizer, problem.gradients(0))


@pytest.mark.parametrize(("clipping_type", "level"), [("auto", 1.5), ("zscore", -0.1), ("none", 1.0)])
def test_level_scheduler_refuses_a_level_of_another_unit(problem, clipping_type, level):
    optimizer = ClippedSGD(problem.parameters(), clipping_type=clipping_type)
    before = optimizer.param_groups[0]["clipping_level"]
    with pytest.raises(ValueError, match="clipping_level"):
        LevelScheduler(optimizer, lambda step: level)
    assert optimizer.param_groups[0]["clipping_level"] == before


def test_level_scheduler_is_resumed_from_its_state(problem):
    def new():
        optimizer = ClippedSGD(problem.parameters(), lr=0.1)
        return optimizer, LevelScheduler(optimizer, linear_warmup(1.0, 2.0, steps=10))

    optimizer, scheduler = new()
    for step in range(3):
        problem.step(optimizer, problem.gradients(step))
        scheduler.step()
    other, other_scheduler = new()
    other.load_state_dict(optimizer.state_dict())
    other_scheduler.load_state_dict(scheduler.state_dict())
    assert other_scheduler.last_epoch == scheduler.last_epoch == 3
    assert other_scheduler.get_last_level() == pytest.approx([1.3])
    scheduler.step()
    other_scheduler.step()
    assert other_scheduler.get_last_level() == scheduler.get_last_level() == pytest.approx([1.4])
    assert all(isinstance(value, (int, float, str, list)) for value in scheduler.state_dict().values())


def test_level_scheduler_goes_on_from_last_epoch(problem):
    optimizer = ClippedSGD(problem.parameters(), lr=0.1)
    scheduler = LevelScheduler(optimizer, linear_warmup(1.0, 2.0, steps=10), last_epoch=4)
    assert scheduler.last_epoch == 5
    assert scheduler.get_last_level() == pytest.approx([1.5])


def test_level_and_learning_rate_are_scheduled_side_by_side(problem):
    optimizer = ClippedSGD(problem.parameters(), lr=1.0)
    rates, levels = lr_scheduler.ExponentialLR(optimizer, 0.5), LevelScheduler(optimizer, lambda step: 2.0**-step)
    for step in range(4):
        group = optimizer.param_groups[0]
        assert (group["lr"], group["clipping_level"]) == (0.5**step, 0.5**step)
        problem.step(optimizer, problem.gradients(step))
        rates.step()
        levels.step()


def test_linear_warmup_is_a_straight_line_and_then_its_end():
    for start, end in ((0.5, 3.0), (10.0, 1.0)):
        schedule = linear_warmup(start, end, steps=5)
        assert [schedule(step) for step in range(5)] == pytest.approx([start + (end - start) * step / 5 for step in range(5)])
        assert {schedule(step) for step in (5, 6, 10_000)} == {end}


def test_multiple_at_start_is_the_multiple_in_the_first_steps_only():
    schedule = multiple_at_start(0.5, 10, steps=3)
    assert [schedule(step) for step in range(6)] == [5.0, 5.0, 5.0, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "3", None])
def test_ready_schedules_refuse_nonsense(steps):
    with pytest.raises(ValueError, match="steps"):
        linear_warmup(0.1, 1.0, steps=steps)
    with pytest.raises(ValueError, match="steps"):
        multiple_at_start(0.1, 10, steps=steps)


@pytest.mark.parametrize(("clipping_type", "way"), each_type_with("scheduler", "param_groups"))
def test_level_that_changes_each_step_is_the_oracles_and_keeps_the_history(problem, clipping_type, way):
    oracle = ReferenceClipper(clipping_type, window=6)
    default = oracle.level
    upwards = "auto" in clipping_type  # a quantile is at most 1

    def schedule(step):
        return default * (0.5 + 0.1 * (step % 4)) if upwards else default * (0.5 + 0.3 * (step % 5))

    params = problem.parameters(F64)
    optimizer = ClippedSGD(params, lr=0.01, clipping_type=clipping_type, clipping_window=6, clipping_seed=3)
    scheduler = LevelScheduler(optimizer, schedule) if way == "scheduler" else None
    for step in range(130 if clipping_type == "adagc" else 50):
        optimizer.param_groups[0]["clipping_level"] = oracle.level = schedule(step)
        if scheduler is not None:
            assert scheduler.get_last_level() == [schedule(step)]
        grads = problem.gradients(step, dtype=F64)
        draw = uniform(3, 0, oracle.steps)
        wanted = oracle.clip(flat(grads), weights=flat(params), uniform=draw, shapes=problem.shapes)
        clipped = problem.step(optimizer, grads)
        assert_close([g.flatten() for g in clipped], [torch.tensor(w, dtype=F64) for w in wanted], 1e-9)
        if scheduler is not None:
            scheduler.step()
    stats = optimizer.clipping_stats()
    assert (stats["steps"], stats["clipped_steps"]) == (oracle.steps, oracle.clipped_steps)
    assert oracle.clipped_steps > 0
    if CLIPPING_TYPES[clipping_type].measured.gives_norm:
        assert optimizer.grad_norms().tolist() == pytest.approx(oracle.grad_norms, rel=1e-12)
