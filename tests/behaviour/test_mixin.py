"""The mixin Clipped, which gives any optimizer class clipping."""

import itertools

import pytest
import torch
from support.assertions import assert_close, equal
from support.cases import TYPES, gradients_of, saved_and_loaded
from support.reference import ReferenceClipper
from support.ways import BASES, base, mixed, shapes_of

from torch_clipped.decisions import uniform

F64 = torch.float64
NEW = ["RMSprop", "Adagrad", "NAdam", "Muon", "Lion"]


def clip_by_hand(params, clipping_type, level):
    """Clip with torch alone."""
    if clipping_type == "norm":
        torch.nn.utils.clip_grad_norm_(params, level)
    elif clipping_type == "layer_wise":
        for p in params:
            torch.nn.utils.clip_grad_norm_([p], level)
    else:
        torch.nn.utils.clip_grad_value_(params, level)


@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise", "coord_wise"])
@pytest.mark.parametrize("name", NEW)
def test_mixin_takes_the_step_of_the_plain_optimizer_with_gradients_clipped_by_hand(problem, name, clipping_type):
    shapes = shapes_of(name, problem)
    params, plain_params = problem.parameters(F64, shapes), problem.parameters(F64, shapes)
    optimizer = mixed(name)(params, **BASES[name], clipping_type=clipping_type, clipping_level=0.7)
    plain = base(name)(plain_params, **BASES[name])
    lengths = []
    for step in range(12):
        grads = problem.gradients(step, dtype=F64, shapes=shapes)
        lengths.append(problem.length(grads))
        clipped = problem.step(optimizer, grads)
        for p, g in zip(plain_params, grads, strict=True):
            p.grad = g.clone()
        clip_by_hand(plain_params, clipping_type, 0.7)
        assert_close(clipped, gradients_of(plain_params), 1e-5 if clipping_type != "coord_wise" else 0)  # torch adds 1e-6
        for p, g in zip(plain_params, clipped, strict=True):
            p.grad = g.clone()
        plain.step()
        assert equal(params, plain_params)
    assert optimizer.clipping_stats()["clipped_steps"] > 2
    if clipping_type == "norm":
        assert optimizer.grad_norms().tolist() == pytest.approx(lengths, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "clipping_type"),
    [*itertools.product(["RMSprop"], TYPES), *itertools.product(NEW[1:], ["adaptive", "linear_rand_auto"])],
)
def test_mixin_clips_as_the_oracle_for_every_type(problem, name, clipping_type):
    shapes = shapes_of(name, problem)
    params, plain_params = problem.parameters(F64, shapes), problem.parameters(F64, shapes)
    arguments = {"clipping_type": clipping_type, "clipping_window": 5, "clipping_seed": 3}
    optimizer = mixed(name)(params, **BASES[name], **arguments)
    plain, oracle = base(name)(plain_params, **BASES[name]), ReferenceClipper(clipping_type, window=5)
    for step in range(35):
        grads = problem.gradients(step, dtype=F64, shapes=shapes)
        if step == 30:
            grads = [1000 * g for g in grads]
        draw = uniform(3, 0, oracle.steps)
        flat, weights = ([t.detach().flatten().tolist() for t in tensors] for tensors in (grads, params))
        wanted = oracle.clip(flat, weights=weights, uniform=draw, shapes=shapes)
        clipped = problem.step(optimizer, grads)
        assert_close([g.flatten() for g in clipped], [torch.tensor(w, dtype=F64) for w in wanted], 1e-10)
        for p, g in zip(plain_params, clipped, strict=True):
            p.grad = g.clone()
        plain.step()
        assert equal(params, plain_params)
    assert optimizer.clipping_stats()["clipped_steps"] == oracle.clipped_steps > 0


@pytest.mark.parametrize("name", NEW)
def test_mixin_without_clipping_is_the_plain_optimizer_bit_for_bit(problem, name):
    shapes = shapes_of(name, problem)
    params, plain_params = problem.parameters(shapes=shapes), problem.parameters(shapes=shapes)
    optimizer, plain = mixed(name)(params, **BASES[name], clipping_type="none"), base(name)(plain_params, **BASES[name])
    for step in range(5):
        grads = problem.gradients(step, shapes=shapes)
        problem.step(optimizer, grads)
        problem.step(plain, grads)
    assert equal(params, plain_params)


@pytest.mark.parametrize("name", NEW)
def test_mixin_keeps_its_clipping_in_checkpoints_and_copies(problem, name):
    shapes = shapes_of(name, problem)

    def new():
        params = problem.parameters(shapes=shapes)
        return params, mixed(name)(params, **BASES[name], clipping_type="auto", clipping_level=0.5, clipping_window=4)

    params, optimizer = new()
    for step in range(6):
        problem.step(optimizer, problem.gradients(step, shapes=shapes))
    other_params, other = new()
    other.load_state_dict(saved_and_loaded(optimizer.state_dict(), weights_only=True))
    for p, q in zip(other_params, params, strict=True):
        p.data.copy_(q.data)
    for step in range(6, 10):
        grads = problem.gradients(step, shapes=shapes)
        assert equal(problem.step(optimizer, grads), problem.step(other, grads))
    assert equal(params, other_params)
    assert other.grad_norms().tolist() == optimizer.grad_norms().tolist()


def test_mixin_refuses_a_typo_and_nonsense(problem):
    with pytest.raises(TypeError, match="clipping_levle"):
        mixed("RMSprop")(problem.parameters(), clipping_levle=1.0)
    with pytest.raises(ValueError, match=r"clipping_type must be one of .* got 'nrom'.*'norm'"):
        mixed("RMSprop")(problem.parameters(), clipping_type="nrom")
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):  # torch's own
        mixed("RMSprop")(problem.parameters(), lr=-1)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise", "coord_wise"])
def test_lbfgs_sees_clipped_gradients_in_every_evaluation(problem, clipping_type, search):
    options = {"lr": 0.5, "max_iter": 6, "history_size": 4, "line_search_fn": search}
    target = problem.gradients(0, norm=20.0, dtype=F64)
    runs = []
    for by_hand in (True, False):
        params, calls = problem.parameters(F64), []
        clipping = {} if by_hand else {"clipping_type": clipping_type, "clipping_level": 0.7}
        optimizer = (torch.optim.LBFGS if by_hand else mixed("LBFGS"))(params, **options, **clipping)

        def closure(params=params, calls=calls, optimizer=optimizer, by_hand=by_hand):
            optimizer.zero_grad()
            loss = sum(((p - t) ** 2).sum() + 0.1 * (p**4).sum() for p, t in zip(params, target, strict=True))
            loss.backward()
            calls.append(problem.length(gradients_of(params)))
            if by_hand:
                oracle_clip(params, clipping_type)
            return loss

        losses = [optimizer.step(closure).item() for _ in range(3)]
        runs.append((problem.copies(params), calls, losses, optimizer))
    (by_hand, hand_calls, hand_losses, _), (weights, calls, losses, optimizer) = runs
    assert len(calls) == len(hand_calls) > 10
    assert losses == pytest.approx(hand_losses, rel=1e-7)
    assert_close(weights, by_hand, 1e-7)
    stats = optimizer.clipping_stats()
    assert stats["steps"] == len(calls)
    assert stats["clipped_steps"] > 3
    if clipping_type != "coord_wise":
        assert optimizer.grad_norms().tolist() == pytest.approx(calls, rel=1e-12)


def oracle_clip(params, clipping_type):
    oracle = ReferenceClipper(clipping_type, 0.7)
    clipped = oracle.clip([p.grad.flatten().tolist() for p in params])
    for p, flat in zip(params, clipped, strict=True):
        p.grad.copy_(torch.tensor(flat, dtype=F64).view_as(p))
