"""Gradients that are not finite: what each policy promises, for every clipping type, kernel and kind of gradient."""

import copy
import math
import warnings
from itertools import cycle

import pytest
import torch
from support.assertions import assert_same, equal
from support.cases import FLAGS, ONE_A_KIND, TYPES, pairwise, parameters_of

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD, ClippingWarning, clip_optimizer

CONSTANT = ["norm", "layer_wise", "linear_rand_norm", "quadratic_rand_norm"]
OPTIMIZERS = {
    "sgd": (ClippedSGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "adam": (ClippedAdam, {"lr": 0.05, "amsgrad": True}),
    "adamw": (ClippedAdamW, {"lr": 0.05}),
}
KINDS = [("sgd", "chosen"), ("sgd", "fused"), ("sgd", "loop"), ("adam", "chosen"), ("adam", "foreach"), ("adamw", "fused")]
TYPES_AND_KINDS = [(clipping_type, *kind) for clipping_type, kind in zip(TYPES, cycle(KINDS), strict=False)]
POLICIES = ["skip", "error", "zero", "propagate"]

VALUES = [math.nan, math.inf, -math.inf]
COUNTS = ("steps", "clipped_steps", "clip_rate")


def stays_bad(policy, clipping_type, value):
    """Whether a bad entry of a gradient makes one of the weights; coordinates clamp inf, and keep NaN."""
    return policy == "propagate" and not (clipping_type == "coord_wise" and math.isinf(value))


def equal_or_both_nan(left, right):
    return all(
        torch.equal(a.isnan(), b.isnan()) and equal([a.nan_to_num()], [b.nan_to_num()]) for a, b in zip(left, right, strict=True)
    )


def states(optimizer):
    params = parameters_of(optimizer)
    return [torch.as_tensor(v).clone() for p in params for _, v in sorted(optimizer.state[p].items()) if v is not None]


def told(optimizer, *, without_skips):
    """All that the optimizer tells about its clipping."""
    stats = [optimizer.clipping_stats(), *optimizer.clipping_stats(per_set=True)]
    return [pytest.approx(s | {"skipped_steps": 0.0} if without_skips else s, rel=0, abs=0, nan_ok=True) for s in stats]


def plain(stats):
    return [s | {"skipped_steps": 0.0} for s in stats]


def snapshot(optimizer):
    """A copy of everything that a checkpoint would hold, and of the gradients."""
    grads = [None if p.grad is None else p.grad.clone() for p in parameters_of(optimizer)]
    return copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in parameters_of(optimizer)], grads


def poisoned(grads, value, tensor=1, entry=0):
    grads = [g.clone() for g in grads]
    grads[tensor].view(-1)[entry] = value
    return grads


def quietly_step(problem, optimizer, grads):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClippingWarning)
        return problem.step(optimizer, grads)


# skip


@pytest.mark.parametrize(("clipping_type", "name", "flags"), TYPES_AND_KINDS)
def test_run_with_bad_steps_inserted_is_bit_for_bit_the_run_without_them(problem, clipping_type, name, flags):
    clipped_class, options = OPTIMIZERS[name]
    steps = {"adagc": 108, "zclip": 36}.get(clipping_type, 18)  # beyond the warm-up
    arguments = {"clipping_type": clipping_type, "clipping_beta": 0.5, "clipping_window": 6} | options | FLAGS[flags]

    def run(bad_steps):
        params = problem.parameters()
        optimizer = clipped_class(params, **arguments)
        clipped = []
        for step in range(steps):
            grads = problem.gradients(step, dtype=torch.float32)
            if step in bad_steps:
                bad = poisoned(grads, VALUES[step % 3], tensor=step % 4, entry=-1)
                quietly_step(problem, optimizer, bad)
            clipped += problem.copies(problem.step(optimizer, grads))
        return [*params, *states(optimizer), *clipped, optimizer.grad_norms()], optimizer

    wanted, unbroken = run(())
    bad_steps = (0, 1, 4, 5, 7, steps - 2, steps - 1)
    got, optimizer = run(bad_steps)
    assert equal(got, wanted)
    assert plain([optimizer.clipping_stats(), *optimizer.clipping_stats(per_set=True)]) == told(unbroken, without_skips=True)
    assert optimizer.clipping_stats()["skipped_steps"] == len(bad_steps)
    assert unbroken.clipping_stats()["skipped_steps"] == 0


@pytest.mark.parametrize("clipping_type", ONE_A_KIND)
def test_every_optimizer_warns_once_of_its_own_skips_at_the_callers_line(problem, clipping_type):
    optimizers = [ClippedSGD(problem.parameters(), clipping_type=clipping_type) for _ in range(2)]
    grads = poisoned(problem.gradients(0), math.inf)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            for optimizer in optimizers:
                for p, g in zip(parameters_of(optimizer), grads, strict=True):
                    p.grad = g.clone()
                optimizer.step()
    assert [w.category for w in caught] == [ClippingWarning] * 2
    assert {w.filename for w in caught} == {__file__}
    assert [optimizer.clipping_stats()["skipped_steps"] for optimizer in optimizers] == [3, 3]


def test_skipped_steps_of_several_sets_are_counted_once_a_step(problem):
    params = problem.parameters()
    optimizer = ClippedSGD([{"params": [p], "clipping_level": float(i + 1)} for i, p in enumerate(params)])
    for bad in ((0,), (1, 2), (0, 1, 2, 3), ()):
        grads = problem.gradients(0)
        for tensor in bad:
            grads = poisoned(grads, math.nan, tensor)
        quietly_step(problem, optimizer, grads)
    stats = optimizer.clipping_stats()
    assert (stats["steps"], stats["skipped_steps"]) == (1, 3)


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_whose_first_steps_are_all_bad_starts_afresh_afterwards(problem, name, flags):
    clipped_class, options = OPTIMIZERS[name]
    params, wanted = problem.parameters(), problem.parameters()
    optimizer, fresh = (clipped_class(p, **options, **FLAGS[flags]) for p in (params, wanted))
    for step in range(5):
        quietly_step(problem, optimizer, [torch.full_like(g, VALUES[step % 3]) for g in problem.gradients(step)])
    for step in range(5):
        problem.step(optimizer, problem.gradients(step))
        problem.step(fresh, problem.gradients(step))
    assert equal(params, wanted)
    assert equal(states(optimizer), states(fresh))


def test_skip_returns_the_loss_of_the_closure(problem):
    params = problem.parameters()
    optimizer = ClippedSGD(params, lr=0.1, momentum=0.9)
    before = problem.copies(params)
    calls = []

    def closure():
        calls.append(1)
        for p, g in zip(params, poisoned(problem.gradients(0), math.nan), strict=True):
            p.grad = g
        return 7.0

    with pytest.warns(ClippingWarning, match="not finite"):
        assert optimizer.step(closure) == 7.0
    assert (len(calls), optimizer.clipping_stats()["skipped_steps"]) == (1, 1)
    assert equal(params, before)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_optimizer_with_many_closure_calls_keeps_weights_finite(line_search):
    param = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = clip_optimizer(torch.optim.LBFGS([param], lr=0.5, max_iter=4, line_search_fn=line_search), clipping_level=100)
    bad_calls = set()
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        if len(calls) in bad_calls:
            param.grad[1] = math.inf
        calls.append(1)
        return loss

    bad_calls.add(0)
    with pytest.warns(ClippingWarning, match="not finite"):
        optimizer.step(closure)
    assert param.tolist() == [3.0, -2.0]
    bad_calls |= {len(calls) + 1, len(calls) + 2, len(calls) + 7}
    for _ in range(6):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ClippingWarning)
            optimizer.step(closure)
        assert param.isfinite().all()
    assert optimizer.clipping_stats()["skipped_steps"] > 1
    assert param.norm() < 0.1


# error


@pairwise(clipping_type=ONE_A_KIND, name=OPTIMIZERS, flags=FLAGS, bad=[0, 1, 2, 3])
def test_error_names_the_group_and_changes_nothing_at_all(problem, clipping_type, name, flags, bad):
    clipped_class, options = OPTIMIZERS[name]
    params = problem.parameters()
    groups = [{"params": [p]} for p in params]
    groups[1]["weight_decay"] = 0.3  # the same clip set
    groups[2]["clipping_window"] = 9  # another
    optimizer = clipped_class(groups, clipping_type=clipping_type, nonfinite="error", **options, **FLAGS[flags])
    for step in range(3):
        problem.step(optimizer, problem.gradients(step))
    for p, g in zip(params, poisoned(problem.gradients(9, 100.0), VALUES[bad % 3], tensor=bad), strict=True):
        p.grad = g
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=rf"group {bad}\b"):
        optimizer.step()
    assert_same(snapshot(optimizer), before)
    problem.step(optimizer, problem.gradients(4))
    assert optimizer.clipping_stats()["steps"] == 4


@pytest.mark.parametrize("other", ["zero", "skip", "propagate", "error"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_error_of_one_set_comes_before_what_other_sets_would_do(problem, order, other):
    params = problem.parameters()
    policies = [other, "error"] if order == "before" else ["error", other]
    groups = [{"params": params[:2], "nonfinite": policies[0]}, {"params": params[2:], "nonfinite": policies[1]}]
    groups[1]["clipping_level"] = 3.0
    optimizer = ClippedSGD(groups, lr=0.1, momentum=0.9)
    problem.step(optimizer, problem.gradients(0))
    grads = poisoned(poisoned(problem.gradients(1, 50.0), math.inf, 0), math.nan, 3)
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"group [01]\b" if other == "error" else rf"group {policies.index('error')}\b"):
        optimizer.step()
    assert_same(snapshot(optimizer), before)


def test_error_in_closure_step_leaves_weights_and_state(problem):
    params = problem.parameters()
    optimizer = ClippedAdam(params, lr=0.1, nonfinite="error")
    problem.step(optimizer, problem.gradients(0))
    before = problem.copies(params), states(optimizer)

    def closure():
        for p, g in zip(params, poisoned(problem.gradients(1), math.nan, 2), strict=True):
            p.grad = g

    with pytest.raises(RuntimeError, match=r"group 0\b"):
        optimizer.step(closure)
    assert equal(params, before[0])
    assert equal(states(optimizer), before[1])


# zero


@pytest.mark.parametrize(("clipping_type", "name", "flags"), TYPES_AND_KINDS)
def test_zero_is_the_run_with_zeros_in_those_places(problem, clipping_type, name, flags):
    clipped_class, options = OPTIMIZERS[name]

    def run(values):
        params = problem.parameters()
        arguments = {"clipping_type": clipping_type, "clipping_window": 5, "nonfinite": "zero"} | options | FLAGS[flags]
        optimizer = clipped_class(params, **arguments)
        seen = []
        for step in range(30 if clipping_type == "zclip" else 10):
            grads = poisoned(problem.gradients(step), values[step % 3], tensor=step % 4)
            grads = poisoned(grads, values[(step + 1) % 3], tensor=(step + 1) % 4, entry=-1)
            seen += problem.copies(problem.step(optimizer, grads))
        return [*params, *seen, *states(optimizer), optimizer.grad_norms()], optimizer

    (got, optimizer), (wanted, unbroken) = run(VALUES), run([0.0] * 3)
    assert equal(got, wanted)
    stats = [optimizer.clipping_stats(), *optimizer.clipping_stats(per_set=True)]
    assert stats == told(unbroken, without_skips=False)


def test_zero_leaves_finite_entries_of_huge_gradients_alone_but_for_clipping(problem):
    params = problem.parameters()
    optimizer = ClippedSGD(params, lr=0.0, nonfinite="zero", clipping_level=1e20)
    grads = [g * 1e25 for g in problem.gradients(0, 1.0)]
    clipped = problem.step(optimizer, poisoned(grads, -math.inf, 0))
    assert clipped[0].view(-1)[0] == 0
    kept = [g.clone() for g in grads]
    kept[0].view(-1)[0] = 0
    factor = 1e20 / (1e25 * problem.length([g.double() / 1e25 for g in kept]))
    for g, k in zip(clipped, kept, strict=True):
        torch.testing.assert_close(g, k * factor, rtol=1e-5, atol=0)


# propagate


@pairwise(clipping_type=TYPES, value=VALUES, flags=FLAGS)
def test_propagate_makes_only_the_bad_entries_bad(problem, clipping_type, value, flags):
    params = problem.parameters()
    options = {"clipping_type": clipping_type, "nonfinite": "propagate", "clipping_window": 6} | FLAGS[flags]
    optimizer = ClippedSGD(params, lr=0.01, **options)
    for step in range(3):
        problem.step(optimizer, problem.gradients(step))
    norms = optimizer.grad_norms()
    bad = poisoned(problem.gradients(3), value, tensor=3, entry=5)
    clipped = problem.step(optimizer, bad)
    for before, g, p in zip(bad, clipped, params, strict=True):
        still_bad = before.isnan() if clipping_type == "coord_wise" else ~before.isfinite()  # whose entries can be clamped
        assert torch.equal(~g.isfinite(), still_bad)
        assert torch.equal(~p.isfinite(), still_bad)
        assert (g.nan_to_num(0, 0, 0).abs() <= before.nan_to_num(0, math.inf, math.inf).abs()).all()
    assert torch.equal(optimizer.grad_norms(), norms)
    assert optimizer.clipping_stats()["skipped_steps"] == 0


@pytest.mark.parametrize(
    ("clipping_type", "name"),
    [("norm", "sgd"), ("auto", "adam"), ("linear_rand_norm", "adamw"), ("zscore", "sgd"), ("zclip", "adam")],
)
def test_propagate_of_a_global_type_is_torchs_step_on_the_raw_gradient(problem, clipping_type, name):
    clipped_class, options = OPTIMIZERS[name]
    results = []
    for clipping in ({"clipping_type": clipping_type, "nonfinite": "propagate"}, {"clipping_type": "none"}):
        params = problem.parameters()
        optimizer = clipped_class(params, **options, foreach=True, **clipping)
        problem.step(optimizer, poisoned(problem.gradients(1, 30.0), math.inf, 2))
        results.append([p.detach() for p in params] + states(optimizer))
    assert equal_or_both_nan(*results)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("clipping_type", [t for t in TYPES if t != "adaptive"])  # whose threshold is made of the weights
def test_lengths_that_are_not_finite_are_not_remembered(problem, clipping_type, value):
    """One tensor is bad for a while; afterwards everything that is remembered is what a threshold can be made of."""
    optimizer = ClippedSGD(problem.parameters(), lr=0.0, clipping_type=clipping_type, nonfinite="propagate", clipping_window=4)
    steps = {"adagc": 160, "zclip": 45}.get(clipping_type, 9)
    for step in range(steps):
        grads = problem.gradients(step, 5.0)
        problem.step(optimizer, poisoned(grads, value) if step % 3 == 1 else grads)
        assert optimizer.grad_norms().isfinite().all()
    for step in range(steps, steps + 3):
        clipped = problem.step(optimizer, problem.gradients(step, 500.0))
        assert all(g.isfinite().all() and g.any() for g in clipped)
        stats = optimizer.clipping_stats()
        assert not math.isnan(stats["threshold"])
        assert clipping_type == "coord_wise" or not math.isnan(stats["coefficient"])
    memory = [v for v in optimizer.param_groups[0].values() if isinstance(v, torch.Tensor) and v.numel() > 4]
    assert not any(v.isnan().any() for v in memory)


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
    before = problem.copies(params), states(optimizer)
    bad = poisoned(grads, math.inf, 3)
    if policy == "error":
        with pytest.raises(RuntimeError, match=r"group 0\b"):
            problem.step(optimizer, bad)
    else:
        quietly_step(problem, optimizer, bad)
    untouched = equal(params, before[0]) and equal(states(optimizer), before[1])
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


# Sparse gradients.


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


# Several clip sets of different policies.


def four_sets(problem):
    params = problem.parameters()
    groups = [
        {"params": [params[0]], "nonfinite": "skip"},
        {"params": [params[1]], "nonfinite": "zero", "clipping_type": "auto"},
        {"params": [params[2]], "nonfinite": "propagate", "clipping_type": "layer_wise_auto"},
        {"params": [params[3]], "clipping_type": "none"},
    ]
    return params, ClippedSGD(groups, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("bad", [(0,), (0, 1), (0, 2), (0, 3), (0, 1, 2, 3)])
def test_bad_set_that_skips_stops_all_sets(problem, bad):
    params, optimizer = four_sets(problem)
    problem.step(optimizer, problem.gradients(0))
    grads = problem.gradients(1, 50.0)
    for tensor in bad:
        grads = poisoned(grads, math.nan, tensor)
    before = problem.copies(params), states(optimizer), told(optimizer, without_skips=True)
    quietly_step(problem, optimizer, grads)
    assert equal(params, before[0])
    assert equal(states(optimizer), before[1])
    assert plain([optimizer.clipping_stats(), *optimizer.clipping_stats(per_set=True)]) == before[2]
    assert optimizer.clipping_stats()["skipped_steps"] == 1


@pytest.mark.parametrize("bad", [(1,), (2,), (3,), (1, 2), (1, 2, 3)])
def test_bad_sets_that_do_not_skip_leave_the_others_to_their_step(problem, bad):
    params, optimizer = four_sets(problem)
    good_params, good = four_sets(problem)
    for each in (optimizer, good):
        problem.step(each, problem.gradients(0))
    grads = problem.gradients(1, 50.0)
    problem.step(good, grads)
    for tensor in bad:
        grads = poisoned(grads, math.inf, tensor)
    problem.step(optimizer, grads)
    assert optimizer.clipping_stats()["skipped_steps"] == 0
    for tensor, (p, wanted) in enumerate(zip(params, good_params, strict=True)):
        if tensor not in bad:
            assert torch.equal(p, wanted)
        elif tensor == 1:
            assert p.isfinite().all()
            assert p.grad.view(-1)[0] == 0
        else:
            assert (~p.isfinite()).sum() == 1


def test_type_none_hands_on_what_is_not_finite_whatever_the_policy(problem):
    for policy in POLICIES:
        params, plain_params = problem.parameters(), problem.parameters()
        optimizer = ClippedSGD(params, lr=0.1, momentum=0.9, clipping_type="none", nonfinite=policy)
        torch_sgd = torch.optim.SGD(plain_params, lr=0.1, momentum=0.9)
        grads = poisoned(problem.gradients(0), math.nan)
        problem.step(optimizer, grads)
        problem.step(torch_sgd, grads)
        assert equal_or_both_nan([p.detach() for p in params], [p.detach() for p in plain_params])
        assert not params[1].isfinite().all()


def test_policy_may_be_edited_between_steps(problem):
    params = problem.parameters()
    optimizer = ClippedSGD(params, lr=0.1)
    bad = poisoned(problem.gradients(0), math.inf)
    quietly_step(problem, optimizer, bad)
    optimizer.param_groups[0]["nonfinite"] = "error"
    with pytest.raises(RuntimeError, match=r"group 0\b"):
        problem.step(optimizer, bad)
    optimizer.param_groups[0]["nonfinite"] = "zero"
    before = problem.copies(params)
    problem.step(optimizer, bad)
    assert not equal(params, before)
    assert all(p.isfinite().all() for p in params)
    optimizer.param_groups[0]["nonfinite"] = "propagate"
    problem.step(optimizer, bad)
    assert not params[1].isfinite().all()
    assert optimizer.clipping_stats()["skipped_steps"] == 1


def test_bad_gradient_of_a_frozen_or_missing_neighbour_is_not_there(problem):
    params = problem.parameters()
    optimizer = ClippedSGD(params, lr=0.1, nonfinite="error")
    grads = problem.gradients(0)
    grads[0] = grads[2] = None
    problem.step(optimizer, grads)
    with pytest.raises(RuntimeError, match=r"group 0\b"):
        problem.step(optimizer, [None, poisoned(grads[1:2], math.nan, 0)[0], None, grads[3]])
    assert optimizer.clipping_stats()["steps"] == 1


# Under a gradient scaler.


@pairwise(name=OPTIMIZERS, policy=POLICIES, flags=FLAGS, unscale=[False, True])
def test_scaler_leaves_out_its_overflows_whatever_the_policy(problem, name, policy, flags, unscale):
    clipped_class, options = OPTIMIZERS[name]

    def run(overflows):
        params = problem.parameters()
        optimizer = clipped_class(params, nonfinite=policy, clipping_type="auto", clipping_window=4, **options, **FLAGS[flags])
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1000)
        for step in range(8):
            if step in overflows:
                before = problem.copies(params), states(optimizer), optimizer.grad_norms()
                problem.scaled_step(scaler, optimizer, poisoned(problem.gradients(step), math.inf), unscale=unscale)
                assert equal(params, before[0])
                assert equal(states(optimizer), before[1])
                assert torch.equal(optimizer.grad_norms(), before[2])
            problem.scaled_step(scaler, optimizer, problem.gradients(step), unscale=unscale)
        assert scaler.get_scale() == 2.0 ** (12 - len(overflows))
        return [*params, *states(optimizer), optimizer.grad_norms()], optimizer.clipping_stats()

    (wanted, wanted_stats), (got, stats) = run(()), run((0, 3, 7))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert [stats[key] for key in COUNTS] == [wanted_stats[key] for key in COUNTS]


@pytest.mark.parametrize("clipping_type", ONE_A_KIND)
@pytest.mark.parametrize("flags", FLAGS)
def test_scaled_gradient_near_overflow_is_measured_without_its_scale(problem, clipping_type, flags):
    params = problem.parameters()
    options = {"clipping_type": clipping_type, "clipping_beta": 0.5} | FLAGS[flags]
    optimizer = ClippedSGD(params, lr=0.1, nonfinite="error", **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100, growth_interval=1000)
    before = problem.copies(params)
    problem.scaled_step(scaler, optimizer, problem.gradients(0, 1e5), unscale=False)
    stats = optimizer.clipping_stats()
    assert stats["steps"] == 1
    assert all(p.isfinite().all() for p in params)
    if clipping_type == "coord_wise":
        furthest = max(float((p - start).abs().max()) for p, start in zip(problem.copies(params), before, strict=True))
        assert furthest == pytest.approx(0.1 * 0.1, rel=1e-4)  # learning rate x level
    else:
        assert stats["grad_norm"] == pytest.approx(1e5, rel=1e-5)


def test_infinite_norm_of_a_later_set_does_not_enter_the_norms_of_the_whole_gradient():
    first, second = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = ClippedSGD([{"params": [first]}, {"params": [second], "nonfinite": "propagate"}], lr=0.1)
    first.grad, second.grad = torch.tensor([3.0, 4.0]), torch.tensor([math.inf, 1.0])
    optimizer.step()
    assert len(optimizer.grad_norms()) == 0
    optimizer.load_state_dict(optimizer.state_dict())
