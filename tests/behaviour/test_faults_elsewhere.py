"""What goes wrong in other implementations of clipping, each fault as a test."""

import math
import random
from itertools import cycle, product

import numpy as np
import pytest
import torch
from support.assertions import equal
from support.cases import LEVELS, pairwise, saved_and_loaded
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD

RANDOM = [name for name in LEVELS if "rand" in name]
IMPLEMENTATIONS = {
    "chosen": {},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "loop": {"foreach": False, "fused": False},
}
OPTIMIZERS = {
    "sgd": (ClippedSGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "adam": (ClippedAdam, torch.optim.Adam, {"lr": 0.05}),
    "adamw": (ClippedAdamW, torch.optim.AdamW, {"lr": 0.05}),
}


# The coefficient of the raw gradient applied to the momentum buffer.


def lengths_bounded_by_level(clipping_type, moves):
    if clipping_type == "layer_wise":
        return [move.double().norm().item() for move in moves]
    if clipping_type == "coord_wise":
        return [move.abs().max().item() for move in moves]
    return [torch.cat([move.double().flatten() for move in moves]).norm().item()]


@pytest.mark.parametrize(
    ("clipping_type", "implementation"),
    [*product(LEVELS, ["chosen"]), *product(["norm", "layer_wise", "coord_wise"], ["fused", "foreach", "loop"])],
)
def test_spike_moves_weights_no_further_than_its_bound(problem, clipping_type, implementation):
    lr, momentum, norm = 0.1, 0.9, 0.05
    params = problem.parameters()
    options = IMPLEMENTATIONS[implementation] | {"clipping_type": clipping_type}
    optimizer = ClippedSGD(params, lr=lr, momentum=momentum, **options)
    level = norm if "auto" in clipping_type else LEVELS[clipping_type]
    bound = lr * level / (1 - momentum)
    for step in range(40):
        before = problem.copies(params)
        problem.step(optimizer, problem.gradients(step, 1e6 if step == 20 else norm))
        moves = [p.detach() - b for p, b in zip(params, before, strict=True)]
        assert max(lengths_bounded_by_level(clipping_type, moves)) <= bound * (1 + 1e-5), f"step {step}"
        if step == 20:  # clipped, and not skipped
            assert max(lengths_bounded_by_level(clipping_type, moves)) > 0.1 * lr * level


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_spike_does_not_enter_momentum(problem, implementation):
    params = problem.parameters()
    optimizer = ClippedSGD(params, lr=0.1, momentum=0.9, clipping_level=0.5, **IMPLEMENTATIONS[implementation])
    problem.step(optimizer, problem.gradients(0, 1e6))
    buffers = [optimizer.state[p]["momentum_buffer"] for p in params]
    assert problem.length(buffers) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("optimizer_class", [ClippedAdam, ClippedAdamW])
def test_spike_does_not_enter_moments(problem, optimizer_class, implementation):
    params = problem.parameters()
    optimizer = optimizer_class(params, lr=0.1, clipping_level=0.5, **IMPLEMENTATIONS[implementation])
    problem.step(optimizer, problem.gradients(0, 1e6))
    assert problem.length([optimizer.state[p]["exp_avg"] for p in params]) == pytest.approx(0.1 * 0.5, rel=1e-5)
    second = sum(optimizer.state[p]["exp_avg_sq"].double().sum().item() for p in params)
    assert second == pytest.approx(0.001 * 0.5**2, rel=1e-5)


# "Global" norm taken per parameter group.


def test_global_norm_is_of_whole_model_over_groups_of_different_weight_decay():
    decayed, plain = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [{"params": [decayed], "weight_decay": 0.1}, {"params": [plain], "weight_decay": 0.0, "lr": 0.5}]
    optimizer = ClippedSGD(groups, lr=1.0, clipping_level=1.0)
    decayed.grad, plain.grad = torch.tensor([3.0]), torch.tensor([4.0])
    optimizer.step()
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(5.0)
    assert (decayed.grad.item(), plain.grad.item()) == pytest.approx((0.6, 0.8))
    assert (decayed.item(), plain.item()) == pytest.approx((-0.6, -0.4))


def test_past_norms_are_of_whole_model_over_groups_of_different_weight_decay():
    decayed, plain = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [{"params": [decayed], "weight_decay": 0.1}, {"params": [plain]}]
    optimizer = ClippedSGD(groups, lr=0.0, clipping_type="auto", clipping_level=0.5)
    for factor in (1.0, 2.0, 3.0):
        decayed.grad, plain.grad = torch.tensor([3.0 * factor]), torch.tensor([4.0 * factor])
        optimizer.step()
    assert optimizer.grad_norms().tolist() == pytest.approx([5.0, 10.0, 15.0])
    assert (decayed.grad.item(), plain.grad.item()) == pytest.approx((6.0, 8.0))


# One random draw per tensor, and draws from the global random state.


@pytest.mark.parametrize("clipping_type", RANDOM)
def test_one_draw_per_step_keeps_direction(problem, clipping_type):
    params = problem.parameters(torch.float64)
    groups = [{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:]}]
    optimizer = ClippedSGD(groups, clipping_type=clipping_type, clipping_beta=0.5, clipping_seed=5)
    clipped_steps = 0
    for step in range(60):
        grads = problem.gradients(step, dtype=torch.float64)
        ratios = torch.cat([(a / b).flatten() for a, b in zip(problem.step(optimizer, grads), grads, strict=True)])
        assert ratios.max() - ratios.min() < 1e-6
        clipped_steps += ratios[0].item() < 1 - 1e-6
    assert 0 < clipped_steps < 60
    assert optimizer.clipping_stats()["clipped_steps"] == clipped_steps


@pytest.mark.parametrize("clipping_type", LEVELS)
def test_global_random_states_are_left_alone(problem, clipping_type):
    torch.manual_seed(0)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    optimizer = ClippedSGD(problem.parameters(), clipping_type=clipping_type)
    for step in range(10):
        problem.step(optimizer, problem.gradients(step))
    optimizer.clipping_stats()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[1], strict=True))
    assert random.getstate() == states[2]


@pytest.mark.parametrize("clipping_type", RANDOM)
def test_draws_do_not_depend_on_global_random_state(problem, clipping_type):
    def decisions(seed):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        optimizer = ClippedSGD(problem.parameters(), clipping_type=clipping_type, clipping_beta=0.5)
        return [problem.length(problem.step(optimizer, problem.gradients(i, 3.0 - 1e-2 * i))) for i in range(40)]

    assert decisions(1) == decisions(2)


# An int level silently replaced by a default; a default that never clips; a swallowed typo.


@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise", "coord_wise"])
def test_int_level_means_what_it_says(clipping_type):
    for level in (1, 2):
        param = torch.nn.Parameter(torch.zeros(1))
        optimizer = ClippedSGD([param], lr=1.0, clipping_type=clipping_type, clipping_level=level)
        param.grad = torch.tensor([50.0])
        optimizer.step()
        assert (param.grad.item(), param.item()) == pytest.approx((level, -level))
        assert optimizer.param_groups[0]["clipping_level"] == level


def test_int_level_of_quantile_is_the_largest_norm():
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = ClippedSGD([param], clipping_type="auto", clipping_level=1)
    for norm in (5.0, 1.0, 7.0):
        param.grad = torch.tensor([norm])
        optimizer.step()
        assert param.grad.item() == norm
    assert optimizer.clipping_stats()["threshold"] == 7.0


@pytest.mark.parametrize(("clipping_type", "level"), LEVELS.items())
def test_default_level_is_the_documented_one_and_clips(problem, clipping_type, level):
    optimizer = ClippedSGD(problem.parameters(), clipping_type=clipping_type)
    assert optimizer.param_groups[0]["clipping_level"] == level
    for step in range(20):
        problem.step(optimizer, problem.gradients(step, 1.5 + step))
    assert optimizer.clipping_stats()["clipped_steps"] > 0


def test_default_type_is_norm_of_level_one(problem):
    optimizer = ClippedSGD(problem.parameters())
    assert problem.length(problem.step(optimizer, problem.gradients(0, 9.0))) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("typo", ["cliping_level", "clip_level", "clipping_levels", "clippingtype", "level"])
def test_typo_in_argument_name_raises(problem, typo):
    with pytest.raises(TypeError, match=typo):
        ClippedSGD(problem.parameters(), lr=0.1, **{typo: 1.0})


# A percentile that is none; a history that grows for ever, or is missing from the checkpoint.


def test_quantile_is_right_on_rising_stream():
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = ClippedSGD([param], clipping_type="auto", clipping_level=0.75)
    for last in range(1, 60):
        param.grad = torch.tensor([float(last)])
        optimizer.step()
        wanted = np.percentile(np.arange(1, last + 1), 75)
        assert optimizer.clipping_stats()["threshold"] == pytest.approx(wanted, rel=1e-6)
        assert param.grad.item() == pytest.approx(min(last, wanted), rel=1e-6)


def elements(state_dict):
    def count(value):
        if isinstance(value, torch.Tensor):
            return value.numel()
        if isinstance(value, dict):
            return sum(map(count, value.values()))
        return sum(map(count, value)) if isinstance(value, list | tuple) else 1

    return count(state_dict)


@pytest.mark.parametrize("clipping_type", LEVELS)
def test_history_does_not_grow(problem, clipping_type):
    optimizer = ClippedSGD(problem.parameters(), clipping_type=clipping_type, clipping_window=5)
    problem.step(optimizer, problem.gradients(0))
    at_first = elements(optimizer.state_dict())
    for step in range(1, 17):
        problem.step(optimizer, problem.gradients(step))
        assert len(optimizer.grad_norms()) <= 5
    assert elements(optimizer.state_dict()) == at_first


@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise", "auto", "linear_rand_auto"])
def test_history_is_in_state_dict(problem, clipping_type):
    def new():
        return ClippedSGD(problem.parameters(), clipping_type=clipping_type, clipping_window=5)

    optimizer, fresh = new(), new()
    for step in range(8):
        problem.step(optimizer, problem.gradients(step))
    fresh.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert len(fresh.grad_norms()) == 5
    assert torch.equal(fresh.grad_norms(), optimizer.grad_norms())
    assert fresh.clipping_stats() == pytest.approx(optimizer.clipping_stats(), nan_ok=True, rel=0, abs=0)


# A statistic of one sample that is not a number.


@pytest.mark.parametrize("clipping_type", ["auto", "linear_rand_auto", "quadratic_rand_auto"])
def test_first_step_with_memory_is_finite_and_not_clipped(problem, clipping_type):
    params = problem.parameters()
    optimizer = ClippedSGD(params, clipping_type=clipping_type)
    grads = problem.gradients(0, 4.0)
    assert equal(problem.step(optimizer, grads), grads)
    assert optimizer.clipping_stats()["threshold"] == pytest.approx(4.0, rel=1e-6)
    assert all(p.isfinite().all() for p in params)


# Clipping before the closure runs.


@pytest.mark.parametrize(
    ("clipping_type", "call"),
    [("norm", "positional"), ("norm", "keyword"), ("layer_wise", "positional"), ("coord_wise", "keyword")],
)
def test_gradients_of_closure_are_clipped(clipping_type, call):
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = ClippedSGD([param], lr=0.1, momentum=0.9, clipping_type=clipping_type, clipping_level=0.5)
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = 1000 * param.sum()
        loss.backward()
        calls.append(loss)
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure) if call == "positional" else optimizer.step(closure=closure)
    assert len(calls) == 1
    assert loss is calls[0]
    assert param.grad.item() == pytest.approx(0.5)
    assert param.item() == pytest.approx(-0.05)


def test_closure_of_unclipped_optimizer_runs_once():
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = ClippedSGD([param], lr=0.1, clipping_type="none")
    calls = []

    def closure():
        calls.append(1)
        param.grad = torch.tensor([1000.0])
        return 3.0

    assert optimizer.step(closure) == 3.0
    assert len(calls) == 1
    assert param.item() == pytest.approx(-100.0)


# Zero-initialised tensors that never train.


@pytest.mark.parametrize("clipping_type", LEVELS)
def test_zero_initialised_tensors_train(clipping_type):
    param = torch.nn.Parameter(torch.zeros(3))
    optimizer = ClippedSGD([param], lr=0.1, clipping_type=clipping_type)
    for _ in range(3):
        param.grad = torch.tensor([10.0, -10.0, 10.0])
        optimizer.step()
    assert (param.abs() > 1e-3).all()


# A plain torch checkpoint that cannot be loaded; history lost on resume.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_plain_torch_checkpoint_loads(problem, name):
    clipped_class, plain_class, options = OPTIMIZERS[name]
    plain_params = problem.parameters()
    plain = plain_class(plain_params, **options)
    for step in range(3):
        problem.step(plain, problem.gradients(step))
    params = problem.copies(plain_params)
    arguments = {"clipping_type": "layer_wise", "clipping_level": 1e9, "clipping_window": 7, "clipping_seed": 3}
    optimizer = clipped_class(params, **(options | {"lr": 9.0}), **arguments)
    optimizer.load_state_dict(saved_and_loaded(plain.state_dict()))
    group = optimizer.param_groups[0]
    assert {key: group[key] for key in arguments} == arguments
    assert group["lr"] == options["lr"]
    for step in range(3, 6):
        problem.step(plain, problem.gradients(step))
        problem.step(optimizer, problem.gradients(step))
    for p, wanted in zip(params, plain_params, strict=True):
        torch.testing.assert_close(p, wanted.detach(), rtol=1e-5, atol=1e-6)
    group["clipping_level"] = 0.5
    assert max(g.norm() for g in problem.step(optimizer, problem.gradients(9, 1e3))) <= 0.5 * (1 + 1e-5)


def test_plain_torch_checkpoint_keeps_clipping_arguments_of_each_group(problem):
    params = problem.parameters()
    plain = torch.optim.SGD([{"params": params[:2]}, {"params": params[2:], "lr": 0.2}], lr=0.1, momentum=0.9)
    problem.step(plain, problem.gradients(0))
    groups = [{"params": params[:2], "clipping_type": "auto"}, {"params": params[2:], "clipping_level": 5.0}]
    optimizer = ClippedSGD(groups, clipping_type="layer_wise", clipping_level=2.0)
    optimizer.load_state_dict(saved_and_loaded(plain.state_dict()))
    kept = [(g["clipping_type"], g["clipping_level"], g["lr"]) for g in optimizer.param_groups]
    assert kept == [("auto", 0.75, 0.1), ("layer_wise", 5.0, 0.2)]
    problem.step(optimizer, problem.gradients(1))
    assert optimizer.clipping_stats()["steps"] == 1


@pytest.mark.parametrize(("name", "clipping_type"), [*zip(cycle(OPTIMIZERS), ["none", *LEVELS])])
def test_clipped_checkpoint_loads_into_torch_optimizer(problem, name, clipping_type):
    clipped_class, plain_class, options = OPTIMIZERS[name]
    clipped_params = problem.parameters()
    optimizer = clipped_class(clipped_params, **options, clipping_type=clipping_type)
    for step in range(3):
        problem.step(optimizer, problem.gradients(step))
    params = [torch.nn.Parameter(p) for p in problem.copies(clipped_params)]
    plain = plain_class(params, **(options | {"lr": 9.0}))
    plain.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    for step in range(3, 6):
        clipped_grads = problem.step(optimizer, problem.gradients(step))
        problem.step(plain, clipped_grads)
    for p, wanted in zip(params, clipped_params, strict=True):
        torch.testing.assert_close(p, wanted, rtol=1e-5, atol=1e-6)


@pairwise(name=OPTIMIZERS, clipping_type=["none", *LEVELS], implementation=["chosen", "foreach"])
def test_resumed_run_is_the_unbroken_one_bit_for_bit(problem, name, clipping_type, implementation):
    clipped_class, _, options = OPTIMIZERS[name]
    arguments = {"clipping_type": clipping_type, "clipping_window": 6, "clipping_beta": 0.5, "clipping_seed": 11}
    arguments |= options | IMPLEMENTATIONS[implementation]
    params = problem.parameters()
    optimizer = clipped_class(params, **arguments)
    for step in range(9):
        problem.step(optimizer, problem.gradients(step))
    resumed_params = [torch.nn.Parameter(p) for p in problem.copies(params)]
    resumed = clipped_class(resumed_params, **arguments)
    resumed.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    for step in range(9, 30):
        wanted = problem.step(optimizer, problem.gradients(step))
        assert equal(problem.step(resumed, problem.gradients(step)), wanted)
        assert equal(resumed_params, params)
    assert torch.equal(resumed.grad_norms(), optimizer.grad_norms())
    assert resumed.clipping_stats() == pytest.approx(optimizer.clipping_stats(), nan_ok=True, rel=0, abs=0)


def test_loading_does_not_tie_two_optimizers_together(problem):
    def new():
        return ClippedSGD(problem.parameters(), clipping_type="auto", clipping_window=6)

    optimizer, other = new(), new()
    for step in range(4):
        problem.step(optimizer, problem.gradients(step))
    other.load_state_dict(optimizer.state_dict())
    norms = optimizer.grad_norms().tolist()
    problem.step(other, problem.gradients(9))
    assert optimizer.grad_norms().tolist() == norms
    assert len(other.grad_norms()) == 5


# fused=True under GradScaler: scaled gradients reach the clipper.


def scaled_run(problem, clipped_class, clipping_type, implementation, *, unscale=False, overflow_at=None):
    params = problem.parameters()
    arguments = {"clipping_type": clipping_type, "clipping_window": 4, **IMPLEMENTATIONS[implementation]}
    if clipped_class is ClippedSGD:
        arguments["momentum"] = 0.9
    optimizer = clipped_class(params, lr=0.05, **arguments)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    lengths = []
    for step in range(10):
        grads = problem.gradients(step)
        if step == overflow_at:
            grads[0].view(-1)[1] = math.inf
        problem.scaled_step(scaler, optimizer, grads, unscale=unscale)
        if step != overflow_at:
            lengths.append(problem.length([p.grad for p in params]))
    return torch.cat([p.detach().flatten() for p in params]), optimizer.clipping_stats(), optimizer.grad_norms(), lengths


FLOWS = {
    "fused": {"implementation": "fused"},
    "fused, unscaled by hand": {"implementation": "fused", "unscale": True},
    "chosen": {"implementation": "chosen"},
    "chosen, unscaled by hand": {"implementation": "chosen", "unscale": True},
    "foreach": {"implementation": "foreach"},
}


@pairwise(clipped_class=[ClippedSGD, ClippedAdamW], clipping_type=LEVELS, flow=FLOWS, overflow_at=[None, 0, 5])
def test_grad_scaler_gives_the_result_of_the_unfused_flow(problem, clipped_class, clipping_type, flow, overflow_at):
    wanted = scaled_run(problem, clipped_class, clipping_type, "loop", overflow_at=overflow_at)
    weights, stats, norms, lengths = scaled_run(problem, clipped_class, clipping_type, **FLOWS[flow], overflow_at=overflow_at)
    torch.testing.assert_close(weights, wanted[0], rtol=1e-5, atol=1e-6)
    keys = set(stats) - {"skipped_steps"}  # the scaler does not call the step of an unfused optimizer
    assert {k: stats[k] for k in keys} == pytest.approx({k: wanted[1][k] for k in keys}, rel=1e-5, nan_ok=True)
    torch.testing.assert_close(norms, wanted[2], rtol=1e-5, atol=0)
    assert lengths == pytest.approx(wanted[3], rel=1e-5)


def test_threshold_under_grad_scaler_is_of_true_gradient(problem):
    *_, lengths = scaled_run(problem, ClippedSGD, "norm", "fused")
    true_lengths = [problem.length(problem.gradients(step)) for step in range(10)]
    assert lengths == pytest.approx([min(1.0, length) for length in true_lengths], rel=1e-5)


# Faults of fused kernels that the clipper must not pass on.


@pytest.mark.parametrize("dampening", [0, 0.5])
@pytest.mark.parametrize("implementation", ["chosen", "fused", "foreach"])
def test_parameter_whose_first_gradient_comes_late_steps_with_the_others(problem, implementation, dampening):
    def run(**options):
        params = problem.parameters()
        optimizer = ClippedSGD(params, lr=0.1, momentum=0.9, dampening=dampening, weight_decay=0.1, **options)
        for step in range(4):
            grads = problem.gradients(step)
            problem.step(optimizer, grads if step > 1 else [None, *grads[1:]])
        return params

    for p, wanted in zip(run(**IMPLEMENTATIONS[implementation]), run(**IMPLEMENTATIONS["loop"]), strict=True):
        torch.testing.assert_close(p, wanted)


# Step hooks that run twice.


@pytest.mark.parametrize("clipping_type", ["none", "norm", "auto"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_step_hooks_run_once(problem, name, clipping_type):
    clipped_class, plain_class, options = OPTIMIZERS[name]
    plain_class(problem.parameters(), **options)
    optimizer = clipped_class(problem.parameters(), **options, clipping_type=clipping_type)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    problem.step(optimizer, problem.gradients(0))
    plain = plain_class(problem.parameters(), **options)
    problem.step(plain, problem.gradients(0))
    problem.step(optimizer, problem.gradients(1))
    assert calls == ["before", "after"] * 2


def test_global_step_hooks_run_once(problem):
    torch.optim.SGD(problem.parameters())
    optimizer = ClippedSGD(problem.parameters())
    calls = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("before")),
        register_optimizer_step_post_hook(lambda *_: calls.append("after")),
    ]
    try:
        problem.step(optimizer, problem.gradients(0))
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["before", "after"]


def test_pre_hook_sees_raw_and_post_hook_sees_clipped_gradient(problem):
    params = problem.parameters()
    optimizer = ClippedSGD(params)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(problem.length([p.grad for p in params])))
    optimizer.register_step_post_hook(lambda *_: seen.append(problem.length([p.grad for p in params])))
    problem.step(optimizer, problem.gradients(0, 30.0))
    assert seen == pytest.approx([30.0, 1.0], rel=1e-5)


def test_hooks_of_plain_optimizer_still_run(problem):
    optimizer = torch.optim.SGD(problem.parameters(), lr=0.1)
    ClippedSGD(problem.parameters())
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    grads = problem.gradients(0, 1e3)
    assert equal(problem.step(optimizer, grads), grads)
    assert calls == ["after"]


# print left in a hot path.


@pytest.mark.parametrize("clipping_type", ["none", *LEVELS])
def test_nothing_is_printed(problem, clipping_type, capsys, caplog):
    optimizer = ClippedSGD(problem.parameters(), momentum=0.9, clipping_type=clipping_type, nonfinite="zero")
    for step in range(5):
        problem.step(optimizer, problem.gradients(step))
    problem.step(optimizer, [torch.full_like(g, math.nan) for g in problem.gradients(0)])
    optimizer.clipping_stats()
    optimizer.clipping_stats(per_set=True)
    optimizer.grad_norms()
    optimizer.load_state_dict(optimizer.state_dict())
    assert tuple(capsys.readouterr()) == ("", "")
    assert not caplog.records
