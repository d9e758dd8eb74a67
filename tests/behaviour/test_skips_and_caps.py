"""Spikes that are skipped, caps and warm-ups: every type on both kinds of arithmetic against the slow oracle."""

import copy
import io
import math
import pickle
import warnings
from dataclasses import dataclass
from itertools import cycle, product

import numpy as np
import pytest
import torch
from support.cases import ONE_A_KIND, pairwise
from support.reference import ReferenceClipper, reference_adam_step, reference_sgd_step

from torch_clipped import ClippedAdamW, ClippedSGD, Clipping, Constant, GradientClipper, clip_optimizer, register_clipping
from torch_clipped.clipping import CLIPPING_TYPES
from torch_clipped.decisions import uniform

SHAPES = [(3, 4), (5,), (2, 3, 2, 2)]
STEPS = 60
LEVELS = {"auto": 0.6, "linear_rand_auto": 0.6, "quadratic_rand_auto": 0.6, "coord_wise": 2.0, "norm": 6.0, "layer_wise": 4.0}
LEVELS |= {"linear_rand_norm": 6.0, "quadratic_rand_norm": 6.0, "adaptive": 2.0}
TYPES = [name for name, rule in CLIPPING_TYPES.items() if rule is not None]
ACTIONS = ["clip", "skip"]
TYPES_AND_ACTIONS = [*product(ONE_A_KIND, ACTIONS), *zip([name for name in TYPES if name not in ONE_A_KIND], cycle(ACTIONS))]
REMEMBERING = [name for name in TYPES if CLIPPING_TYPES[name].threshold.memory(1, 2)]
CAPS = {"coord_wise": 1.5, "adaptive": 1.5}
BOTH = pytest.mark.parametrize("arithmetic", ["host", "accelerator"], indirect=True)
pytestmark = pytest.mark.filterwarnings("ignore:.*skipped:RuntimeWarning")


@pytest.fixture
def arithmetic(request):
    if request.param == "accelerator":
        request.getfixturevalue("no_host")


def gradients(step):
    """Gradients with spikes, now and then a missing one or nothing but zeros."""
    generator = torch.Generator().manual_seed(step)
    scale = math.exp(0.5 * torch.randn((), generator=generator).item()) * (6 if step % 9 == 8 else 1)
    grads = [torch.randn(shape, generator=generator, dtype=torch.float64) * scale for shape in SHAPES]
    if step % 5 == 3:
        grads[1] = None
    if step % 11 == 6:
        grads = [None if g is None else g.zero_() for g in grads]
    return grads


def flat(tensors):
    return [None if t is None else t.double().flatten().tolist() for t in tensors]


def start():
    generator = torch.Generator().manual_seed(100)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]


def assert_close(actual, wanted):
    for a, w in zip(actual, wanted, strict=True):
        assert (a is None) == (w is None)
        assert a is None or a == pytest.approx(w, rel=1e-9, abs=1e-12)


def check_against_the_oracle(name, clipping_type, action="clip", cap=None, warm_up=None):
    params, level = start(), LEVELS.get(clipping_type)
    arguments = {"clipping_action": action, "clipping_cap": cap, "clipping_warmup": warm_up, "clipping_window": 8}
    if name == "sgd":
        optimizer = ClippedSGD(params, 0.05, 0.9, clipping_type=clipping_type, clipping_level=level, **arguments)
    else:
        optimizer = ClippedAdamW(params, 0.05, clipping_type=clipping_type, clipping_level=level, **arguments)
    oracle = ReferenceClipper(clipping_type, level, window=8, action=action, cap=cap, warm_up=warm_up)
    weights, state = flat(params), {}
    for step in range(STEPS):
        grads = gradients(step)
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else g.clone()
        number = uniform(0, 0, oracle.steps)
        wanted = oracle.clip(flat(grads), weights=flat(params), uniform=number, shapes=SHAPES)
        optimizer.step()
        if not oracle.skipped:
            assert_close(flat([p.grad for p in params]), wanted)
            if name == "sgd":
                reference_sgd_step(weights, wanted, state, 0.05, momentum=0.9)
            else:
                reference_adam_step(weights, wanted, state, 0.05, weight_decay=0.01, decoupled=True)
        assert_close(flat(params), weights)
    stats = optimizer.clipping_stats()
    counted = stats["steps"], stats["clipped_steps"], stats["skipped_steps"]
    assert counted == (oracle.steps, oracle.clipped_steps, oracle.skipped_steps)
    if not math.isnan(stats["coefficient"]) and oracle.length > 0:
        present = [c for c, length in zip(oracle.coefficients, oracle.lengths, strict=True) if length > 0]
        assert stats["coefficient"] == pytest.approx(torch.tensor(present).double().quantile(0.5).item())
    return optimizer, oracle


@BOTH
@pytest.mark.parametrize(("clipping_type", "name"), [*zip(TYPES, cycle(["sgd", "adamw"]))])
def test_steps_with_a_spike_are_skipped(clipping_type, name, arithmetic):
    warm_up = 20 if clipping_type == "adagc" else None
    _, oracle = check_against_the_oracle(name, clipping_type, action="skip", warm_up=warm_up)
    assert 0 < oracle.skipped_steps < oracle.steps
    assert oracle.clipped_steps == oracle.skipped_steps


@BOTH
@pytest.mark.parametrize(("clipping_type", "action"), TYPES_AND_ACTIONS)
def test_no_block_is_left_longer_than_the_cap(clipping_type, action, arithmetic):
    _, oracle = check_against_the_oracle("adamw", clipping_type, action=action, cap=CAPS.get(clipping_type, 3.0))
    assert oracle.clipped_steps > oracle.skipped_steps


@pairwise(clipping_type=REMEMBERING, warm_up=[0, 5, 20], arithmetic=["host", "accelerator"]).with_args(indirect=["arithmetic"])
def test_types_do_not_clip_before_the_end_of_their_warm_up(clipping_type, warm_up, arithmetic):
    _, oracle = check_against_the_oracle("sgd", clipping_type, warm_up=warm_up)
    assert oracle.clipped_steps > 0


# Spikes that are skipped.


def one_weight(value=0.0, count=1):
    return torch.nn.Parameter(torch.full((count,), value, dtype=torch.float64))


def step_with(optimizer, *gradients):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = torch.full_like(p, gradient)
    optimizer.step()


@BOTH
def test_zscore_that_skips_is_the_rule_of_olmo(arithmetic):
    """The rule of OLMo-core's SkipStepOptimizer for gradient norms, with its default interval of 128 steps and factor of 6."""
    generator = torch.Generator().manual_seed(0)
    stream = (1 + 0.1 * torch.randn(500, generator=generator).abs()).tolist()
    for spike in (5, 70, 71, 200, 333, 334, 335):
        stream[spike] = 4.0 + spike % 3
    weight = one_weight()
    rule = {"clipping_type": "zscore", "clipping_level": 6.0, "clipping_window": 128, "clipping_warmup": 63}
    optimizer = ClippedSGD([weight], lr=1.0, **rule, clipping_action="skip")
    wanted, norms, skipped = 0.0, [], 0
    for norm in stream:
        step_with(optimizer, norm)
        norms = [*norms, norm][-129:]
        before = torch.tensor(norms[:-1], dtype=torch.float64)
        if len(norms) >= max(20, 128 // 2) and norm - before.mean() > 6 * before.std():
            skipped += 1
        else:
            wanted -= norm
        assert weight.item() == pytest.approx(wanted, rel=1e-12)
    assert skipped == optimizer.clipping_stats()["skipped_steps"] == 6  # one comes before the 64th norm


@BOTH
@pytest.mark.parametrize("cls", [ClippedSGD, ClippedAdamW])
def test_skipped_spike_changes_neither_weights_nor_state_nor_gradient(cls, arithmetic):
    options = {"momentum": 0.9, "weight_decay": 0.1} if cls is ClippedSGD else {}
    weight, twin = one_weight(count=3), one_weight(count=3)
    optimizer = cls([weight], lr=0.1, clipping_level=5.0, clipping_action="skip", **options)
    without = cls([twin], lr=0.1, clipping_level=5.0, clipping_action="skip", **options)
    for gradient in (1.0, 100.0, 2.0, 50.0, -1.0):
        step_with(optimizer, gradient)
        if abs(gradient) < 3:
            step_with(without, gradient)
        else:
            assert torch.equal(weight.grad, torch.full_like(weight, gradient))
        assert torch.equal(weight, twin)
    for kept, wanted in zip(optimizer.state[weight].values(), without.state[twin].values(), strict=True):
        assert torch.equal(kept, wanted)
    stats = optimizer.clipping_stats()
    assert (stats["steps"], stats["clipped_steps"], stats["skipped_steps"]) == (5, 2, 2)


@BOTH
def test_first_step_can_be_skipped(arithmetic):
    weight = one_weight()
    optimizer = ClippedSGD([weight], lr=1.0, momentum=0.5, clipping_action="skip")
    step_with(optimizer, 10.0)
    assert weight.item() == 0.0
    step_with(optimizer, 1.0)
    assert weight.item() == -1.0


@BOTH
def test_statistics_of_a_skipped_step_say_that_nothing_was_left(arithmetic):
    weight = one_weight()
    optimizer = ClippedSGD([weight], clipping_level=2.0, clipping_action="skip")
    step_with(optimizer, 8.0)
    stats = optimizer.clipping_stats()
    assert (stats["grad_norm"], stats["clipped_norm"], stats["threshold"], stats["coefficient"]) == (8.0, 0.0, 2.0, 0.0)
    assert optimizer.grad_norms().tolist() == [8.0]


@BOTH
def test_spike_in_one_clip_set_skips_the_step_of_all(arithmetic):
    one, other = one_weight(), one_weight()
    groups = [{"params": [one]}, {"params": [other], "clipping_level": 3.0, "clipping_action": "clip"}]
    optimizer = ClippedSGD(groups, lr=1.0, clipping_action="skip")
    step_with(optimizer, 0.5, 6.0)
    assert (one.item(), other.item()) == (-0.5, -3.0)
    step_with(optimizer, 2.0, 1.0)
    assert (one.item(), other.item()) == (-0.5, -3.0)
    first, second = optimizer.clipping_stats(per_set=True)
    assert (first["skipped_steps"], second["skipped_steps"], optimizer.clipping_stats()["skipped_steps"]) == (1, 0, 1)
    assert optimizer.clipping_stats()["steps"] == 2


def test_closure_that_an_optimizer_evaluates_itself_can_be_skipped():
    weight = one_weight(1.0)
    optimizer = clip_optimizer(torch.optim.LBFGS([weight], lr=0.1, max_iter=1), "norm", 5.0, clipping_action="skip")

    def closure():
        weight.grad = torch.full_like(weight, scale)
        return scale * weight.sum()

    scale = 100.0
    optimizer.step(closure)
    assert weight.item() == 1.0
    scale = 1.0
    optimizer.step(closure)
    assert weight.item() < 1.0


@pytest.mark.parametrize("fused", [True, False])
def test_gradient_scaler_and_a_skipped_spike(fused):
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = ClippedAdamW([weight], lr=0.1, fused=fused, clipping_level=5.0, clipping_action="skip")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
    for gradient, moves in ((1.0, True), (100.0, False), (math.inf, False), (2.0, True)):
        before = weight.detach().clone()
        weight.grad = torch.full_like(weight, gradient * scaler.get_scale())
        scaler.scale(torch.zeros(()))  # makes the scale
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, weight) is not moves
    assert optimizer.clipping_stats()["skipped_steps"] == 1  # the scaler skips the other one


def test_skipped_spikes_are_told_of_at_powers_of_ten_in_a_row():
    weight = one_weight()
    optimizer = ClippedSGD([weight], clipping_action="skip")
    told = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, 121):
            step_with(optimizer, 5.0)
            told += [step] * len(caught)
            assert all("clipping_action='skip'" in str(warning.message) for warning in caught)
            caught.clear()
        step_with(optimizer, 0.5)
        step_with(optimizer, 5.0)
        told += [121] * len(caught)
    assert told == [1, 10, 100, 121]


@BOTH
@pytest.mark.parametrize("clipping_type", ["zscore", "layer_wise_auto", "adagc", "linear_rand_auto"])
def test_resumed_run_skips_what_the_unbroken_one_skips(clipping_type, arithmetic):
    def new():
        params = start()
        rule = {"clipping_action": "skip", "clipping_cap": 5.0, "clipping_warmup": 8, "clipping_window": 16}
        return params, ClippedAdamW(params, 0.05, clipping_type=clipping_type, **rule)

    def run(params, optimizer, steps):
        for step in steps:
            for p, g in zip(params, gradients(step), strict=True):
                p.grad = g
            optimizer.step()

    params, optimizer = new()
    run(params, optimizer, range(30))
    file = io.BytesIO()
    torch.save({"weights": [p.detach() for p in params], "optimizer": optimizer.state_dict()}, file)
    run(params, optimizer, range(30, 60))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    others, resumed = new()
    for p, value in zip(others, saved["weights"], strict=True):
        p.data.copy_(value)
    resumed.load_state_dict(saved["optimizer"])
    run(others, resumed, range(30, 60))
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))
    assert resumed.clipping_stats() == pytest.approx(optimizer.clipping_stats(), rel=0, nan_ok=True)
    assert optimizer.clipping_stats()["skipped_steps"] > 0


@BOTH
def test_clipper_says_whether_to_skip(arithmetic):
    weight = one_weight()
    clipper = GradientClipper([weight], "norm", 2.0, clipping_action="skip")
    assert not clipper.skip
    for gradient, skip in ((1.0, False), (8.0, True), (1.5, False), (math.nan, True)):
        weight.grad = torch.full_like(weight, gradient)
        clipper.step()
        assert clipper.skip.dtype is torch.bool
        assert bool(clipper.skip) is skip
        assert bool(copy.deepcopy(clipper).skip) is skip
        torch.testing.assert_close(weight.grad, torch.full_like(weight, gradient), equal_nan=True)


# Caps, warm-ups and labels in parameter groups.


def test_type_does_not_remember_the_cap():
    weights = one_weight(), one_weight()
    plain, capped = (ClippedSGD([w], clipping_type="zclip", clipping_cap=c) for w, c in zip(weights, (None, 0.5), strict=True))
    for step in range(60):
        gradient = 1 + 0.1 * (step % 7) + 5 * (step % 20 == 19)
        step_with(plain, gradient)
        step_with(capped, gradient)
        assert weights[1].grad.item() == pytest.approx(0.5)
    for name in ("average", "variance"):
        key = f"clipping_memory_{name}"
        assert torch.equal(plain.param_groups[0][key], capped.param_groups[0][key])


def test_group_that_names_its_type_takes_neither_cap_nor_warm_up_of_the_others():
    groups = [{"params": [one_weight()]}, {"params": [one_weight()], "clipping_type": "none"}]
    groups += [{"params": [one_weight()], "clipping_type": "norm"}, {"params": [one_weight()], "clipping_type": "zclip"}]
    optimizer = ClippedSGD(groups, clipping_type="auto", clipping_cap=2.0, clipping_warmup=7, clipping_action="skip")
    found = [(g["clipping_cap"], g["clipping_warmup"], g["clipping_action"]) for g in optimizer.param_groups]
    assert found == [(2.0, 7, "skip"), *[(None, None, "skip")] * 3]


@BOTH
def test_cap_written_to_a_group_holds_in_the_next_step(arithmetic):
    weight = one_weight()
    optimizer = ClippedSGD([weight], clipping_level=10.0)
    step_with(optimizer, 4.0)
    assert weight.grad.item() == 4.0
    optimizer.param_groups[0]["clipping_cap"] = 1.5
    step_with(optimizer, 4.0)
    assert weight.grad.item() == pytest.approx(1.5)


@BOTH
def test_entries_that_a_decision_leaves_whole_are_clamped_to_the_cap_alone(table, arithmetic):
    register_clipping("never_entry", Clipping("coordinate", Constant(1.0), lambda alpha, beta, draw: alpha > math.inf))
    register_clipping("each_entry", Clipping("coordinate", Constant(1.0)))
    for clipping_type, cap, wanted in (
        ("never_entry", 4.0, [3.0, -4.0]),
        ("never_entry", 0.5, [0.5, -0.5]),
        ("each_entry", 4.0, [1.0, -1.0]),
        ("each_entry", 0.5, [0.5, -0.5]),
    ):
        weight = torch.nn.Parameter(torch.zeros(2))
        weight.grad = torch.tensor([3.0, -8.0])
        ClippedSGD([weight], clipping_type=clipping_type, clipping_cap=cap).step()
        assert weight.grad.tolist() == wanted


@BOTH
def test_labels_keep_equal_groups_apart(arithmetic):
    def new(labels):
        params = [one_weight(), one_weight()]
        groups = [{"params": [p], "clipping_set": label} for p, label in zip(params, labels, strict=True)]
        return params, ClippedSGD(groups, clipping_type="auto", clipping_level=0.5)

    def run(labels):
        params, optimizer = new(labels)
        for step in range(20):
            step_with(optimizer, 1.0 + step, 30.0 - step)
        return [p.item() for p in params], optimizer

    apart, optimizer = run(["actor", "critic"])
    alone = [ClippedSGD([one_weight()], clipping_type="auto", clipping_level=0.5) for _ in range(2)]
    for step in range(20):
        step_with(alone[0], 1.0 + step)
        step_with(alone[1], 30.0 - step)
    assert apart == [o.param_groups[0]["params"][0].item() for o in alone]
    assert apart != run([None, None])[0]
    assert run(["both", "both"])[0] == run([None, None])[0]
    params, resumed = new(["actor", "critic"])
    resumed.load_state_dict(optimizer.state_dict())
    step_with(optimizer, 5.0, 6.0)
    step_with(resumed, 5.0, 6.0)
    assert [p.grad.item() for p in params] == [g["params"][0].grad.item() for g in optimizer.param_groups]


def test_checkpoint_of_an_older_version_leaves_cap_action_and_warm_up_of_the_constructor():
    arguments = {"clipping_type": "auto", "clipping_cap": 2.0, "clipping_warmup": 3, "clipping_action": "skip"}
    old = ClippedSGD([one_weight()], **arguments).state_dict()
    for name in ("clipping_cap", "clipping_warmup", "clipping_action", "clipping_set"):
        del old["param_groups"][0][name]
    optimizer = ClippedSGD([one_weight()], **arguments, clipping_set="actor")
    optimizer.load_state_dict(old)
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in arguments} == arguments
    assert group["clipping_set"] == "actor"


@pytest.mark.parametrize(("name", "value"), [("clipping_cap", 1.0), ("clipping_warmup", 3)])
def test_what_does_not_clip_has_neither_cap_nor_warm_up(name, value):
    with pytest.raises(ValueError, match=f"{name} must be None for clipping_type='none'"):
        ClippedSGD([one_weight()], clipping_type="none", **{name: value})
    optimizer = ClippedSGD([one_weight()], clipping_type="none")
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=f"parameter group 0: {name} must be None"):
        step_with(optimizer, 1.0)


# What is left out, on both kinds of arithmetic.


@BOTH
@pytest.mark.parametrize(("clipping_type", "action"), TYPES_AND_ACTIONS)
def test_step_that_is_not_finite_is_no_clipped_one_whatever_the_cap(clipping_type, action, arithmetic):
    weight = one_weight(1.0, count=2)
    arguments = {"clipping_type": clipping_type, "clipping_cap": 1.0, "clipping_action": action}
    optimizer = ClippedSGD([weight], lr=0.1, clipping_level=LEVELS.get(clipping_type), **arguments)
    step_with(optimizer, 0.1)
    before = optimizer.clipping_stats()
    for _ in range(2):
        step_with(optimizer, math.inf)
    after = optimizer.clipping_stats()
    assert (after["steps"], after["clipped_steps"]) == (before["steps"], before["clipped_steps"])
    assert after["skipped_steps"] == before["skipped_steps"] + 2
    ClippedSGD([one_weight(count=2)], clipping_level=LEVELS.get(clipping_type), **arguments).load_state_dict(
        optimizer.state_dict()
    )


@BOTH
@pytest.mark.parametrize(("bad", "action"), [(30.0, "skip"), (math.nan, "clip"), (math.inf, "clip")])
def test_gradients_of_a_step_that_is_left_out_stay_as_they_are(bad, action, arithmetic):
    params = [one_weight(count=2), one_weight(count=2)]
    optimizer = ClippedSGD(params, clipping_type="layer_wise", clipping_level=5.0, clipping_cap=1.0, clipping_action=action)
    step_with(optimizer, bad, 2.0)
    for p, wanted in zip(params, (bad, 2.0), strict=True):
        torch.testing.assert_close(p.grad, torch.full_like(p, wanted), rtol=0, atol=0, equal_nan=True)


@BOTH
@pytest.mark.parametrize("entries", [[math.inf, 3.0], [math.nan, 300.0]])
def test_entries_that_are_not_finite_are_spikes_where_single_entries_are_measured(entries, arithmetic):
    weight = one_weight(1.0, count=2)
    arguments = {"clipping_type": "coord_wise", "nonfinite": "propagate", "clipping_action": "skip"}
    optimizer = ClippedSGD([weight], lr=1.0, **arguments)
    weight.grad = torch.tensor(entries, dtype=torch.float64)
    optimizer.step()
    assert weight.tolist() == [1.0, 1.0]
    assert optimizer.clipping_stats()["skipped_steps"] == 1


# State of version 0.1, which knew none of these arguments.

NEW = ("clipping_action", "clipping_cap", "clipping_warmup", "clipping_set")


def test_checkpoint_of_an_older_clipper_loads():
    weight = one_weight()
    arguments = {"clipping_type": "auto", "clipping_cap": 2.0, "clipping_action": "skip"}
    old = {key: value for key, value in GradientClipper([weight], **arguments).state_dict().items() if key not in NEW}
    clipper = GradientClipper([weight], **arguments)
    clipper.load_state_dict(old)
    assert (clipper.state_dict()["clipping_cap"], clipper.state_dict()["clipping_action"]) == (2.0, "skip")


@pytest.mark.parametrize("made", [lambda p: ClippedSGD([p]), lambda p: clip_optimizer(torch.optim.SGD([p]))])
def test_older_pickles_of_optimizers_can_be_read(made):
    optimizer = made(one_weight())
    state = pickle.loads(pickle.dumps(optimizer.__getstate__()))
    for entries in (state["defaults"], *state["param_groups"]):
        for name in NEW:
            del entries[name]
    read = object.__new__(type(optimizer))
    read.__setstate__(state)
    step_with(read, 5.0)
    assert read.param_groups[0]["clipping_action"] == "clip"
    read.add_param_group({"params": [one_weight()]})


def test_older_pickles_of_clippers_can_be_read():
    clipper = GradientClipper([one_weight()], "auto")
    state = clipper.__getstate__()
    read = object.__new__(GradientClipper)
    read.__setstate__({"_group": {key: value for key, value in state["_group"].items() if key not in NEW}})
    assert not read.skip
    read.step()


def test_strings_of_numpy_are_saved_as_plain_ones():
    optimizer = ClippedSGD([one_weight()], clipping_set=np.array(["enc"])[0], clipping_action=np.array(["skip"])[0])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    group = torch.load(file, weights_only=True)["param_groups"][0]
    assert (group["clipping_set"], group["clipping_action"]) == ("enc", "skip")


def test_warm_up_of_a_threshold_of_ones_own_is_an_integer_that_its_memory_knows(table):
    @dataclass(frozen=True)
    class First(Constant):
        warm_up: int = 3

        def memory(self, blocks, window):
            return {"first": ((self.warm_up, blocks), torch.float64)}

    register_clipping("first", Clipping("global", First(1.0)))
    optimizer = ClippedSGD([one_weight()], clipping_type="first", clipping_warmup=5)
    assert optimizer.param_groups[0]["clipping_memory_first"].shape == (5, 1)
    step_with(optimizer, 2.0)
