"""Step hooks and the profiler."""

import pytest
import torch
from support.cases import gradients_of, pairwise
from support.loops import ClippedRMSprop, closure_of
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from torch_clipped import ClippedSGD, clip_optimizer


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
