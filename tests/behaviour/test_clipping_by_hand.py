"""Clipping by hand, between backward and step: clip_gradients_ and GradientClipper."""

import itertools
import math

import pytest
import torch
from support.assertions import assert_close, equal
from support.cases import ONE_A_KIND, gradients_of, pairwise, saved_and_loaded
from support.reference import ReferenceClipper
from support.ways import step_by_hand, with_gradients

from torch_clipped import ClippedSGD, GradientClipper, clip_gradients_
from torch_clipped.clipping import CLIPPING_TYPES

F64 = torch.float64
ALL = list(CLIPPING_TYPES)
STATELESS = ["none", "norm", "layer_wise", "coord_wise", "adaptive"]
WITH_MEMORY = [name for name in ALL if name not in STATELESS]
BY_HAND = {"function": clip_gradients_, "clipper": lambda *args, **options: GradientClipper(*args, **options).step()}


@pytest.mark.parametrize("level", [0.3, 100.0])
@pytest.mark.parametrize("norm_type", [1, 2, 2.0, 3, math.inf])
def test_clip_gradients_is_torchs_clip_grad_norm(problem, norm_type, level):
    params, other = with_gradients(problem), with_gradients(problem)
    norm = clip_gradients_(params, "norm", level, norm_type=norm_type)
    wanted = torch.nn.utils.clip_grad_norm_(other, level, norm_type)
    assert isinstance(norm, torch.Tensor)
    assert norm.shape == ()
    assert norm.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert_close(gradients_of(params), gradients_of(other), 1e-5)  # torch adds 1e-6 to the norm
    after = torch.nn.utils.get_total_norm(gradients_of(params), norm_type).item()
    assert after == pytest.approx(min(level, wanted.item()), rel=1e-12)


@pytest.mark.parametrize("clipping_type", ["coord_wise", "value"])
def test_clip_gradients_is_torchs_clip_grad_value(problem, clipping_type):
    params, other = with_gradients(problem), with_gradients(problem)
    norm = clip_gradients_(params, clipping_type, 0.4)
    torch.nn.utils.clip_grad_value_(other, 0.4)
    assert equal(gradients_of(params), gradients_of(other))
    assert isinstance(norm, torch.Tensor)
    assert norm.item() == pytest.approx(5.0, rel=1e-12)


@pytest.mark.parametrize("clipping_type", STATELESS)
def test_clip_gradients_is_the_oracle_and_returns_the_norm_before(problem, clipping_type):
    params = with_gradients(problem)
    before = [p.grad for p in params]
    oracle = ReferenceClipper(clipping_type)
    flat, weights = ([t.detach().flatten().tolist() for t in tensors] for tensors in (before, params))
    wanted = oracle.clip(flat, weights=weights, shapes=problem.shapes)
    norm = clip_gradients_(params, clipping_type)
    assert norm.item() == pytest.approx(5.0, rel=1e-12)
    assert norm.shape == ()
    assert_close([p.grad.flatten() for p in params], [torch.tensor(w, dtype=F64) for w in wanted])
    assert all(p.grad is g for p, g in zip(params, before, strict=True))
    assert oracle.clipped_steps == (clipping_type != "none")


def test_clip_gradients_has_no_step_to_skip_and_names_the_clipper():
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    with pytest.raises(ValueError, match=r"clipping_action must be 'clip' here, got 'skip': .*GradientClipper"):
        clip_gradients_(weight, "norm", 1.0, clipping_action="skip")
    with pytest.raises(ValueError, match=r"clipping_action must be one of .*, got 'skipp'"):
        clip_gradients_(weight, "norm", 1.0, clipping_action="skipp")
    assert weight.grad.tolist() == [3, 4]


@pytest.mark.parametrize("clipping_type", WITH_MEMORY)
def test_clip_gradients_refuses_types_with_memory_and_names_the_clipper(problem, clipping_type):
    params = with_gradients(problem)
    before = problem.copies(gradients_of(params))
    with pytest.raises(ValueError, match=f"{clipping_type}.*GradientClipper|GradientClipper.*{clipping_type}"):
        clip_gradients_(params, clipping_type)
    assert equal(gradients_of(params), before)


@pytest.mark.parametrize("way", BY_HAND)
def test_other_ways_by_hand_take_generators_and_a_single_tensor(problem, way):
    params = with_gradients(problem)
    assert BY_HAND[way]((p for p in params), "norm", 1.0).item() == pytest.approx(5.0)
    assert problem.length(gradients_of(params)) == pytest.approx(1.0)
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert BY_HAND[way](weight, "norm", 1.0).item() == pytest.approx(5.0)
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("way", [clip_gradients_, GradientClipper])
def test_other_ways_by_hand_refuse_no_parameters(problem, way):
    used_up = iter(problem.parameters())
    list(used_up)
    for nothing in ([], (), used_up):
        with pytest.raises(ValueError, match="parameters"):
            way(nothing)


@pytest.mark.parametrize(
    "wrong",
    [
        [1.0],
        ["weight"],
        [None],
        {"weight": torch.zeros(2)},
        list(torch.nn.Linear(2, 2).named_parameters()),
        [{"params": [torch.zeros(2)]}],
        3,
        None,
        torch.nn.Linear(2, 2),
    ],
    ids=["number", "string", "None in a list", "dict", "named", "groups", "int", "None", "module"],
)
def test_other_ways_by_hand_refuse_what_is_no_tensor_and_name_the_argument(wrong):
    for way in (clip_gradients_, GradientClipper):
        with pytest.raises((ValueError, TypeError), match="parameters"):
            pytest.fail(f"{way.__name__} has taken {way(wrong)}")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"clipping_type": "nrom"}, "nrom.*norm"),
        ({"clipping_level": -1.0}, "clipping_level"),
        ({"norm_type": 0}, "norm_type"),
        ({"nonfinite": "x"}, "nonfinite"),
    ],
    ids=str,
)
def test_other_ways_by_hand_refuse_nonsense(problem, arguments, match):
    for way in (clip_gradients_, GradientClipper):
        with pytest.raises(ValueError, match=match):
            pytest.fail(f"{way.__name__} has taken {way(problem.parameters(), **arguments)}")


@pytest.mark.parametrize("clipping_type", STATELESS)
def test_clip_gradients_without_any_gradient_is_zero_and_changes_nothing(problem, clipping_type):
    params = problem.parameters()
    assert clip_gradients_(params, clipping_type).item() == 0
    assert gradients_of(params) == [None] * len(params)


@pairwise(way=BY_HAND, clipping_type=STATELESS, value=[math.inf, math.nan])
@pytest.mark.filterwarnings("ignore:a gradient was not finite")
def test_other_ways_by_hand_obey_the_policy_for_nonfinite_gradients(problem, way, clipping_type, value):
    def run(nonfinite):
        params = with_gradients(problem)
        params[0].grad[1, 1] = value
        before = problem.copies(gradients_of(params))
        return BY_HAND[way](params, clipping_type, nonfinite=nonfinite), gradients_of(params), before

    for nonfinite in ("skip", "propagate"):
        norm, grads, before = run(nonfinite)
        assert not norm.isfinite()
        whole = nonfinite == "skip" or clipping_type in ("none", "norm")  # else the tensors that are finite may be clipped
        for a, b in list(zip(grads, before, strict=True))[: None if whole else 1]:
            if clipping_type == "coord_wise" and not whole:
                b = b.clamp(-0.1, 0.1)  # keeps NaN
            same = a.nan_to_num(7.0) == b.nan_to_num(7.0)
            assert same.all() if clipping_type != "adaptive" or whole else same[1].all()
    if clipping_type != "none":  # torch's optimizer, bit for bit: no policy
        with pytest.raises(RuntimeError, match="not finite"):
            run("error")
        _, grads, _ = run("zero")
        assert all(g.isfinite().all() for g in grads)
        assert grads[0][1, 1] == 0


# GradientClipper


@pytest.mark.parametrize(
    ("clipping_type", "dtype"), [*itertools.product(ALL, [F64]), *itertools.product(ONE_A_KIND, [torch.float32])], ids=str
)
def test_clipper_clips_like_the_optimizer_of_the_same_type(problem, clipping_type, dtype):
    arguments = {"clipping_type": clipping_type, "clipping_window": 6, "clipping_seed": 5, "clipping_beta": 0.7}
    params, other_params = problem.parameters(dtype), problem.parameters(dtype)
    optimizer = ClippedSGD(params, lr=0.05, momentum=0.9, **arguments)
    plain, clipper = torch.optim.SGD(other_params, lr=0.05, momentum=0.9), GradientClipper(other_params, **arguments)
    tolerance = 1e-11 if dtype == F64 else 1e-4
    for step in range(40):
        grads = problem.gradients(step, dtype=dtype)
        norm, clipped = step_by_hand(plain, clipper, grads)
        assert isinstance(norm, torch.Tensor)
        assert norm.shape == ()
        assert norm.item() == pytest.approx(problem.length(grads), rel=1e-6)
        assert_close(clipped, problem.step(optimizer, grads), tolerance)
    assert_close(params, other_params, tolerance)
    stats, wanted = clipper.clipping_stats(), optimizer.clipping_stats()
    assert {k: stats[k] for k in ("steps", "clipped_steps")} == {k: wanted[k] for k in ("steps", "clipped_steps")}
    assert stats["clipped_steps"] > 0 or clipping_type == "none"
    assert clipper.grad_norms().tolist() == pytest.approx(optimizer.grad_norms().tolist(), rel=1e-6)


# each kind of state is saved after one step, once its window of 8 is full, and after 60 steps
MEMORIES = ["linear_rand_auto", "layer_wise_auto", "zscore", "layer_wise_zscore", "zclip", "adagc"]


@pytest.mark.parametrize(
    ("clipping_type", "stop"),
    [*itertools.product(MEMORIES, [1, 20, 60]), *((name, 20) for name in ALL if name not in MEMORIES)],
)
def test_resumed_clipper_is_the_unbroken_one_bit_for_bit(problem, clipping_type, stop):
    arguments = {"clipping_window": 8, "clipping_seed": 5}

    def run(start, end, state=None):
        params = problem.parameters()
        clipper = GradientClipper(params, clipping_type, **arguments)
        if state is not None:
            clipper = GradientClipper(params)  # all of it comes from the checkpoint
            clipper.load_state_dict(saved_and_loaded(state, weights_only=True))
        clipped = []
        for step in range(start, end):
            for p, g in zip(params, problem.gradients(step), strict=True):
                p.grad = g
            clipper.step()
            clipped += problem.copies(gradients_of(params))
        return clipper, clipped

    unbroken, wanted = run(0, stop + 50)
    broken, first = run(0, stop)
    resumed, second = run(stop, stop + 50, broken.state_dict())
    assert equal(first + second, wanted)
    assert resumed.clipping_stats() == pytest.approx(unbroken.clipping_stats(), rel=0, abs=0, nan_ok=True)
    assert resumed.grad_norms().tolist() == unbroken.grad_norms().tolist()


def test_loaded_clipper_does_not_share_its_memory(problem):
    params = problem.parameters()
    clipper, other = GradientClipper(params, "auto", 0.5), GradientClipper(params)
    for p, g in zip(params, problem.gradients(0), strict=True):
        p.grad = g
    clipper.step()
    other.load_state_dict(clipper.state_dict())
    other.step()
    assert len(clipper.grad_norms()) == 1
    assert len(other.grad_norms()) == 2


def test_clipper_refuses_a_wrong_state_and_stays_as_it_was(problem):
    params = problem.parameters()
    clipper = GradientClipper(params, "layer_wise_auto", 0.5, clipping_window=4)
    for step in range(3):
        for p, g in zip(params, problem.gradients(step), strict=True):
            p.grad = g
        clipper.step()
    norms, good = clipper.grad_norms().tolist(), clipper.state_dict()
    of_others = GradientClipper(params[:2], "layer_wise_auto", clipping_window=4).state_dict()
    wrong_level = good | {"clipping_level": 7.0}
    for wrong in ({}, ClippedSGD(params).state_dict(), torch.optim.SGD(params).state_dict(), of_others, wrong_level):
        with pytest.raises(ValueError, match=r"state_dict|clipping_level"):
            clipper.load_state_dict(wrong)
        assert clipper.grad_norms().tolist() == norms
        assert clipper.state_dict()["clipping_level"] == 0.5
    clipper.step()
    assert len(clipper.grad_norms()) == 4


def test_clipper_measures_all_parameters_as_one_vector(problem):
    params = with_gradients(problem, norm=8.0)
    clipper = GradientClipper(params, "norm", 2.0)
    assert clipper.step().item() == pytest.approx(8.0)
    assert problem.length(gradients_of(params)) == pytest.approx(2.0)
    assert clipper.step().item() == pytest.approx(2.0)  # what is clipped already stays so
