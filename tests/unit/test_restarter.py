"""Restarts from the average of the iterates: the same objects, an optimizer as new, and one copy of the weights."""

import copy
import gc
import math

import pytest
import torch
from support.assertions import equal, live_tensors
from support.cases import pairwise, saved_and_loaded
from torch import nn, optim

from torch_clipped import Clipped, ClippedAdam, ClippedSGD, Restarter, clip_optimizer
from torch_clipped.optimizers_collector import OptimizerProperties
from torch_clipped.optimizers_collector import RestartProperties as Windows

OPTIMIZERS = {
    "SGD": (optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "SGD-dampening": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    "SGD-nesterov": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "SGD-fused": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "fused": True}),
    "Adam": (optim.Adam, {"lr": 0.1}),
    "AdamW-amsgrad": (optim.AdamW, {"lr": 0.1, "amsgrad": True}),
    "NAdam": (optim.NAdam, {"lr": 0.1}),
    "RAdam": (optim.RAdam, {"lr": 0.1}),
    "RMSprop": (optim.RMSprop, {"lr": 0.1, "momentum": 0.9, "centered": True}),
    "Adagrad": (optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.5}),
    "Adagrad-fused": (optim.Adagrad, {"lr": 0.1, "fused": True}),
    "Adadelta": (optim.Adadelta, {"lr": 0.1}),
    "Adamax": (optim.Adamax, {"lr": 0.1}),
    "ASGD": (optim.ASGD, {"lr": 0.1, "t0": 1}),
    "Rprop": (optim.Rprop, {"lr": 0.1}),
    "Adafactor": (optim.Adafactor, {"lr": 0.1}),
    "LBFGS": (optim.LBFGS, {"lr": 0.1}),
    "ClippedSGD": (ClippedSGD, {"lr": 0.1, "momentum": 0.9, "clipping_type": "linear_rand_auto"}),
    "ClippedAdam": (ClippedAdam, {"lr": 0.1, "clipping_type": "layer_wise_auto", "fused": True}),
}


def stepped(optimizer, grads):
    """One step with these gradients, handed over by a closure, which LBFGS needs."""
    params = [p for group in optimizer.param_groups for p in group["params"]]

    def closure():
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else g.clone()
        return torch.zeros(())

    optimizer.step(closure)
    optimizer.zero_grad()


def train(problem, optimizer, restarter, steps, dtype=torch.float32):
    """Steps with reproducible gradients; the iterates."""
    iterates = []
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        stepped(optimizer, problem.gradients(step, dtype=dtype))
        iterates.append(problem.copies(params))
        restarter.step()
    return iterates


# the schedule of windows


@pytest.mark.parametrize(
    ("first", "coeff", "longest", "at"),
    [
        (4, 1.5, 9, [4, 10, 19]),  # windows of 4, 6, 9; 13 is too long
        (1, 1.25, 2, list(range(1, 31))),  # int(1.25) is 1 again
        (3, 2, 12, [3, 9, 21]),
        (30, 1e308, 30, [30]),
        (9, 1.0, 8, []),
    ],
)
def test_windows_grow_until_one_is_longer_than_the_longest(problem, first, coeff, longest, at):
    optimizer = ClippedSGD(problem.parameters(), lr=0.01)
    seen = []
    restarter = Restarter(
        optimizer, first, coeff, longest, on_restart=lambda r: seen.append((r.steps, r.restarts, r.window_steps))
    )
    train(problem, optimizer, restarter, range(30))
    assert seen == [(step, i + 1, 0) for i, step in enumerate(at)]
    assert restarter.steps == 30
    assert restarter.finished == (longest != 2)


def test_default_windows_are_those_of_the_contract():
    restarter = Restarter(ClippedSGD([nn.Parameter(torch.zeros(1))]))
    windows = []
    while not restarter.finished:
        windows.append(restarter.window)
        for _ in range(restarter.window):
            restarter.step()
    assert windows[:4] == [50, 62, 77, 96]
    assert windows[-1] <= 2000 < restarter.window == int(windows[-1] * 1.25)


# the average


def test_weights_become_the_mean_of_the_windows_iterates_and_of_nothing_before_it(problem):
    optimizer = ClippedSGD(problem.parameters(), lr=0.1, momentum=0.9)
    params = optimizer.param_groups[0]["params"]
    restarter = Restarter(optimizer, 5, 2.0, 10)
    for steps in (range(5), range(5, 15)):
        iterates = train(problem, optimizer, restarter, steps)
        for i, p in enumerate(params):
            mean = torch.stack([iterate[i].double() for iterate in iterates]).mean(0)
            torch.testing.assert_close(p.detach().double(), mean, rtol=1e-6, atol=1e-7)
    before = problem.copies(params)
    assert equal(before, params)
    assert not equal(iterates[-1], params)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_mean_of_two_thousand_noisy_iterates_is_exact(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1000, generator=generator, dtype=torch.float64)
    weight = nn.Parameter(start.to(dtype))
    restarter = Restarter(optim.SGD([weight]), 2000)
    copies = []
    for _ in range(2000):
        with torch.no_grad():
            weight.copy_(start + 0.01 * torch.randn(1000, generator=generator, dtype=torch.float64))
        copies.append(weight.detach().double())
        restarter.step()
    mean = torch.stack(copies).mean(0)
    assert restarter.restarts == 1
    assert (weight.detach() - mean).norm() < tolerance * mean.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_are_averaged_in_float32(dtype):
    values = torch.tensor([1.0] * 150 + [2.0] * 450).to(dtype)
    weight = nn.Parameter(torch.zeros(1, dtype=dtype))
    restarter = Restarter(optim.SGD([weight]), 600)
    for value in values:
        with torch.no_grad():
            weight.fill_(value)
        restarter.step()
    assert weight.dtype is dtype
    assert weight.item() == 1.75  # a mean in this type stops moving long before


def test_types_groups_complex_and_tied_parameters_in_one_optimizer():
    start = torch.arange(6.0).view(2, 3)
    tied = nn.Parameter(start.clone())
    modules = nn.ModuleList([nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)])
    modules[0].weight = modules[1].weight = tied
    others = [nn.Parameter(start.to(t)) for t in (torch.bfloat16, torch.float64, torch.complex64)]
    channels_last = nn.Parameter(torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last))
    groups = [{"params": modules.parameters()}, {"params": others, "lr": 1.0}, {"params": [channels_last]}]
    optimizer = optim.SGD(groups, lr=0.5)
    restarter = Restarter(optimizer, 2, 1.0)
    for _ in range(2):
        for p in (tied, *others, channels_last):
            p.grad = torch.ones_like(p)
        optimizer.step()
        restarter.step()
    assert torch.equal(tied.detach(), start - 0.75)
    assert all(torch.equal(p.detach(), (start - 1.5).to(p.dtype)) for p in others)
    assert torch.equal(channels_last.detach(), torch.full((2, 3, 4, 4), 0.25))
    assert channels_last.is_contiguous(memory_format=torch.channels_last)


def test_frozen_parameters_stay_exactly_as_they_are(problem):
    frozen = nn.Parameter(torch.tensor([-0.0, math.inf, -math.inf, math.nan]), requires_grad=False)
    late = nn.Parameter(torch.zeros(3))
    optimizer = ClippedSGD([*problem.parameters(), frozen, late], lr=0.1)
    restarter = Restarter(optimizer, 4, 1.0)
    for step in range(4):
        late.requires_grad_(step < 2)  # frozen within the window
        stepped(optimizer, [*problem.gradients(step), None, torch.ones(3) if step < 2 else None])
        value = problem.copies([late])
        restarter.step()
    assert torch.equal(frozen.view(torch.int32), torch.tensor([-0.0, math.inf, -math.inf, math.nan]).view(torch.int32))
    assert equal(value, [late])
    assert restarter.restarts == 1


def test_parameters_added_or_unfrozen_within_a_window_are_averaged_from_then_on():
    first, unfrozen, added = (nn.Parameter(torch.zeros(())) for _ in range(3))
    unfrozen.requires_grad_(False)
    optimizer = optim.SGD([first, unfrozen], lr=1.0)
    restarter = Restarter(optimizer, 4, 1.0)
    for step in range(4):
        if step == 2:
            unfrozen.requires_grad_(True)
            optimizer.add_param_group({"params": [added]})
        for p in (first, unfrozen, added):
            p.grad = -torch.ones(()) if p.requires_grad else None
        optimizer.step()
        restarter.step()
    assert [p.item() for p in (first, unfrozen, added)] == [2.5, 1.5, 1.5]


def test_parameters_that_were_replaced_stay_as_they_are_and_their_means_are_let_go():
    weight = nn.Parameter(torch.zeros(100_000))
    optimizer = optim.SGD([weight], lr=1.0)
    restarter = Restarter(optimizer, 4)
    before = tensor_bytes()
    for step in range(4):
        if step == 2:
            replaced, optimizer.param_groups[0]["params"][0] = weight, nn.Parameter(torch.zeros(1))
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].fill_(step)
        restarter.step()
    assert replaced.unique().item() == 1
    assert optimizer.param_groups[0]["params"][0].item() == 2.5
    assert tensor_bytes() < before + 400_000


def test_an_entry_that_is_not_finite_spoils_no_other():
    weight = nn.Parameter(torch.tensor([1.0, math.inf, math.nan]))
    restarter = Restarter(optim.SGD([weight]), 3)
    for _ in range(3):
        restarter.step()
    assert weight[0] == 1
    assert not weight[1:].isfinite().any()


def test_last_restarts_without_an_average_and_without_a_copy(problem):
    optimizer = ClippedSGD(problem.parameters(), lr=0.1, momentum=0.9)
    restarter = Restarter(optimizer, 3, average="last")
    iterates = train(problem, optimizer, restarter, range(3))
    assert restarter.restarts == 1
    assert equal(iterates[-1], optimizer.param_groups[0]["params"])
    assert not optimizer.state
    train(problem, optimizer, restarter, range(3, 5))
    assert all(mean is None for mean in restarter.state_dict()["means"])


def tensor_bytes():
    gc.collect()
    storages = {o.untyped_storage().data_ptr(): o.untyped_storage().nbytes() for o in live_tensors(torch.Tensor)}
    return sum(storages.values())


def test_a_window_of_two_thousand_steps_holds_one_copy_of_the_weights():
    weight = nn.Parameter(torch.zeros(100_000))
    optimizer = optim.SGD([weight], lr=0.1)
    restarter = Restarter(optimizer, 2000, 1.25, 2000)
    before = tensor_bytes()
    for _ in range(1999):
        restarter.step()
    (mean,) = restarter.state_dict()["means"]
    assert mean.untyped_storage().nbytes() == 400_000
    del mean
    assert tensor_bytes() - before == 400_000
    restarter.step()
    assert restarter.finished
    assert tensor_bytes() == before


# the optimizer after a restart


@pytest.mark.parametrize(
    ("name", "clipped"),
    [
        (name, clipped)
        for name, (cls, _) in OPTIMIZERS.items()
        for clipped in (False, True)[: 1 if issubclass(cls, Clipped) else 2]
    ],
)
def test_after_a_restart_the_optimizer_steps_as_a_new_one_would(problem, name, clipped):
    cls, arguments = OPTIMIZERS[name]
    optimizer = cls(problem.parameters(), **arguments)
    if clipped:
        clip_optimizer(optimizer, "norm", 1e3)
    state = optimizer.state
    restarter = Restarter(optimizer, 3, 1.0)
    params = optimizer.param_groups[0]["params"]
    train(problem, optimizer, restarter, range(3))
    assert optimizer.state is state
    fresh = cls([nn.Parameter(p.detach().clone()) for p in params], **arguments)
    if clipped:
        clip_optimizer(fresh, "norm", 1e3)
    elif isinstance(optimizer, Clipped):  # the history of clipping goes on
        fresh.load_state_dict({"state": {}, "param_groups": copy.deepcopy(optimizer.state_dict()["param_groups"])})
    for step in (3, 4):
        stepped(optimizer, problem.gradients(step))
        stepped(fresh, problem.gradients(step))
        assert equal(params, fresh.param_groups[0]["params"])
    assert len(optimizer.state) == len(fresh.state)


def test_objects_history_schedulers_and_hooks_stay(problem):
    optimizer = ClippedSGD(problem.parameters(), lr=1.0, momentum=0.9, clipping_type="auto")
    params = list(optimizer.param_groups[0]["params"])
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    restarter = Restarter(optimizer, 2)
    for step in range(3):
        stepped(optimizer, problem.gradients(step))
        scheduler.step()
        restarter.step()
    assert optimizer.param_groups[0]["lr"] == 0.125
    assert all(a is b for a, b in zip(params, optimizer.param_groups[0]["params"], strict=True))
    assert len(steps) == 3
    assert optimizer.clipping_stats()["steps"] == 3
    assert len(optimizer.grad_norms()) == 3


def test_on_restart_finds_weights_and_state_as_the_next_step_will(problem):
    optimizer = ClippedSGD(problem.parameters(), lr=0.1, momentum=0.9)
    params = optimizer.param_groups[0]["params"]
    seen = []

    def look(restarter):
        seen.append((len(restarter.optimizer.state), restarter.window, problem.copies(params)))

    iterates = train(problem, optimizer, Restarter(optimizer, 2, 2.0, on_restart=look), range(2))
    ((state, window, weights),) = seen
    assert (state, window) == (0, 4)
    assert equal(weights, params)
    assert not equal(weights, iterates[-1])


def test_a_restarter_may_be_made_in_the_middle_of_training(problem):
    optimizer = ClippedAdam(problem.parameters(), lr=0.1)
    for step in range(3):
        stepped(optimizer, problem.gradients(step))
    iterates = train(problem, optimizer, Restarter(optimizer, 2), range(3, 5))
    for i, p in enumerate(optimizer.param_groups[0]["params"]):
        torch.testing.assert_close(p.detach(), (iterates[0][i] + iterates[1][i]) / 2)


@pytest.mark.parametrize("fused", [None, True])
def test_gradient_scaler_goes_on_and_a_left_out_step_counts_the_weights_once_more(fused):
    weight = nn.Parameter(torch.zeros(2))
    optimizer = ClippedSGD([weight], lr=1.0, clipping_level=1.0, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    restarter = Restarter(optimizer, 3, 1.0)
    for direction in (torch.tensor([-3.0, 0.0]), torch.tensor([math.inf, 0.0]), torch.tensor([0.0, -3.0])):
        scaler.scale((weight * direction).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        restarter.step()
    # iterates (1, 0), (1, 0), (1, 1)
    torch.testing.assert_close(weight.detach(), torch.tensor([1.0, 1 / 3]))
    assert restarter.restarts == 1
    assert scaler.get_scale() == 2.0


def test_compiled_steps_go_on_after_a_restart(problem):
    runs = []
    for compiled in (False, True):
        optimizer = ClippedSGD(problem.parameters(), lr=0.1, momentum=0.9)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        restarter = Restarter(optimizer, 2, 1.0)
        for i in range(6):
            for p, g in zip(optimizer.param_groups[0]["params"], problem.gradients(i), strict=True):
                p.grad = g
            step()
            restarter.step()
        runs.append(optimizer.param_groups[0]["params"])
    assert equal(*runs)


# batch normalization


def test_recalibrate_measures_batch_normalization_with_the_new_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = ClippedSGD(model.parameters(), lr=0.5, momentum=0.9)
    loader = [(torch.randn(16, 3), torch.zeros(16)) for _ in range(4)]
    restarter = Restarter(optimizer, 4, model=model, on_restart=lambda restarter: restarter.recalibrate(loader))
    for inputs, _ in loader:
        (model(inputs) - 3).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        restarter.step()
    hidden = torch.stack([model[0](inputs).mean(0) for inputs, _ in loader]).mean(0)
    torch.testing.assert_close(model[1].running_mean, hidden.detach())
    assert model.training
    assert model[1].momentum == 0.1


def test_recalibrate_without_batches_is_refused_and_keeps_the_statistics():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    restarter = Restarter(optim.SGD(model.parameters()), model=model)
    batches = (torch.ones(2, 3) for _ in range(2))
    restarter.recalibrate(batches)
    measured = model[1].running_mean.clone()
    with pytest.raises(ValueError, match="loader must give at least one batch each time, got none"):
        restarter.recalibrate(batches)
    assert torch.equal(model[1].running_mean, measured)
    assert measured.any()


def test_recalibrate_without_a_model_says_where_to_name_it():
    with pytest.raises(ValueError, match=r"Restarter\(optimizer, model=model\)"):
        Restarter(optim.SGD([torch.zeros(1)])).recalibrate([])


# checkpoints


@pairwise(
    name=["SGD-dampening", "Adagrad", "AdamW-amsgrad", "ClippedSGD", "ClippedAdam"], average=["mean", "last"], stop=[2, 3, 5, 9]
)
def test_a_resumed_run_is_the_unbroken_one(problem, name, average, stop):
    cls, arguments = OPTIMIZERS[name]

    def start():
        optimizer = cls(problem.parameters(), **arguments)
        return optimizer, Restarter(optimizer, 3, 1.5, 6, average=average)  # restarts after 3, 7, 13

    unbroken, restarter = start()
    train(problem, unbroken, restarter, range(14))
    broken, restarter = start()
    train(problem, broken, restarter, range(stop))
    saved = saved_and_loaded(
        {"w": broken.param_groups[0]["params"], "optimizer": broken.state_dict(), "restarter": restarter.state_dict()}
    )
    resumed, again = start()
    with torch.no_grad():
        for p, w in zip(resumed.param_groups[0]["params"], saved["w"], strict=True):
            p.copy_(w)
    resumed.load_state_dict(saved["optimizer"])
    again.load_state_dict(saved["restarter"])
    train(problem, resumed, again, range(stop, 14))
    assert again.restarts == 3
    assert again.finished
    assert equal(unbroken.param_groups[0]["params"], resumed.param_groups[0]["params"])


def test_loading_copies_the_means(problem):
    optimizer = ClippedSGD(problem.parameters(), lr=0.1)
    restarter = Restarter(optimizer, 3)
    train(problem, optimizer, restarter, range(1))
    state = copy.deepcopy(restarter.state_dict())
    kept = copy.deepcopy(state)
    restarter.load_state_dict(state)
    train(problem, optimizer, restarter, range(1, 2))
    assert equal(state["means"], kept["means"])
    assert not equal(restarter.state_dict()["means"], kept["means"])


def test_state_of_something_else_is_refused_and_changes_nothing(problem):
    optimizer = ClippedSGD(problem.parameters(), lr=0.1)
    restarter = Restarter(optimizer, 5)
    train(problem, optimizer, restarter, range(2))
    state = restarter.state_dict()
    for wrong, message in [
        ({}, "has no 'average'"),
        (state | {"average": "last"}, "average='mean', got 'last'"),
        (state | {"means": state["means"][:2], "steps": 77}, "of 4 parameters, as the optimizer has, got 2"),
        (
            state | {"means": [torch.zeros(7), *state["means"][1:]], "steps": 77},
            r"means\[0\] must .*\(3, 4\).*got .*\(7,\)",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            restarter.load_state_dict(wrong)
    assert (restarter.steps, restarter.window_steps) == (2, 2)


def test_copied_together_they_train_alike_and_apart(problem):
    optimizer = ClippedSGD(problem.parameters(), lr=0.1, momentum=0.9)
    restarter = Restarter(optimizer, 4)
    train(problem, optimizer, restarter, range(2))
    twin, its_restarter = copy.deepcopy((optimizer, restarter))
    assert its_restarter.optimizer is twin
    train(problem, twin, its_restarter, range(2, 5))
    assert (restarter.steps, its_restarter.restarts) == (2, 1)
    train(problem, optimizer, restarter, range(2, 5))
    assert equal(optimizer.param_groups[0]["params"], twin.param_groups[0]["params"])


# the loop of older code


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def batches():
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(8, 3, generator=generator) for _ in range(25)]


def test_the_older_form_is_the_same_run_and_returns_the_optimizer_it_was_given():
    net = network()
    optimizer_props = OptimizerProperties(ClippedSGD, lr=5e-2, momentum=0.9, clipping_type="layer_wise", clipping_level=1)
    restarter = Restarter(optimizer_properties=optimizer_props, first_restart_steps_cnt=5, restart_coeff=1.25, max_steps_cnt=7)
    older = optimizer_props.optimizer_class(net.parameters(), **optimizer_props.optimizer_kwargs)
    for batch in batches():
        (net(batch) - 1).square().mean().backward()
        older.step()
        older.zero_grad()
        restarter.add_coords(net.parameters())
        assert restarter.make_restart(net, older) is older

    model = network()
    optimizer = ClippedSGD(model.parameters(), lr=5e-2, momentum=0.9, clipping_type="layer_wise", clipping_level=1)
    newer = Restarter(optimizer, first_restart_steps_cnt=5, restart_coeff=1.25, max_steps_cnt=7)
    for batch in batches():
        (model(batch) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        newer.step()
    assert (newer.restarts, newer.window) == (restarter.restarts, restarter.window) == (3, 8)
    assert equal(net.parameters(), model.parameters())


def test_in_the_older_form_the_optimizer_is_known_from_make_restart_on():
    properties = OptimizerProperties(ClippedSGD, lr=0.1)
    restarter = Restarter(optimizer_properties=properties)
    for call in (restarter.step, restarter.state_dict, lambda: restarter.load_state_dict({})):
        with pytest.raises(ValueError, match=r"needs the optimizer: give it to Restarter or call make_restart"):
            call()
    net = network()
    restarter.make_restart(net, properties.make(net.parameters()))
    restarter.step()
    assert restarter.steps == 1
    restarter.recalibrate([torch.zeros(2, 3)])


def test_a_restarter_that_goes_on_to_another_model_leaves_the_first_one_alone():
    properties = OptimizerProperties(optim.SGD, lr=0.1)
    restarter = Restarter(optimizer_properties=properties, first_restart_steps_cnt=5)
    first, second = network(), network()
    for net, steps in ((first, 3), (second, 2)):
        optimizer = properties.make(net.parameters())
        for batch in batches()[:steps]:
            net(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            kept = [p.detach().clone() for p in first.parameters()]
            restarter.add_coords(net.parameters())
            restarter.make_restart(net, optimizer)
    assert restarter.restarts == 1
    assert equal(kept, first.parameters())


# what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"first_restart_steps_cnt": 0}, "first_restart_steps_cnt must be an integer >= 1, got 0"),
        ({"first_restart_steps_cnt": True}, "first_restart_steps_cnt must be an integer >= 1, got True"),
        ({"first_restart_steps_cnt": 2.0}, "first_restart_steps_cnt must be an integer >= 1, got 2.0"),
        ({"restart_coeff": 0.9}, "restart_coeff must be a finite number >= 1, got 0.9"),
        ({"restart_coeff": math.inf}, "restart_coeff must be a finite number >= 1, got inf"),
        ({"restart_coeff": math.nan}, "restart_coeff must be a finite number >= 1, got nan"),
        ({"restart_coeff": "2"}, "restart_coeff must be a finite number >= 1, got '2'"),
        ({"max_steps_cnt": -3}, "max_steps_cnt must be an integer >= 1, got -3"),
        ({"max_steps_cnt": None}, "max_steps_cnt must be an integer >= 1, got None"),
        ({"average": "median"}, "average must be one of mean, last, got 'median'"),
        ({"average": None}, "average must be one of mean, last, got None"),
    ],
)
def test_nonsense_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        Restarter(optim.SGD([torch.zeros(1)]), **arguments)
    with pytest.raises(ValueError, match=message):
        Windows(**arguments)


def test_the_wrong_objects_are_refused():
    optimizer = optim.SGD([torch.zeros(1)])
    properties = OptimizerProperties(ClippedSGD)
    with pytest.raises(ValueError, match="needs one of optimizer and optimizer_properties, got neither"):
        Restarter()
    with pytest.raises(ValueError, match="needs one of optimizer and optimizer_properties, got both"):
        Restarter(optimizer, optimizer_properties=properties)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got Linear"):
        Restarter(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="optimizer_properties must be OptimizerProperties, got dict"):
        Restarter(optimizer_properties={"lr": 0.1})
    with pytest.raises(TypeError, match="on_restart must be a function of the restarter or None, got 3"):
        Restarter(optimizer, on_restart=3)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module or None, got SGD"):
        Restarter(optimizer, model=optimizer)
    restarter = Restarter(optimizer_properties=properties)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got OptimizerProperties"):
        restarter.make_restart(nn.Linear(1, 1), properties)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got SGD"):
        restarter.make_restart(optimizer, optimizer)
    for wrong, named in [(nn.Linear(1, 1), "a Linear"), (torch.zeros(3), "a Tensor"), (["x"], "a str in it")]:
        with pytest.raises(TypeError, match=f"parameters must be an iterable of tensors, got {named}"):
            restarter.add_coords(wrong)
    assert restarter.steps == 0


def test_state_from_before_the_first_step_loads():
    optimizers = [ClippedSGD([nn.Parameter(torch.zeros(2))], lr=0.1) for _ in range(2)]
    fresh, other = (Restarter(optimizer, 3) for optimizer in optimizers)
    other.load_state_dict(saved_and_loaded(fresh.state_dict()))
    assert (other.steps, other.restarts, other.window, other.window_steps) == (0, 0, 3, 0)


def test_window_that_grows_without_end_stays_an_integer_of_64_bits():
    weight = nn.Parameter(torch.zeros(1))
    restarter = Restarter(optim.SGD([weight], lr=0.1), 1, restart_coeff=1e300, max_steps_cnt=10)
    weight.grad = torch.ones(1)
    restarter.step()
    assert restarter.window == 2**63 - 1
    assert restarter.finished
