"""Gradients of every kind: missing, empty, strided, of several types of number."""

import math
import subprocess
import sys

import pytest
import torch
from support.assertions import assert_close, equal
from support.cases import FLAGS, ONE_A_KIND, ONE_A_MEASURE, TYPES, pairwise
from support.gradient_oracle import CLASSES, DIGITS, Oracle, Spiky, arguments_of, assert_oracles

from torch_clipped import ClippedAdamW, ClippedSGD, clip_gradients_

F64 = torch.float64
NAMES_AND_TYPES = [*(("SGD", name) for name in TYPES), *(("AdamW", name) for name in ONE_A_MEASURE)]


@pytest.fixture
def problem():
    return Spiky()


# Missing gradients


@pytest.mark.parametrize(("name", "clipping_type"), NAMES_AND_TYPES)
def test_missing_gradients_are_the_oracles(problem, name, clipping_type):
    clipped_class, _, options = CLASSES[name]
    params = problem.parameters()
    optimizer, oracle = clipped_class(params, **options, **arguments_of(clipping_type)), Oracle(clipping_type)
    for step in range(40):
        grads = problem.gradients(step)
        missing = {step % 4, (step // 3) % 4} if step % 6 else set(range(4))
        grads = [None if i in missing else g for i, g in enumerate(grads)]
        wanted, before = oracle.clip(grads, params), problem.copies(params)
        assert_oracles(problem.step(optimizer, grads), wanted, f"step {step}")
        for p, was, g in zip(params, before, grads, strict=True):
            assert g is not None or torch.equal(p, was)
    assert optimizer.clipping_stats()["steps"] == oracle.clipper.steps < 40
    assert optimizer.clipping_stats()["clipped_steps"] == oracle.clipper.clipped_steps > 0


@pytest.mark.parametrize("clipping_type", TYPES)
def test_parameter_that_never_has_a_gradient_changes_nothing_for_the_others(problem, clipping_type):
    params, other_params = problem.parameters(F64), problem.parameters(F64)
    optimizer = ClippedAdamW(params, lr=0.01, **arguments_of(clipping_type))
    other = ClippedAdamW(other_params[1:], lr=0.01, **arguments_of(clipping_type))
    for step in range(36):
        grads = problem.gradients(step, dtype=F64)
        assert equal(problem.step(optimizer, [None, *grads[1:]])[1:], problem.step(other, grads[1:]))
    assert equal(params[1:], other_params[1:])
    assert torch.equal(params[0], problem.parameters(F64)[0])
    assert optimizer.grad_norms().tolist() == other.grad_norms().tolist()


@pairwise(name=CLASSES, clipping_type=ONE_A_KIND, flags=["chosen", "fused"])
def test_steps_without_any_gradient_change_nothing(problem, name, clipping_type, flags):
    clipped_class, _, options = CLASSES[name]
    params = problem.parameters()
    optimizer = clipped_class(params, **options, **FLAGS[flags], **arguments_of(clipping_type))
    nothing = [None] * len(params)
    problem.step(optimizer, nothing)
    assert equal(params, problem.parameters())
    assert optimizer.clipping_stats()["steps"] == 0
    for step in range(3):
        problem.step(optimizer, problem.gradients(step))
    before, stats, norms = problem.copies(params), optimizer.clipping_stats(), optimizer.grad_norms().tolist()
    assert problem.step(optimizer, nothing) == nothing
    assert equal(params, before)
    assert optimizer.clipping_stats() == pytest.approx(stats, rel=0, abs=0, nan_ok=True)
    assert optimizer.grad_norms().tolist() == norms
    problem.step(optimizer, problem.gradients(4))
    assert optimizer.clipping_stats()["steps"] == 4


# Shapes


@pairwise(name=CLASSES, clipping_type=TYPES, flags=["chosen", "loop"])
def test_empty_tensors_change_nothing_for_the_others(problem, name, clipping_type, flags):
    clipped_class, _, options = CLASSES[name]
    options = options | FLAGS[flags] | arguments_of(clipping_type)
    params, other_params = problem.parameters(), problem.parameters()
    empty = [torch.nn.Parameter(torch.empty(shape)) for shape in ((0,), (0, 3), (3, 0), (2, 0, 4))]
    optimizer, other = clipped_class([*params, *empty], **options), clipped_class(other_params, **options)
    for step in range(36):
        grads = problem.gradients(step)
        clipped = problem.step(optimizer, [*grads, *(torch.empty_like(p) for p in empty)])
        assert_close(clipped[: len(grads)], problem.step(other, grads), 1e-6)
    assert_close(params, other_params, 1e-5)
    counts = [{k: o.clipping_stats()[k] for k in ("steps", "clipped_steps", "skipped_steps")} for o in (optimizer, other)]
    assert counts[0] == counts[1]
    assert counts[0]["clipped_steps"] > 0


@pytest.mark.parametrize("clipping_type", TYPES)
def test_nothing_but_empty_tensors(clipping_type):
    params = [torch.nn.Parameter(torch.empty(shape)) for shape in ((0,), (3, 0))]
    optimizer = ClippedSGD(params, lr=0.1, momentum=0.9, **arguments_of(clipping_type))
    for p in params:
        p.grad = torch.empty_like(p)
    optimizer.step()
    assert optimizer.clipping_stats()["steps"] == 0
    assert clip_gradients_(params).item() == 0


@pytest.mark.parametrize(("name", "clipping_type"), NAMES_AND_TYPES)
def test_scalars_are_the_oracles(problem, name, clipping_type):
    clipped_class, _, options = CLASSES[name]
    shapes = ((), (), (1,))
    params = problem.parameters(shapes=shapes)
    optimizer, oracle = clipped_class(params, **options, **arguments_of(clipping_type)), Oracle(clipping_type)
    for step in range(40):
        grads = problem.gradients(step, shapes=shapes)
        wanted = oracle.clip(grads, params)
        clipped = problem.step(optimizer, grads)
        assert_oracles(clipped, wanted, f"step {step}")
        assert [g.shape for g in clipped] == [p.shape for p in params]
    assert oracle.clipper.clipped_steps > 0


# Layouts


LAYOUTS = {
    "transposed gradient": (lambda p: p, lambda g: g.transpose(0, 1).contiguous().transpose(0, 1)),
    "gradient with holes": (lambda p: p, lambda g: torch.stack([g, g], -1)[..., 0]),
    "channels_last gradient": (lambda p: p, lambda g: g.to(memory_format=torch.channels_last)),
    "channels_last parameter": (lambda p: p.to(memory_format=torch.channels_last), lambda g: g),
    "channels_last both": (lambda p: p.to(memory_format=torch.channels_last), lambda g: g.to(memory_format=torch.channels_last)),
    "transposed parameter": (lambda p: p.transpose(0, 1).contiguous().transpose(0, 1), lambda g: g),
    "parameter with holes": (lambda p: torch.stack([p, p], -1)[..., 0], lambda g: g),
}


@pairwise(name=CLASSES, clipping_type=ONE_A_MEASURE, layout=LAYOUTS)
def test_layout_in_memory_plays_no_part(problem, name, clipping_type, layout):
    clipped_class, _, options = CLASSES[name]
    lay_param, lay_grad = LAYOUTS[layout]
    shapes = ((4, 3, 2, 5), (2, 6, 3, 3))
    contiguous = problem.parameters(shapes=shapes)
    params = [torch.nn.Parameter(lay_param(p.detach().clone())) for p in contiguous]
    optimizer = clipped_class(params, **options, **arguments_of(clipping_type))
    other = clipped_class(contiguous, **options, **arguments_of(clipping_type))
    for step in range(8):
        grads = problem.gradients(step, shapes=shapes)
        for p, g in zip(params, grads, strict=True):
            p.grad = lay_grad(g.clone())
        optimizer.step()
        assert_close([p.grad for p in params], problem.step(other, grads), 1e-5)
        assert_close(params, contiguous, 1e-5)
    assert optimizer.clipping_stats()["clipped_steps"] == other.clipping_stats()["clipped_steps"] > 0


@pairwise(name=CLASSES, clipping_type=ONE_A_MEASURE, flags=["chosen", "loop", "foreach"])
def test_expanded_gradient_is_clipped_as_the_dense_one_or_refused_before_anything_changed(problem, name, clipping_type, flags):
    clipped_class, _, options = CLASSES[name]
    runs = []
    for expanded in (True, False):
        weight = torch.nn.Parameter(torch.full((4, 3), 0.5))
        optimizer = clipped_class([weight], **options, **FLAGS[flags], **arguments_of(clipping_type))
        for size in (1.0, 2.0, 1.0, 3.0, 200.0):
            one = torch.tensor(size)
            weight.grad = one.expand(4, 3) if expanded else one.expand(4, 3).clone()
            before = weight.detach().clone()
            try:
                optimizer.step()
            except RuntimeError as error:
                assert expanded
                assert "single memory location" in str(error)  # noqa: PT017
                assert torch.equal(weight, before)
                return
        runs.append((weight.detach(), weight.grad.clone()))
    assert_close(*runs, 1e-5)


CHILD = """
import torch
from torch_clipped import ClippedAdamW, ClippedSGD
for optimizer_class in (ClippedSGD, ClippedAdamW):
    wanted = None
    for fused in (False, True, True, True):
        weight = torch.nn.Parameter(torch.ones(640, 48))
        weight.grad = torch.tensor(3.0).expand(640, 48)
        if not fused:
            weight.grad = weight.grad.clone()
        try:
            optimizer_class([weight], lr=0.1, clipping_level=0.5, fused=fused, foreach=False).step()
        except RuntimeError:
            assert fused
            assert (weight == 1).all()
            continue
        wanted = weight.detach() if wanted is None else wanted
        torch.testing.assert_close(weight.detach(), wanted)
"""


def test_fused_kernels_asked_for_do_not_write_outside_an_expanded_gradient():
    """In a process of its own: writing outside a tensor corrupts the memory of the process."""
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=100, check=False)
    assert child.returncode == 0, f"{child.returncode}: {child.stderr[-2000:]}"


# Types of number


@pairwise(ids=str, clipping_type=ONE_A_KIND, flags=["chosen", "foreach"], dtype=DIGITS)
def test_every_type_of_number_is_the_oracles(problem, clipping_type, flags, dtype):
    params = problem.parameters(dtype)
    optimizer = ClippedSGD(params, lr=0.01, momentum=0.9, **FLAGS[flags], **arguments_of(clipping_type))
    oracle = Oracle(clipping_type)
    for step in range(25):
        grads = problem.gradients(step, dtype=dtype)
        wanted = oracle.clip(grads, params)
        clipped = problem.step(optimizer, grads)
        assert_oracles(clipped, wanted, f"step {step}")
        assert all(g.dtype == p.dtype == dtype for g, p in zip(clipped, params, strict=True))


@pairwise(name=CLASSES, clipping_type=ONE_A_KIND, flags=["chosen", "foreach"])
def test_mixtures_of_types_are_the_oracles(problem, name, clipping_type, flags):
    clipped_class, _, options = CLASSES[name]
    dtypes = list(DIGITS)
    params = [torch.nn.Parameter(p.detach().to(dtype)) for p, dtype in zip(problem.parameters(), dtypes, strict=True)]
    optimizer = clipped_class(params, **options, **FLAGS[flags], **arguments_of(clipping_type))
    oracle = Oracle(clipping_type)
    for step in range(36):
        grads = [g.to(dtype) for g, dtype in zip(problem.gradients(step, dtype=F64), dtypes, strict=True)]
        wanted = oracle.clip(grads, params)
        assert_oracles(problem.step(optimizer, grads), wanted, f"step {step}", digits=1e-5)
    assert optimizer.clipping_stats()["clipped_steps"] == oracle.clipper.clipped_steps > 0


KERNELS = {
    "SGD": (ClippedSGD, {}),
    "SGD with momentum": (ClippedSGD, {"momentum": 0.9}),
    "AdamW": (ClippedAdamW, {"weight_decay": 0.0}),
}


@pytest.mark.parametrize("flags", ["chosen", "foreach"])
@pytest.mark.parametrize("dtype", DIGITS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_entry_of_every_size_and_type_of_number_is_stepped(kernel, dtype, flags):
    """Vectorised kernels treat the first entries of a tensor and the last ones apart."""
    clipped_class, options = KERNELS[kernel]
    for size in (1, 15, 16, 33, 1000):
        weight = torch.nn.Parameter(torch.zeros(size, dtype=dtype))
        optimizer = clipped_class([weight], lr=0.5, clipping_level=math.sqrt(size), **options, **FLAGS[flags])
        for step, wanted in enumerate((-0.5, -1.0 - 0.5 * options.get("momentum", 0))):
            weight.grad = torch.full_like(weight, 4.0 if step else 1.0)  # the second one is clipped to ones
            optimizer.step()
            torch.testing.assert_close(weight.detach().double(), torch.full((size,), wanted, dtype=F64), rtol=2e-2, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "clipping_type"), NAMES_AND_TYPES)
def test_parameters_on_several_devices_form_one_length(problem, name, clipping_type):
    if not torch.accelerator.is_available():
        pytest.skip("parameters on several devices need an accelerator, there is none")
    clipped_class, _, options = CLASSES[name]
    device = torch.accelerator.current_accelerator()
    params = [torch.nn.Parameter(p.detach().to(device if i % 2 else "cpu")) for i, p in enumerate(problem.parameters())]
    optimizer, oracle = clipped_class(params, **options, **arguments_of(clipping_type)), Oracle(clipping_type)
    for step in range(36):
        grads = [g.to(p.device) for g, p in zip(problem.gradients(step), params, strict=True)]
        wanted = oracle.clip([g.cpu() for g in grads], [p.detach().cpu() for p in params])
        assert_oracles([g.cpu() for g in problem.step(optimizer, grads)], wanted, f"step {step}")
