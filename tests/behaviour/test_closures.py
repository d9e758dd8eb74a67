"""Steps with closures, LBFGS among them."""

import math

import pytest
import torch
from support.assertions import equal
from support.cases import gradients_of, pairwise
from support.loops import ClippedRMSprop, closure_of, each_type_with

from torch_clipped import Clipped, ClippedAdam, ClippedAdamW, ClippedSGD, ClippingWarning
from torch_clipped.clipping import CLIPPING_TYPES

F64 = torch.float64


class ClippedLBFGS(Clipped, torch.optim.LBFGS):
    """LBFGS that clips."""


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
