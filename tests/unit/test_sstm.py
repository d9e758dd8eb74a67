"""ClippedSSTM against the slow oracle, and as an optimizer among others."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from support.cases import pairwise
from support.sstm_reference import ReferenceSSTM, clip_coordinates, clip_layers, clip_norm, clip_randomly
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import torch_clipped
from torch_clipped import ClippedSSTM, LevelScheduler, Restarter, estimate_lipschitz
from torch_clipped.clipping import CLIPPING_TYPES
from torch_clipped.decisions import uniform
from torch_clipped.thresholds import Constant

SHAPES = [(3, 4), (5,), ()]
CLIPPERS = {
    "none": lambda vectors, threshold, step: vectors,
    "norm": lambda vectors, threshold, step: clip_norm(vectors, threshold),
    "layer_wise": lambda vectors, threshold, step: clip_layers(vectors, threshold),
    "coord_wise": lambda vectors, threshold, step: clip_coordinates(vectors, threshold),
    "linear_rand_norm": lambda vectors, threshold, step: clip_randomly(vectors, threshold, 1, 0.6, uniform(3, 0, step)),
    "quadratic_rand_norm": lambda vectors, threshold, step: clip_randomly(vectors, threshold, 2, 0.6, uniform(3, 0, step)),
}
DATA_TYPES = [name for name, rule in CLIPPING_TYPES.items() if rule is not None and not isinstance(rule.threshold, Constant)]


def start(dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def noise(step):
    generator = torch.Generator().manual_seed(step)
    length = math.exp(1.5 * torch.randn((), generator=generator).item())
    return [length * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def set_gradients(params, step, quadratic=False):
    for p, g in zip(params, noise(step), strict=False):
        p.grad = (g + p.detach() if quadratic else g).to(p.dtype)


def flat(tensors):
    return [t.detach().double().flatten().tolist() for t in tensors]


def assert_equal(tensors, wanted, tolerance=1e-11):
    for have, want in zip(flat(tensors), wanted, strict=True):
        assert have == pytest.approx(want, rel=tolerance, abs=tolerance)


def run(optimizer, params, steps):
    for step in steps:
        set_gradients(params, step)
        optimizer.step()


def test_every_constant_threshold_has_an_oracle():
    constant = {name for name, rule in CLIPPING_TYPES.items() if rule is None or isinstance(rule.threshold, Constant)}
    assert constant == set(CLIPPERS)


@pairwise(clipping_type=CLIPPERS, exponents=[(1, 1.0), (0.5, 1.0), (0, 1.0), (1, 0.8), (0.3, 0.5)], quadratic=[False, True])
def test_iterates_and_clipped_gradients_are_the_oracles(clipping_type, exponents, quadratic):
    nu, ratio = exponents
    params, level = start(), {"none": None, "coord_wise": 0.5}.get(clipping_type, 2.0)
    arguments = {"clipping_type": clipping_type, "clipping_level": level, "clipping_beta": 0.6, "clipping_seed": 3}
    optimizer = ClippedSSTM(params, 0.3, 2.0, nu, ratio, **arguments)
    oracles = [ReferenceSSTM(values, 0.3, 2.0, nu, ratio) for values in flat(params)]
    for step in range(60):
        assert_equal(params, [oracle.x for oracle in oracles])
        set_gradients(params, step, quadratic)
        threshold = math.inf if level is None else oracles[0].threshold(level)
        wanted = CLIPPERS[clipping_type](flat([p.grad for p in params]), threshold, step)
        optimizer.step()
        assert_equal([p.grad for p in params], wanted)
        for oracle, gradient in zip(oracles, wanted, strict=True):
            oracle.step(gradient)
    optimizer.eval()
    assert_equal(params, [oracle.y for oracle in oracles])
    optimizer.train()
    assert_equal(params, [oracle.x for oracle in oracles])
    assert level is None or 0 < optimizer.clipping_stats()["clipped_steps"] < 60


@pytest.mark.parametrize("clipping_type", DATA_TYPES)
def test_thresholds_from_data_stay_what_the_data_say(clipping_type):
    """The gradients handed in do not depend on the weights, and the ratio to the weights is taken at the same x."""
    params = start()
    optimizer = ClippedSSTM(params, 0.3, 2.0, clipping_type=clipping_type)
    for step in range(130):
        set_gradients(params, step)
        twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
        if step == 0:
            other = torch_clipped.ClippedSGD(twins, lr=0.0, clipping_type=clipping_type)
            followed = twins
        for p, twin in zip(params, followed, strict=True):
            twin.data.copy_(p.detach())
            twin.grad = p.grad.clone()
        optimizer.step()
        other.step()
        for p, twin in zip(params, followed, strict=True):
            torch.testing.assert_close(p.grad, twin.grad, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["norm", "none"])
def test_quadratic_converges_much_faster_than_one_over_k(name):
    """The theory: f(y_k) <= 4 L R^2 / k^2 without noise, for a = 1; here R^2 = 100 * 4 / 2."""
    weight = torch.nn.Parameter(torch.full((100,), 2.0, dtype=torch.float64))
    level = None if name == "none" else 1.0
    optimizer = ClippedSSTM([weight], lr=1.0, L=1.0, clipping_type=name, clipping_level=level)
    for _ in range(200):
        weight.grad = weight.detach().clone()
        optimizer.step()
    optimizer.eval()
    assert weight.square().sum() / 2 < 4 * 400 / 200**2


def test_groups_have_their_own_step_sizes_and_the_largest_sets_the_threshold():
    params = start()
    groups = [{"params": params[:2], "lr": 0.1}, {"params": params[2:], "L": 0.5, "nu": 0.5, "a_k_ratio_upper_bound": 0.7}]
    optimizer = ClippedSSTM(groups, 0.3, 2.0, clipping_level=0.7)
    options = [(0.1, 2.0, 1, 1.0), (0.1, 2.0, 1, 1.0), (0.3, 0.5, 0.5, 0.7)]
    oracles = [ReferenceSSTM(values, *option) for values, option in zip(flat(params), options, strict=True)]
    for step in range(40):
        set_gradients(params, step)
        wanted = clip_norm(flat([p.grad for p in params]), min(oracle.threshold(0.7) for oracle in oracles))
        optimizer.step()
        for oracle, gradient in zip(oracles, wanted, strict=True):
            oracle.step(gradient)
        assert_equal(params, [oracle.x for oracle in oracles])
    assert len(optimizer.clipping_stats(per_set=True)) == 1
    assert 0 < optimizer.clipping_stats()["clipped_steps"] < 40


def test_sets_whose_divided_levels_are_equal_stay_two():
    params = start()
    groups = [{"params": params[:1], "clipping_level": 1.0}, {"params": params[1:], "lr": 0.6, "clipping_level": 2.0}]
    optimizer = ClippedSSTM(groups, 0.3, 2.0)
    set_gradients(params, 0)
    lengths = [optimizer_length(params[:1]), optimizer_length(params[1:])]
    optimizer.step()
    assert [stats["grad_norm"] for stats in optimizer.clipping_stats(per_set=True)] == pytest.approx(lengths)


def optimizer_length(params):
    return torch.cat([p.grad.flatten() for p in params]).norm().item()


def test_parameters_without_gradient_stand_still_and_count_their_own_iterations():
    params = start()
    optimizer = ClippedSSTM(params, 0.3, 2.0, clipping_level=0.7)
    oracles = [ReferenceSSTM(values, 0.3, 2.0) for values in flat(params)]
    for step in range(30):
        set_gradients(params, step)
        present = [step >= 10, step % 3 != 1, True]  # the first one comes late, the second one now and then
        for p, here in zip(params, present, strict=True):
            p.grad = p.grad if here else None
        gradients = flat([p.grad for p in params if p.grad is not None])
        wanted = clip_norm(gradients, min(oracle.threshold(0.7) for oracle in oracles))
        optimizer.step()
        moved = [oracle for oracle, here in zip(oracles, present, strict=True) if here]
        for oracle, gradient in zip(moved, wanted, strict=True):
            oracle.step(gradient)
        assert_equal(params, [oracle.x for oracle in oracles])
    assert [optimizer.state[p]["step"] for p in params] == [20, 20, 30]


@pytest.mark.parametrize("clipping_type", ["norm", "auto", "quadratic_rand_norm"])
def test_clipping_starts_at_the_iteration_that_is_named(clipping_type):
    params = start()
    optimizer = ClippedSSTM(params, 0.3, 2.0, clipping_iter_start=4, clipping_type=clipping_type, clipping_level=1e-3)
    for step in range(8):
        set_gradients(params, 0)
        optimizer.param_groups[0]["clipping_beta"] = 1 - 1e-9
        optimizer.step()
        assert optimizer.clipping_stats()["clipped_steps"] == (0 if clipping_type == "auto" else max(0, step - 2))
    assert len(optimizer.grad_norms()) == 8


def test_parameter_without_gradient_does_not_put_off_the_start_of_clipping():
    params = start()
    optimizer = ClippedSSTM(params, 0.3, 2.0, clipping_iter_start=3, clipping_level=1e-3)
    for step in range(4):
        set_gradients(params, step)
        params[1].grad = None
        optimizer.step()
    assert optimizer.clipping_stats()["clipped_steps"] == 2


def test_group_that_is_added_in_eval_mode_waits_for_train_too():
    params = start()
    optimizer = ClippedSSTM(params[:1], 0.3, 2.0)
    run(optimizer, params[:1], [0])
    optimizer.eval()
    optimizer.add_param_group({"params": params[1:]})
    set_gradients(params, 1)
    with pytest.raises(RuntimeError, match=r"optimizer\.train\(\)"):
        optimizer.step()
    optimizer.train()
    optimizer.step()
    assert [optimizer.state[p]["step"] for p in params] == [2, 1, 1]


def test_quantiles_are_not_obeyed_before_clipping_starts():
    params = start()
    optimizer = ClippedSSTM(params, 0.3, 2.0, clipping_iter_start=20, clipping_type="auto", clipping_level=0.1)
    run(optimizer, params, range(19))
    assert optimizer.clipping_stats()["clipped_steps"] == 0
    run(optimizer, params, range(19, 30))
    assert optimizer.clipping_stats()["clipped_steps"] > 5


@pytest.mark.parametrize("lr", [0.3, 0.0])
@pytest.mark.parametrize("clipping_type", ["norm", "coord_wise", "quadratic_rand_norm", "auto"])
def test_resumed_run_is_the_unbroken_one_bit_for_bit(clipping_type, lr):
    def made():
        params = start(torch.float32)
        groups = [{"params": params[:1], "lr": 0.2}, {"params": params[1:]}]
        return params, ClippedSSTM(groups, lr, 2.0, 0.7, 0.9, 5, clipping_type=clipping_type, clipping_level=0.6)

    params, unbroken = made()
    run(unbroken, params, range(30))
    before, optimizer = made()
    run(optimizer, before, range(13))
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "weights": [p.detach() for p in before]}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    after, resumed = made()
    resumed.load_state_dict(saved["optimizer"])
    for p, weight in zip(after, saved["weights"], strict=True):
        p.data.copy_(weight)
    run(resumed, after, range(13, 30))
    unbroken.eval()
    resumed.eval()
    for p, q in zip(params, after, strict=True):
        assert torch.equal(p, q)
        assert torch.isfinite(q).all()
    assert resumed.clipping_stats() == pytest.approx(unbroken.clipping_stats(), nan_ok=True, rel=0, abs=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_alike(copied):
    params = start()
    optimizer = ClippedSSTM(params, 0.3, 2.0, clipping_iter_start=7)
    run(optimizer, params, range(5))
    twins, twin = copied((params, optimizer))
    run(optimizer, params, range(5, 15))
    run(twin, twins, range(5, 15))
    assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))


def test_eval_and_train_change_nothing_but_the_weights_and_step_refuses_in_between():
    params, twins = start(), start()
    optimizer, other = ClippedSSTM(params, 0.3, 2.0), ClippedSSTM(twins, 0.3, 2.0)
    for step in range(10):
        optimizer.eval()
        optimizer.eval()
        with pytest.raises(RuntimeError, match=r"optimizer\.train\(\)"):
            optimizer.step(lambda: pytest.fail("the closure was run"))
        optimizer.train()
        optimizer.train()
        for some, one in ((params, optimizer), (twins, other)):
            run(one, some, [step])
        assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))
    optimizer.eval()
    assert not any(torch.equal(p, q) for p, q in zip(params, twins, strict=True))


def test_validation_does_not_change_training_under_a_learning_rate_scheduler():
    def trained(validated):
        params = start()
        optimizer = ClippedSSTM(params, 0.3, 2.0)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.1)
        for step in range(8):
            set_gradients(params, step, quadratic=True)
            optimizer.step()
            scheduler.step()
            if validated:
                optimizer.eval()
                optimizer.train()
        return params

    assert all(torch.equal(p, q) for p, q in zip(trained(True), trained(False), strict=True))


def test_iteration_with_learning_rate_zero_leaves_the_answer_alone():
    params = start()
    optimizer = ClippedSSTM(params, 0.3, 2.0, a_k_ratio_upper_bound=0.8)
    run(optimizer, params, range(10))
    answers = [optimizer.state[p]["y"].clone() for p in params]
    optimizer.param_groups[0]["lr"] = 0.0
    run(optimizer, params, [10])
    for p, answer in zip(params, answers, strict=True):
        assert torch.equal(optimizer.state[p]["y"], answer)


def test_threshold_is_that_of_the_parameters_with_a_gradient():
    frozen, weight = torch.zeros(2), torch.zeros(2)
    optimizer = ClippedSSTM([{"params": [frozen], "lr": 1.0}, {"params": [weight]}], 0.01, 1.0, clipping_level=1.0)
    weight.grad = torch.tensor([30.0, 40.0])
    optimizer.step()
    assert optimizer.clipping_stats()["threshold"] == pytest.approx(200)
    assert weight.grad.tolist() == [30, 40]


def test_levels_stand_as_before_after_a_step_that_could_not_be_prepared():
    params = start()
    optimizer = ClippedSSTM([{"params": params[:1]}, {"params": params[1:], "clipping_level": 2.0}], 0.1, 1.0, clipping_level=1.0)
    set_gradients(params, 0)
    optimizer.param_groups[1]["L"] = 0
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    optimizer.param_groups[1]["L"] = 1.0
    optimizer.step()
    assert [stats["threshold"] for stats in optimizer.clipping_stats(per_set=True)] == pytest.approx([20, 40])


def test_skipped_step_does_not_advance_the_iteration():
    params, twins = start(), start()
    optimizer, other = ClippedSSTM(params, 0.3, 2.0), ClippedSSTM(twins, 0.3, 2.0)
    run(optimizer, params, range(3))
    run(other, twins, range(3))
    set_gradients(params, 3)
    params[1].grad[2] = math.inf
    with pytest.warns(torch_clipped.ClippingWarning, match="not finite"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))
    run(optimizer, params, range(4, 8))
    run(other, twins, range(4, 8))
    assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))


def test_closure_is_evaluated_once_with_gradients_and_clipped_after():
    weight = torch.nn.Parameter(torch.full((4,), 3.0))
    optimizer, calls = ClippedSSTM([weight], 0.5, 1.0, clipping_level=0.1), []

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        calls.append(optimizer.param_groups[0]["clipping_level"])
        return loss

    assert optimizer.step(closure).item() == 36
    assert calls == [0.1]
    assert weight.grad.norm().item() == pytest.approx(0.1 / 0.25)


def test_level_belongs_to_the_user_and_to_the_level_scheduler():
    params = start()
    optimizer = ClippedSSTM(params, 0.3, 2.0, clipping_level=9.0)
    scheduler = LevelScheduler(optimizer, lambda step: 1.0 + step)
    for step in range(5):
        set_gradients(params, step)
        optimizer.step()
        assert optimizer.param_groups[0]["clipping_level"] == 1.0 + step
        assert optimizer.clipping_stats()["threshold"] == pytest.approx((1.0 + step) / ((step + 1) * 0.3 / 4))
        scheduler.step()
    set_gradients(params, 5)
    params[0].grad[0, 0] = math.nan
    optimizer.param_groups[0]["nonfinite"] = "error"
    with pytest.raises(RuntimeError, match="not finite"):
        optimizer.step()
    assert optimizer.param_groups[0]["clipping_level"] == 6.0


def test_learning_rate_schedulers_scalers_and_hooks_drive_it():
    params = start(torch.float32)
    optimizer, counted = ClippedSSTM(params, 0.3, 2.0), []
    optimizer.register_step_post_hook(lambda *_: counted.append(1))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for _ in range(6):
        optimizer.zero_grad()
        scaler.scale(sum(p.square().sum() for p in params)).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    assert len(counted) == 6
    assert all(p.isfinite().all() for p in params)


def test_restart_begins_the_method_anew_from_the_mean():
    params, twins = start(), start()
    optimizer = ClippedSSTM(params, 0.3, 2.0)
    restarter = Restarter(optimizer, first_restart_steps_cnt=5)
    other, iterates = ClippedSSTM(twins, 0.3, 2.0), []
    for step in range(5):
        run(optimizer, params, [step])
        restarter.step()
        run(other, twins, [step])
        iterates.append([p.detach().clone() for p in twins])
    means = [torch.stack(one).mean(dim=0) for one in zip(*iterates, strict=True)]
    oracles = [ReferenceSSTM(values, 0.3, 2.0) for values in flat(means)]
    for step in range(5, 9):
        assert_equal(params, [oracle.x for oracle in oracles])
        set_gradients(params, step)
        wanted = clip_norm(flat([p.grad for p in params]), oracles[0].threshold(1.0))
        optimizer.step()
        restarter.step()
        for oracle, gradient in zip(oracles, wanted, strict=True):
            oracle.step(gradient)


def test_distributed_checkpoint_functions_carry_the_state(problem):
    model, twin = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    optimizer, other = ClippedSSTM(model.parameters(), 0.3, 2.0), ClippedSSTM(twin.parameters(), 0.3, 2.0)
    for step in range(4):
        problem.step(optimizer, problem.gradients(step, shapes=[(2, 3), (2,)]))
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    set_optimizer_state_dict(twin, other, copy.deepcopy(get_optimizer_state_dict(model, optimizer)))
    for step in range(4, 8):
        for one in (optimizer, other):
            problem.step(one, problem.gradients(step, shapes=[(2, 3), (2,)]))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_learning_rate_zero_from_the_start_leaves_the_weights_alone():
    params = start()
    before = flat(params)
    run(ClippedSSTM(params, 0.0, 2.0), params, range(3))
    assert_equal(params, before, 0)


def test_accelerator_path_takes_the_same_steps_as_the_host_path(request):
    params = start()
    run(ClippedSSTM(params, 0.3, 2.0, clipping_level=0.5), params, range(20))
    request.getfixturevalue("no_host")
    others = start()
    run(ClippedSSTM(others, 0.3, 2.0, clipping_level=0.5), others, range(20))
    assert_equal(others, flat(params))


def test_complex_parameters_step_like_their_real_and_imaginary_parts():
    generator = torch.Generator().manual_seed(0)
    pairs = torch.nn.Parameter(torch.randn(5, 2, generator=generator, dtype=torch.float64))
    numbers = torch.nn.Parameter(torch.view_as_complex(pairs.detach().clone()))
    optimizers = [ClippedSSTM([p], 0.3, 2.0, clipping_level=0.5) for p in (pairs, numbers)]
    for _ in range(20):
        pairs.grad = torch.randn(5, 2, generator=generator, dtype=torch.float64)
        numbers.grad = torch.view_as_complex(pairs.grad.clone())
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(torch.view_as_real(numbers.detach()), pairs.detach())


def test_half_precision_and_sparse_gradients_are_refused_before_anything_moves():
    for p, grad in (
        (torch.zeros(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16)),
        (torch.zeros(3), torch.tensor([0.0, 2.0, 0.0]).to_sparse()),
    ):
        other = torch.zeros(2)
        other.grad, p.grad = torch.full((2,), 100.0), grad
        optimizer = ClippedSSTM([other, p], 0.3, 2.0)
        with pytest.raises(TypeError, match=r"bfloat16|sparse"):
            optimizer.step()
        assert other.tolist() == [0, 0]
        assert other.grad.tolist() == [100, 100]
        assert optimizer.clipping_stats()["steps"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "lr must be a number at least 0 and finite, got -1.0"),
        ({"lr": True}, "lr must be a number"),
        ({"lr": math.inf}, "lr must be"),
        ({"L": 0}, "L must be a number positive and finite, got 0"),
        ({"L": math.nan}, "L must be"),
        ({"nu": 1.5}, "nu must be a number from 0 to 1, got 1.5"),
        ({"a_k_ratio_upper_bound": 0.0}, "a_k_ratio_upper_bound must be a number over 0 and at most 1, got 0.0"),
        ({"clipping_iter_start": 0}, "clipping_iter_start must be an integer >= 1, got 0"),
        ({"clipping_iter_start": 2.0}, "clipping_iter_start must be an integer"),
        ({"clipping_type": "nrom"}, "did you mean 'norm'"),
    ],
)
def test_nonsense_is_refused_with_its_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClippedSSTM([torch.zeros(2)], **{"lr": 0.1, "L": 1.0, **arguments})
    if "clipping_iter_start" not in arguments:
        optimizer = ClippedSSTM([torch.zeros(2)], lr=0.1, L=1.0)
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group({"params": [torch.zeros(1)], **arguments})
        assert len(optimizer.param_groups) == 1


def test_signature_shows_all_arguments():
    text = str(ClippedSSTM.__signature__)
    assert text.startswith("(params")
    for name in ("lr", "L", "nu", "a_k_ratio_upper_bound", "clipping_iter_start", "clipping_type", "clipping_seed"):
        assert name in text


def test_lipschitz_constant_of_least_squares_is_the_largest_eigenvalue():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    model = torch.nn.Linear(4, 1, bias=False, dtype=torch.float64)
    state = torch.random.get_rng_state()
    batches = [(inputs[:50], torch.zeros(50, 1)), (inputs[50:], torch.zeros(10, 1))]
    estimate = estimate_lipschitz(model, torch.nn.functional.mse_loss, [(x, y.double()) for x, y in batches])
    assert estimate == pytest.approx(np.linalg.eigvalsh((2 * inputs.T @ inputs / 60).numpy())[-1], rel=1e-5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.weight.grad is None


@pytest.mark.parametrize("seed", [38, 111, None])
def test_lipschitz_constant_is_found_where_the_length_of_products_stands_still_at_first(seed):
    if seed is None:  # many equal curvatures and one larger one
        scales = torch.ones(1000, dtype=torch.float64)
        scales[500] = 2
        inputs = scales.sqrt().diag() * 1000**0.5
    else:
        generator = np.random.default_rng(seed)
        size = generator.integers(1, 60)
        inputs = torch.from_numpy(generator.standard_normal((200, size)) * generator.exponential(size=size) ** 2)
    model = torch.nn.Linear(inputs.shape[1], 1, bias=False, dtype=torch.float64)
    batches = [(inputs, inputs.new_zeros(len(inputs), 1))]
    largest = np.linalg.eigvalsh((2 * inputs.T @ inputs / len(inputs)).numpy())[-1]
    assert estimate_lipschitz(model, torch.nn.functional.mse_loss, batches) == pytest.approx(largest, rel=1e-5)


def test_lipschitz_constant_counts_negative_curvature_and_frozen_weights():
    class Bent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.frozen = torch.nn.Parameter(torch.tensor([1.0, 1.0])), torch.nn.Parameter(torch.ones(1), False)

        def forward(self, inputs):
            return (inputs * self.w**2).sum() + 100 * self.frozen**2

    batches = [(torch.tensor([0.5, -4.0]), torch.zeros(1))]
    assert estimate_lipschitz(Bent(), lambda out, _: out.sum(), batches) == pytest.approx(8, rel=1e-2)
    assert estimate_lipschitz(torch.nn.Linear(2, 1), lambda out, _: out.sum(), [(torch.ones(3, 2), torch.ones(3))]) == 0


def test_lipschitz_constant_needs_data_weights_and_a_finite_loss():
    batches, loss = [(torch.ones(1, 2), torch.ones(1, 1))], torch.nn.functional.mse_loss
    model = torch.nn.Linear(2, 1)
    with pytest.raises(ValueError, match="loader must give at least one batch"):
        estimate_lipschitz(model, loss, iter([]))
    with pytest.raises(ValueError, match="model must have parameters"):
        estimate_lipschitz(torch.nn.ReLU(), loss, batches)
    with pytest.raises(ValueError, match="Hessian of the loss must be finite"):
        estimate_lipschitz(model, lambda out, _: out.sum() ** 2 * math.inf, batches)
