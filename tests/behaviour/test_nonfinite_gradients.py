"""Gradients that are not finite: one entry of many, low precision, sparse and complex gradients."""

import math
import warnings
from itertools import cycle

import pytest
import torch
from support.assertions import assert_same, equal
from support.cases import FLAGS, ONE_A_KIND, TYPES, pairwise, state_of
from support.nonfinite import POLICIES, VALUES, poisoned, quietly_step

from torch_clipped import ClippedSGD, ClippingWarning

CONSTANT = ["norm", "layer_wise", "linear_rand_norm", "quadratic_rand_norm"]


def stays_bad(policy, clipping_type, value):
    """Whether a bad entry of a gradient makes one of the weights; coordinates clamp inf, and keep NaN."""
    return policy == "propagate" and not (clipping_type == "coord_wise" and math.isinf(value))


# One bad entry among many tensors.


@pairwise(clipping_type=TYPES, policy=POLICIES, value=VALUES, norm_type=[2.0, math.inf, 1.5])
def test_one_bad_entry_of_many_tensors_is_seen_and_harms_no_other(problem, clipping_type, policy, value, norm_type):
    shapes = ((4, 3),) * 8 + ((), (7,), (0,), (2, 3, 2, 2)) + ((5,),) * 8
    params = problem.parameters(shapes=shapes)
    optimizer = ClippedSGD(params, lr=0.01, momentum=0.9, clipping_type=clipping_type, nonfinite=policy, norm_type=norm_type)
    problem.step(optimizer, problem.gradients(0, shapes=shapes))
    before = problem.copies(params)
    grads = poisoned(problem.gradients(1, 50.0, shapes=shapes), value, tensor=11, entry=20)
    if policy == "error":
        with pytest.raises(RuntimeError, match=r"group 0\b"):
            problem.step(optimizer, grads)
    else:
        quietly_step(problem, optimizer, grads)
    if policy in ("skip", "error"):
        assert equal(params, before)
    changed = [not torch.equal(p, b) for p, b in zip(params, before, strict=True) if p.numel()]
    assert all(changed) if policy in ("zero", "propagate") else not any(changed)
    for i, p in enumerate(params):
        if i != 11:
            assert p.isfinite().all()
            assert p.grad.isfinite().all()
    assert (~params[11].isfinite()).sum() == stays_bad(policy, clipping_type, value)


@pytest.mark.parametrize(("clipping_type", "policy"), [*zip(TYPES, cycle(POLICIES), strict=False)])
def test_values_beside_a_gradient_in_memory_do_not_matter(problem, clipping_type, policy):
    """A gradient may be a view of something larger that holds values which are not finite."""
    params = [torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(4))]
    optimizer = ClippedSGD(params, lr=0.1, clipping_type=clipping_type, nonfinite=policy)
    surrounding = torch.full((4, 6), math.nan)
    surrounding[:, ::2] = 30.0
    params[0].grad = surrounding[:, ::2]
    params[1].grad = torch.tensor(2.0).expand(4).clone()
    optimizer.step()
    stats = optimizer.clipping_stats()
    assert (stats["steps"], stats["skipped_steps"]) == (1, 0)
    assert surrounding[:, 1::2].isnan().all()
    assert all(p.isfinite().all() for p in params)


# Low precision.


LOW_PRECISION_FLAGS = [flags for flags in FLAGS if flags != "fused"]  # torch 2.13's own fused SGD leaves such weights as they are


@pairwise(
    ids=str,
    clipping_type=TYPES,
    policy=POLICIES,
    flags=LOW_PRECISION_FLAGS,
    dtype=[torch.float16, torch.bfloat16, torch.float64],
)
def test_policies_hold_for_every_floating_type(problem, clipping_type, policy, flags, dtype):
    params = problem.parameters(dtype)
    options = {"clipping_type": clipping_type, "nonfinite": policy} | FLAGS[flags]
    optimizer = ClippedSGD(params, lr=0.01, momentum=0.9, **options)
    problem.step(optimizer, problem.gradients(0, 2.0, dtype=dtype))
    grads = problem.gradients(1, 20.0, dtype=dtype)
    before = problem.copies(params), state_of(optimizer)
    bad = poisoned(grads, math.inf, 3)
    if policy == "error":
        with pytest.raises(RuntimeError, match=r"group 0\b"):
            problem.step(optimizer, bad)
    else:
        quietly_step(problem, optimizer, bad)
    untouched = equal(params, before[0]) and equal(state_of(optimizer), before[1])
    assert untouched == (policy in ("skip", "error"))
    assert sum((~p.isfinite()).sum().item() for p in params) == stays_bad(policy, clipping_type, math.inf)
    assert all(p.dtype == dtype for p in params)


@pytest.mark.parametrize(
    ("clipping_type", "policy", "flags"), [*zip(TYPES, cycle(POLICIES), cycle(LOW_PRECISION_FLAGS), strict=False)]
)
def test_gradient_whose_length_float16_cannot_hold_is_finite(problem, clipping_type, policy, flags):
    params = [torch.nn.Parameter(torch.ones(20, 20, dtype=torch.float16)), torch.nn.Parameter(torch.ones(3))]
    options = {"clipping_type": clipping_type, "nonfinite": policy, "clipping_beta": 0.99} | FLAGS[flags]
    level = {"clipping_level": 1e5} if clipping_type in CONSTANT else {}
    optimizer = ClippedSGD(params, lr=1e-1, **options, **level)
    problem.step(optimizer, [torch.full((20, 20), 6e4, dtype=torch.float16), torch.ones(3)])
    stats = optimizer.clipping_stats()
    assert (stats["steps"], stats["skipped_steps"]) == (1, 0)
    assert all(p.isfinite().all() for p in params)
    assert not torch.equal(params[0], torch.ones_like(params[0])) or clipping_type == "adaptive"  # too short a step there


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_units_of_float16_are_clipped_to_their_threshold_by_whatever_factor(weight):
    param = torch.nn.Parameter(torch.full((20, 20), weight, dtype=torch.float16))
    optimizer = ClippedSGD([param], lr=0.0, clipping_type="adaptive", clipping_level=0.1)
    param.grad = torch.full((20, 20), 6e4, dtype=torch.float16)
    optimizer.step()
    wanted = 0.1 * max(weight * math.sqrt(20), 1e-3)
    assert param.grad.double().norm(dim=1).tolist() == pytest.approx([wanted] * 20, rel=2e-2)


# Sparse and complex gradients.


def embedding_gradient(values, indices=(1, 3, 1)):
    return torch.sparse_coo_tensor(
        torch.tensor([indices]), torch.tensor(values), (5, 2), dtype=torch.float32, check_invariants=True
    )


SPARSE = {
    "inf": [[1.0, math.inf], [4.0, 1.0], [2.0, 1.0]],
    "-inf": [[1.0, -math.inf], [4.0, 1.0], [2.0, 1.0]],
    "nan": [[1.0, 2.0], [4.0, math.nan], [2.0, 1.0]],
    "nan as the sum of inf and -inf": [[1.0, math.inf], [4.0, 1.0], [2.0, -math.inf]],
    "inf as the sum of finite entries": [[1.0, 3e38], [4.0, 1.0], [2.0, 3e38]],
}


@pairwise(clipping_type=TYPES, policy=POLICIES, case=SPARSE, momentum=[0.0, 0.9])
def test_policies_hold_for_sparse_gradients(clipping_type, policy, case, momentum):
    table, dense = torch.nn.Parameter(torch.ones(5, 2)), torch.nn.Parameter(torch.ones(3))
    groups = [{"params": [dense]}, {"params": [table], "weight_decay": 0.0}]
    optimizer = ClippedSGD(groups, lr=0.1, momentum=momentum, clipping_type=clipping_type, nonfinite=policy)

    def step(values):
        table.grad, dense.grad = embedding_gradient(values), torch.full((3,), 2.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ClippingWarning)
            optimizer.step()

    step([[0.5, 1.0], [1.0, 1.0], [0.25, 1.0]])
    norms = optimizer.grad_norms()
    before = [table.detach().clone(), dense.detach().clone()]
    if policy == "error":
        with pytest.raises(RuntimeError, match=r"group 1\b"):
            step(SPARSE[case])
        assert_same(table.grad, embedding_gradient(SPARSE[case]))
        assert torch.equal(dense.grad, torch.full((3,), 2.0))
    else:
        step(SPARSE[case])
    stats = optimizer.clipping_stats()
    assert stats["skipped_steps"] == (policy == "skip")
    if policy in ("skip", "error"):
        assert equal([table, dense], before)
        assert torch.equal(optimizer.grad_norms(), norms)
        assert stats["steps"] == 1
    else:
        assert dense.isfinite().all()
        assert not torch.equal(dense, before[1])
        assert (~table.isfinite()).sum() == stays_bad(policy, clipping_type, math.nan if case.startswith("nan") else math.inf)
        assert table.grad.is_sparse
    if policy == "zero":
        assert stats["steps"] == 2
        bad = embedding_gradient(SPARSE[case]).to_dense().isfinite().logical_not()
        assert (table.grad.to_dense()[bad] == 0).all()
        assert (table.grad.to_dense()[3, 0] > 0).all()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("clipping_type", ONE_A_KIND)
def test_policies_hold_for_complex_gradients(clipping_type, policy):
    param, real = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64)), torch.nn.Parameter(torch.ones(2))
    optimizer = ClippedSGD([param, real], lr=0.1, clipping_type=clipping_type, nonfinite=policy)
    param.grad, real.grad = torch.tensor([3 + 4j, 1 - 1j, complex(1, math.inf)]), torch.tensor([3.0, -3.0])
    if policy == "error":
        with pytest.raises(RuntimeError, match=r"group 0\b"):
            optimizer.step()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ClippingWarning)
            optimizer.step()
    moved = policy in ("zero", "propagate")
    assert [not torch.equal(p, torch.ones_like(p)) for p in (param, real)] == [moved, moved]
    assert real.isfinite().all()
    assert param[:2].isfinite().all()
    assert param[2].isfinite() == (policy != "propagate")
