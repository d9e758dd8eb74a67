"""Gradients that are not finite: what each policy promises, for every clipping type and kernel."""

import copy
import math
import warnings
from itertools import cycle

import pytest
import torch
from support.assertions import assert_same, equal
from support.cases import FLAGS, ONE_A_KIND, TYPES, pairwise, parameters_of, state_of
from support.nonfinite import OPTIMIZERS, VALUES, equal_or_both_nan, plain, poisoned, quietly_step, told

from torch_clipped import ClippedAdam, ClippedSGD, ClippingWarning, clip_optimizer

KINDS = [("sgd", "chosen"), ("sgd", "fused"), ("sgd", "loop"), ("adam", "chosen"), ("adam", "foreach"), ("adamw", "fused")]
TYPES_AND_KINDS = [(clipping_type, *kind) for clipping_type, kind in zip(TYPES, cycle(KINDS), strict=False)]


def snapshot(optimizer):
    """A copy of everything that a checkpoint would hold, and of the gradients."""
    grads = [None if p.grad is None else p.grad.clone() for p in parameters_of(optimizer)]
    return copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in parameters_of(optimizer)], grads


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
        return [*params, *state_of(optimizer), *clipped, optimizer.grad_norms()], optimizer

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
    assert equal(state_of(optimizer), state_of(fresh))


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
    before = problem.copies(params), state_of(optimizer)

    def closure():
        for p, g in zip(params, poisoned(problem.gradients(1), math.nan, 2), strict=True):
            p.grad = g

    with pytest.raises(RuntimeError, match=r"group 0\b"):
        optimizer.step(closure)
    assert equal(params, before[0])
    assert equal(state_of(optimizer), before[1])


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
        return [*params, *seen, *state_of(optimizer), optimizer.grad_norms()], optimizer

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
        results.append([p.detach() for p in params] + state_of(optimizer))
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
