"""A step that a fused kernel takes does not make the host wait: with tensors that stand for an accelerator's, and real ones."""

import math
from contextlib import contextmanager
from itertools import cycle, product

import pytest
import torch
from support.cases import ONE_A_KIND, TYPES
from torch.utils._python_dispatch import TorchDispatchMode

from torch_clipped import ClippedAdamW, ClippedSGD, ClippingWarning, LevelScheduler
from torch_clipped._engine.step import clip_

aten = torch.ops.aten
LOOKS = {
    aten._local_scalar_dense.default,  # item(), float(), int(), bool(), and so `if tensor:`
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.unique_dim.default,
    aten._unique2.default,
}
POLICIES = ["skip", "zero", "propagate"]
CLASSES = [ClippedSGD, ClippedAdamW]


class HostMayNotLook(TorchDispatchMode):
    """Raises where an operation would wait for an accelerator to know a number or a shape."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in LOOKS:
            raise AssertionError(f"{func} makes the host wait")
        if func is aten.index.Tensor and any(i is not None and i.dtype is torch.bool for i in args[1]):
            raise AssertionError("an index of booleans makes the host wait")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_looking(no_host):
    """A context in which the CPU stands for an accelerator: the host is denied to look at any tensor."""

    def refuse(*args, **kwargs):
        raise AssertionError("the host looks at a tensor")

    @contextmanager
    def guard():
        with HostMayNotLook(), pytest.MonkeyPatch.context() as patch:
            for name in ("tolist", "numpy", "__array__", "cpu"):
                patch.setattr(torch.Tensor, name, refuse)
            yield

    return guard


LOOKING = {
    "float": float,
    "bool": bool,
    "int": int,
    "item": lambda x: x.item(),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
}


@pytest.mark.parametrize("look", LOOKING)
def test_guard_notices_a_host_that_looks(no_looking, look):
    with pytest.raises(AssertionError, match=r"look|wait"), no_looking():
        LOOKING[look](torch.ones(()))


def take_steps(problem, params, step, guard):
    for number in range(8):
        for p, g in zip(params, problem.gradients(number), strict=True):
            p.grad = g
        with guard():
            step()


@pytest.mark.parametrize(
    ("clipping_type", "nonfinite"),
    [*product(ONE_A_KIND, POLICIES), *zip([name for name in TYPES if name not in ONE_A_KIND], cycle(POLICIES))],
)
def test_engine_does_not_look(problem, no_looking, clipping_type, nonfinite):
    params = problem.parameters()
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    optimizer = ClippedSGD(groups, clipping_type=clipping_type, nonfinite=nonfinite, clipping_window=5)
    sets, totals = optimizer._clip_sets()
    take_steps(problem, params, lambda: clip_(sets, totals, [s.gradients() for s in sets]), no_looking)
    assert optimizer.clipping_stats()["steps"] == 8


@pytest.mark.parametrize(("clipping_type", "cls"), [*zip(TYPES, cycle(CLASSES))])
def test_step_does_not_look(problem, no_looking, clipping_type, cls):
    params = problem.parameters()
    optimizer = cls(params, clipping_type=clipping_type, clipping_window=5, **({"momentum": 0.9} if cls is ClippedSGD else {}))
    take_steps(problem, params, optimizer.step, no_looking)
    assert optimizer.clipping_stats()["steps"] == 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("clipping_type", "cls"), [*zip(TYPES, cycle(CLASSES))])
def test_no_synchronization_on_a_device(problem, clipping_type, cls):
    params = [torch.nn.Parameter(p.detach().cuda()) for p in problem.parameters()]
    optimizer = cls(params, clipping_type=clipping_type, clipping_window=5)
    steps = [[g.cuda() for g in problem.gradients(step)] for step in range(8)]
    for p, g in zip(params, steps[0], strict=True):
        p.grad = g
    optimizer.step()  # makes the state
    torch.cuda.set_sync_debug_mode("error")
    try:
        for grads in steps[1:]:
            for p, g in zip(params, grads, strict=True):
                p.grad = g
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_skipped_steps_on_a_device_are_told_of_without_waiting_for_it():
    weight = torch.nn.Parameter(torch.zeros(4, device="cuda"))
    optimizer = ClippedAdamW([weight])
    bad, good = torch.full((4,), math.nan, device="cuda"), torch.ones(4, device="cuda")

    def steps(grad, count):
        for _ in range(count):
            weight.grad = grad
            optimizer.step()

    steps(bad, 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.warns(ClippingWarning, match="1 of 50 steps were skipped"):
            steps(good, 100)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("clipping_type", "is_scheduled"), [*product(TYPES, [True]), *product(ONE_A_KIND, [False])])
def test_captured_step_equals_the_step(problem, clipping_type, is_scheduled):
    def run(captured):
        params = [torch.nn.Parameter(p.detach().cuda()) for p in problem.parameters()]
        optimizer = ClippedAdamW(params, lr=0.1, capturable=True, clipping_type=clipping_type, clipping_window=5)
        schedule = LevelScheduler(optimizer, lambda step: 0.95**step) if is_scheduled else None
        for p in params:
            p.grad = torch.zeros_like(p)

        def fill(step):
            for p, g in zip(params, problem.gradients(step), strict=True):
                p.grad.copy_(g)

        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for step in range(7):
                fill(step)
                optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        if captured:
            with torch.cuda.graph(graph):
                optimizer.step()
        for step in range(7, 14):
            fill(step)
            graph.replay() if captured else optimizer.step()
            if schedule is not None:
                schedule.step()
        return [p.detach().cpu() for p in params], optimizer.clipping_stats()

    weights, stats = run(captured=True)
    wanted, wanted_stats = run(captured=False)
    assert all(torch.equal(w, v) for w, v in zip(weights, wanted, strict=True))
    assert stats == wanted_stats
