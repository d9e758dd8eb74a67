"""Sparse and complex gradients."""

import math

import pytest
import torch
from support.assertions import assert_close
from support.cases import FLAGS, ONE_A_KIND, ONE_A_MEASURE, TYPES, pairwise
from support.gradient_oracle import CLASSES, Oracle, Spiky, arguments_of, assert_oracles, is_spike, wide

from torch_clipped import Clipped, ClippedSGD

F64 = torch.float64


@pytest.fixture
def problem():
    return Spiky()


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
