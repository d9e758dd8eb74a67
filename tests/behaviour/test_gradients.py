"""Gradients of every kind: missing, empty, strided, sparse, complex, of several types; parameters that change; adaptive units."""

import math
import subprocess
import sys

import pytest
import torch
from support.assertions import assert_close, equal
from support.cases import FLAGS, ONE_A_KIND, ONE_A_MEASURE, TYPES, pairwise
from support.problems import Problem
from support.reference import ReferenceClipper

from torch_clipped import Clipped, ClippedAdamW, ClippedSGD, clip_gradients_
from torch_clipped.decisions import uniform

F64 = torch.float64
CLASSES = {
    "SGD": (ClippedSGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "AdamW": (ClippedAdamW, torch.optim.AdamW, {"lr": 0.01}),
}
NAMES_AND_TYPES = [*(("SGD", name) for name in TYPES), *(("AdamW", name) for name in ONE_A_MEASURE)]
LEVELS = {
    "adaptive": 0.05,
    "auto": 0.5,
    "linear_rand_auto": 0.5,
    "quadratic_rand_auto": 0.5,
    "zscore": 1.0,
    "layer_wise_zscore": 1.0,
}
DIGITS = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


class Spiky(Problem):
    """With spikes once every warm-up is over."""

    def gradients(self, step, norm=None, dtype=torch.float32, shapes=Problem.shapes):
        grads = super().gradients(step, norm, dtype, shapes)
        return [g * 50 for g in grads] if norm is None and is_spike(step) else grads


def is_spike(step):
    return 31 <= step < 90 and step % 3 == 1


@pytest.fixture
def problem():
    return Spiky()


def arguments_of(clipping_type):
    return {
        "clipping_type": clipping_type,
        "clipping_level": LEVELS.get(clipping_type),
        "clipping_window": 6,
        "clipping_seed": 3,
    }


class Oracle:
    """The slow oracle fed with tensors."""

    def __init__(self, clipping_type):
        self.clipper = ReferenceClipper(clipping_type, LEVELS.get(clipping_type), window=6)

    def clip(self, grads, params):
        """The clipped gradients, flat and in double precision."""
        numbers = [None if g is None else wide(g).flatten().tolist() for g in grads]
        weights, shapes = [wide(p.detach()).flatten().tolist() for p in params], [p.shape for p in params]
        draw = uniform(3, 0, self.clipper.steps)
        clipped = self.clipper.clip(numbers, weights=weights, uniform=draw, shapes=shapes)
        return [
            None if c is None else torch.tensor(c, dtype=wide(p.detach()).dtype) for c, p in zip(clipped, params, strict=True)
        ]


def wide(tensor):
    return tensor.to(torch.complex128 if tensor.is_complex() else F64)


def assert_oracles(clipped, wanted, what, digits=0.0):
    for g, w in zip(clipped, wanted, strict=True):
        assert (g is None) == (w is None), what
        if g is not None and g.numel() > 0:
            bound = max(digits, DIGITS.get(g.dtype, 2e-5)) * w.abs().max().item()
            assert (wide(g).flatten() - w).abs().max().item() <= bound, what


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


# Sparse gradients


class ClippedSparseAdam(Clipped, torch.optim.SparseAdam):
    """SparseAdam that clips."""


def embedding(sparse, dtype=F64):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(7, 4, generator=generator, dtype=F64)
    return torch.nn.Embedding.from_pretrained(weight.to(dtype), freeze=False, sparse=sparse)


def look_up(module, step):
    """A loss whose gradient has repeated rows, at heavy-tailed lengths."""
    generator = torch.Generator().manual_seed(50 + step)
    rows = torch.randint(0, 7, (6,), generator=generator)
    size = math.exp(1.5 * torch.randn((), generator=generator).item()) * (50 if is_spike(step) else 1)
    factors = torch.randn(6, 4, generator=generator, dtype=F64) * size
    (module(torch.cat([rows, rows[:2]])) * torch.cat([factors, factors[:2]]).to(module.weight.dtype)).sum().backward()


@pairwise(optimizer_class=[ClippedSGD, ClippedSparseAdam], clipping_type=TYPES, coalesced=[False, True])
def test_sparse_gradients_are_clipped_as_the_dense_ones(optimizer_class, clipping_type, coalesced):
    sparse, dense = embedding(True), embedding(False)
    optimizer = optimizer_class([sparse.weight], lr=0.05, **arguments_of(clipping_type))
    other = ClippedSGD([dense.weight], lr=0.05, **arguments_of(clipping_type))
    oracle = Oracle(clipping_type)
    for step in range(40):
        optimizer.zero_grad()
        other.zero_grad()
        with torch.no_grad():
            dense.weight.copy_(sparse.weight)  # SparseAdam goes its own way
        look_up(sparse, step)
        look_up(dense, step)
        assert not sparse.weight.grad.is_coalesced()
        if coalesced:
            sparse.weight.grad = sparse.weight.grad.coalesce()
        wanted = oracle.clip([dense.weight.grad], [dense.weight])
        optimizer.step()
        other.step()
        assert sparse.weight.grad.is_sparse
        assert_close([sparse.weight.grad.to_dense()], [dense.weight.grad])
        assert_oracles([sparse.weight.grad.to_dense()], wanted, f"step {step}")
        if optimizer_class is ClippedSGD:
            assert_close([sparse.weight], [dense.weight])
    assert optimizer.clipping_stats()["clipped_steps"] == oracle.clipper.clipped_steps > 0
    if clipping_type != "coord_wise":
        assert optimizer.grad_norms().tolist() == pytest.approx(other.grad_norms().tolist(), rel=1e-12)


@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise"])
def test_sparse_adam_steps_as_the_plain_one_with_gradients_clipped_by_hand(clipping_type):
    module, by_hand, dense = embedding(True), embedding(True), embedding(False)
    optimizer = ClippedSparseAdam([module.weight], lr=0.05, clipping_type=clipping_type, clipping_level=0.6)
    plain = torch.optim.SparseAdam([by_hand.weight], lr=0.05)
    clipped = 0
    for step in range(10):
        for m in (module, by_hand, dense):
            m.weight.grad = None
            look_up(m, step)
        coefficient = min(1.0, 0.6 / dense.weight.grad.norm().item())
        by_hand.weight.grad = by_hand.weight.grad.coalesce() * coefficient
        optimizer.step()
        plain.step()
        assert_close([module.weight], [by_hand.weight])
        clipped += coefficient < 1
    assert clipped > 3


@pytest.mark.parametrize(
    ("clipping_type", "flags"), [*((name, "chosen") for name in TYPES), *((name, "loop") for name in ONE_A_MEASURE)]
)
def test_sparse_and_dense_gradients_form_one_length(problem, clipping_type, flags):
    sparse, params = embedding(True), problem.parameters(F64)
    every = [sparse.weight, *params]
    optimizer = ClippedSGD(every, lr=0.05, **FLAGS[flags], **arguments_of(clipping_type))
    oracle = Oracle(clipping_type)
    for step in range(36):
        optimizer.zero_grad()
        look_up(sparse, step)
        for p, g in zip(params, problem.gradients(step, dtype=F64), strict=True):
            p.grad = g
        grads = [sparse.weight.grad.to_dense(), *problem.copies([p.grad for p in params])]
        wanted = oracle.clip(grads, every)
        optimizer.step()
        assert_oracles([sparse.weight.grad.to_dense(), *(p.grad for p in params)], wanted, f"step {step}")


@pytest.mark.parametrize("clipping_type", ONE_A_KIND)
@pytest.mark.filterwarnings("ignore:a gradient was not finite")
def test_sparse_gradient_that_is_not_finite_is_skipped(clipping_type):
    module = embedding(True)
    optimizer = ClippedSGD([module.weight], lr=0.05, **arguments_of(clipping_type))
    (module(torch.tensor([1, 1, 3])) * math.inf).sum().backward()
    before = module.weight.detach().clone()
    optimizer.step()
    assert torch.equal(module.weight, before)
    assert optimizer.clipping_stats()["skipped_steps"] == 1


# Complex parameters


@pairwise(ids=str, name=CLASSES, clipping_type=ONE_A_KIND, dtype=[torch.complex64, torch.complex128])
def test_complex_gradients_are_the_oracles(problem, name, clipping_type, dtype):
    clipped_class, plain_class, options = CLASSES[name]
    shapes = ((3, 4), (5,), ())
    params, plain_params = problem.parameters(dtype, shapes), problem.parameters(dtype, shapes)
    optimizer, oracle = clipped_class(params, **options, **arguments_of(clipping_type)), Oracle(clipping_type)
    plain = plain_class(plain_params, **options)
    tolerance = 2e-5 if dtype == torch.complex64 else 1e-10
    for step in range(40):
        pairs = zip(
            problem.gradients(step, dtype=F64, shapes=shapes), problem.gradients(99 + step, dtype=F64, shapes=shapes), strict=True
        )
        grads = [torch.complex(re, im).to(dtype) for re, im in pairs]
        wanted = oracle.clip(grads, params)
        clipped = problem.step(optimizer, grads)
        for g, w in zip(clipped, wanted, strict=True):
            assert (wide(g).flatten() - w).abs().max() <= tolerance * w.abs().max(), f"step {step}"
        problem.step(plain, clipped)
        assert_close(params, plain_params, 10 * tolerance)
    assert optimizer.clipping_stats()["clipped_steps"] == oracle.clipper.clipped_steps > 0


@pytest.mark.parametrize("clipping_type", TYPES)
def test_complex_and_real_parameters_form_one_length(problem, clipping_type):
    shapes = ((3, 4), (5,))
    real, complex_ = problem.parameters(shapes=shapes), problem.parameters(torch.complex64, shapes)
    optimizer = ClippedSGD([*real, *complex_], lr=0.05, momentum=0.9, **arguments_of(clipping_type))
    oracle = Oracle(clipping_type)
    for step in range(20):
        grads = problem.gradients(step, shapes=shapes)
        grads += [torch.complex(g, 2 * g) for g in problem.gradients(99 + step, shapes=shapes)]
        wanted = oracle.clip(grads, [*real, *complex_])
        assert_oracles(problem.step(optimizer, grads), wanted, f"step {step}")


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


# Parameters that are shared, frozen, moved and converted


@pytest.mark.parametrize("clipping_type", TYPES)
def test_tied_parameter_counts_once(clipping_type):
    torch.manual_seed(0)
    first, second = (torch.nn.Linear(3, 3, dtype=F64) for _ in range(2))
    second.weight = first.weight
    model = torch.nn.Sequential(first, torch.nn.Tanh(), second)
    params = list(model.parameters())
    assert len(params) == 3
    optimizer, oracle = ClippedSGD(model.parameters(), lr=0.05, **arguments_of(clipping_type)), Oracle(clipping_type)
    for step in range(20):
        optimizer.zero_grad()
        (model(torch.randn(4, 3, dtype=F64)) * 10 ** (step % 3)).square().sum().backward()
        wanted = oracle.clip([p.grad.clone() for p in params], params)
        optimizer.step()
        assert_oracles([p.grad for p in params], wanted, f"step {step}")


def test_parameter_given_twice_gives_torchs_error_and_warning(problem):
    weight = problem.parameters()[0]
    for optimizer_class in (torch.optim.SGD, ClippedSGD):
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer_class([weight, weight], lr=0.1)
        with pytest.raises(ValueError, match="more than one parameter group"):
            optimizer_class([{"params": [weight]}, {"params": [weight]}], lr=0.1)


@pairwise(name=CLASSES, clipping_type=TYPES, flags=["chosen", "fused"])
def test_parameters_frozen_and_unfrozen_are_the_oracles(problem, name, clipping_type, flags):
    clipped_class, plain_class, options = CLASSES[name]
    if name == "SGD":
        options = options | {"weight_decay": 0.01}
    params, plain_params = problem.parameters(), problem.parameters()
    params[0].requires_grad_(False)
    optimizer = clipped_class(params, **options, **FLAGS[flags], **arguments_of(clipping_type))
    plain, oracle = plain_class(plain_params, **options), Oracle(clipping_type)
    for step in range(36):
        if step == 6:
            params[0].requires_grad_(True)
        if step == 12:
            params[1].requires_grad_(False)
        if step == 20:
            params[1].requires_grad_(True)
        grads = [g if p.requires_grad else None for p, g in zip(params, problem.gradients(step), strict=True)]
        wanted = oracle.clip(grads, params)
        optimizer.zero_grad()
        sum((p * g).sum() for p, g in zip(params, grads, strict=True) if g is not None).backward()
        optimizer.step()
        clipped = [p.grad for p in params]
        assert_oracles(clipped, wanted, f"step {step}")
        problem.step(plain, clipped)
        assert_close(params, plain_params, 1e-4)


@pytest.mark.parametrize("clipping_type", ONE_A_KIND)
@pytest.mark.parametrize("name", CLASSES)
def test_parameter_whose_data_is_replaced_is_stepped_where_it_is_now(problem, name, clipping_type):
    clipped_class, _, options = CLASSES[name]
    params, other_params = problem.parameters(), problem.parameters()
    optimizer = clipped_class(params, **options, **arguments_of(clipping_type))
    other = clipped_class(other_params, **options, **arguments_of(clipping_type))
    for step in range(12):
        if step in (0, 5):
            kept = [p.data for p in params]
            for p in params:
                p.data = p.data.clone()
        grads = problem.gradients(step)
        assert equal(problem.step(optimizer, grads), problem.step(other, grads))
        assert equal(params, other_params)
    assert not equal(kept, params)


@pairwise(
    ids=str,
    name_and_step=[("SGD", 0), ("SGD", 4), ("AdamW", 0)],  # torch's AdamW needs parameters of the type of their moments
    clipping_type=["none", "norm", "coord_wise", "layer_wise_auto", "adaptive", "adagc"],
    dtype=[torch.float64, torch.bfloat16, torch.float16],
)
def test_model_converted_after_construction_steps_as_with_the_plain_optimizer(problem, name_and_step, clipping_type, dtype):
    name, after = name_and_step
    clipped_class, plain_class, options = CLASSES[name]
    if name != "SGD":
        options = options | {"eps": 1e-3}  # float16 does not know 1e-8
    params, plain_params = problem.parameters(), problem.parameters()
    model, plain_model = torch.nn.ParameterList(params), torch.nn.ParameterList(plain_params)
    arguments = arguments_of(clipping_type) if clipping_type != "none" else {"clipping_type": "none"}
    optimizer, plain = clipped_class(model.parameters(), **options, **arguments), plain_class(plain_model.parameters(), **options)
    oracle = Oracle(clipping_type)
    for step in range(10):
        if step == after:
            model.to(dtype)
            plain_model.to(dtype)
        now = dtype if step >= after else torch.float32
        grads = problem.gradients(step, norm=0.5 + 0.2 * step, dtype=now)
        wanted = oracle.clip(grads, params)
        clipped = problem.step(optimizer, grads)
        assert all(p.dtype == now for p in params)
        if clipping_type != "none":
            assert_oracles(clipped, wanted, f"step {step}", digits=2e-7)  # the history may hold lengths of float32
        problem.step(plain, clipped)
        assert_close(params, plain_params, 0.1 if dtype != F64 else 1e-4)  # rounded in other places
    assert optimizer.clipping_stats()["steps"] == (10 if clipping_type != "none" else 0)


# adaptive

UNITS = {
    "matrix": ((5, 3), 5),
    "convolution": ((4, 3, 3, 3), 4),
    "one-dimensional convolution": ((6, 2, 5), 6),
    "vector": ((7,), 1),
    "scalar": ((), 1),
    "row": ((1, 8), 1),
    "column": ((8, 1), 8),
}


@pytest.mark.parametrize("kind", UNITS)
def test_adaptive_clips_each_unit_by_the_ratio_to_its_weights(problem, kind):
    shape, units = UNITS[kind]
    (weight,) = params = problem.parameters(F64, (shape,))
    optimizer = ClippedSGD(params, lr=0.1, clipping_type="adaptive", clipping_level=0.05)
    for step in range(10):
        rows = weight.detach().reshape(units, -1).clone()
        (grad,) = problem.gradients(step, dtype=F64, shapes=(shape,))
        grad = (grad.reshape(units, -1) * 10.0 ** -torch.arange(units, dtype=F64)[:, None]).reshape(shape)  # some are short
        (clipped,) = problem.step(optimizer, [grad])
        long = grad.reshape(units, -1)
        limits = 0.05 * rows.norm(dim=1).clamp(min=1e-3)
        wanted = long * (limits / long.norm(dim=1)).clamp(max=1)[:, None]
        assert_close([clipped], [wanted.reshape(shape)])
    assert optimizer.clipping_stats()["clipped_steps"] > 0


def test_adaptive_moves_no_unit_further_than_its_ratio(problem):
    shapes = tuple(shape for shape, _ in UNITS.values())
    params = problem.parameters(F64, shapes)
    optimizer = ClippedSGD(params, lr=1.0, clipping_type="adaptive", clipping_level=0.01)
    before = problem.copies(params)
    problem.step(optimizer, problem.gradients(0, norm=1e6, dtype=F64, shapes=shapes))
    for (_, units), p, was in zip(UNITS.values(), params, before, strict=True):
        moved, length = ((t.detach().reshape(units, -1).norm(dim=1)) for t in (p - was, was))
        torch.testing.assert_close(moved, 0.01 * length)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16], ids=str)
def test_adaptive_trains_weights_that_start_at_zero(dtype, sparse):
    if sparse:
        shapes, params = ((6, 2),), [torch.nn.Parameter(torch.zeros(6, 2, dtype=dtype))]
    else:
        shapes = tuple(shape for shape, _ in UNITS.values())
        params = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    optimizer = ClippedSGD(params, lr=1.0, clipping_type="adaptive", clipping_level=0.1)
    for p in params:
        ones = torch.ones_like(p)
        p.grad = ones.to_sparse(1) if sparse else ones
    optimizer.step()
    units_of = dict(UNITS.values())
    for p, shape in zip(params, shapes, strict=True):
        rows = p.detach().double().reshape(units_of.get(shape, shape[0] if shape else 1), -1)
        wanted = torch.full((len(rows),), 1e-4, dtype=F64)  # the floor of 1e-3 times the ratio
        torch.testing.assert_close(rows.norm(dim=1), wanted, rtol=1e-2 if p.element_size() == 2 else 1e-5, atol=0)
    for _ in range(200):
        for p in params:
            grad = p.detach() - 1  # towards 1
            p.grad = grad.to_sparse(1) if sparse else grad
        optimizer.step()
    if p.element_size() > 2:
        assert all((p > 0.05).all() for p in params)


def test_adaptive_leaves_units_of_length_zero_alone():
    weight = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = ClippedSGD([weight], lr=0.1, clipping_type="adaptive")
    weight.grad = torch.zeros(3, 4)
    weight.grad[1] = 5.0
    optimizer.step()
    assert (weight.grad[[0, 2]] == 0).all()
    torch.testing.assert_close(weight.grad[1].norm(), torch.tensor(0.02))
    assert (weight[[0, 2]] == 1).all()
