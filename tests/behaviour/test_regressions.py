"""Faults that were found once and must not come back."""

import copy
import math

import pytest
import torch

from torch_clipped import ClippedAdamW, ClippedSGD, ClippingWarning, GradientClipper, LevelScheduler, linear_warmup
from torch_clipped._engine import clip_sets, norms


def parameter(*values):
    return torch.nn.Parameter(torch.tensor(values))


@pytest.mark.parametrize(
    ("clipped", "plain", "options"),
    [(ClippedSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}), (ClippedAdamW, torch.optim.AdamW, {"lr": 0.01})],
)
def test_model_that_becomes_channels_last_in_the_middle_of_a_run(clipped, plain, options):
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 8, 3)
    twin, images = copy.deepcopy(model), torch.randn(2, 3, 8, 8)
    pairs = [(model, clipped(model.parameters(), clipping_level=1e9, **options)), (twin, plain(twin.parameters(), **options))]
    for step in range(6):
        if step == 3:
            model.to(memory_format=torch.channels_last)
            twin.to(memory_format=torch.channels_last)
        for module, optimizer in pairs:
            optimizer.zero_grad()
            module(images).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(model.weight, twin.weight, rtol=1e-5, atol=1e-6)


def test_lengths_between_what_float32_squares_hold_and_what_they_lose():
    values = torch.full((7,), 3e-22)
    norm = norms.host_norms([values], (1,), 2.0)[0]
    assert norm == pytest.approx(3e-22 * math.sqrt(7), rel=1e-5)


def test_zero_tensors_are_not_measured_twice(monkeypatch):
    def refuse(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(norms, "_norm_by_chunks", refuse)
    params = [torch.nn.Parameter(torch.ones(9000)), parameter(3.0)]
    optimizer = ClippedSGD(params)
    params[0].grad, params[1].grad = torch.zeros(9000), torch.ones(1)
    optimizer.step()
    assert optimizer.clipping_stats()["grad_norm"] == 1.0


def test_weights_are_measured_once_a_step_however_they_are_grouped(monkeypatch):
    calls = []
    for name in ("host_norms", "plain_norms"):
        measured = getattr(clip_sets, name)
        monkeypatch.setattr(clip_sets, name, lambda *args, measured=measured: calls.append(1) or measured(*args))
    params = [torch.nn.Parameter(torch.ones(2, 3)) for _ in range(6)]
    optimizer = ClippedSGD([{"params": [p], "weight_decay": 0.1 * i} for i, p in enumerate(params)], clipping_type="adaptive")
    for p in params:
        p.grad = torch.ones(2, 3)
    optimizer.step()
    assert len(calls) == 2  # gradients and weights


def test_norms_of_different_kinds_are_not_combined():
    first, second = parameter(0.0), parameter(0.0)
    optimizer = ClippedSGD([{"params": [first]}, {"params": [second], "norm_type": 1.0}])
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([4.0])
    optimizer.step()
    assert len(optimizer.grad_norms()) == 0
    assert math.isnan(optimizer.clipping_stats()["grad_norm"])
    assert [stats["grad_norm"] for stats in optimizer.clipping_stats(per_set=True)] == [3.0, 4.0]


def test_statistics_leave_out_blocks_without_a_gradient():
    params = [parameter(0.0), parameter(0.0), parameter(0.0)]
    optimizer = ClippedSGD(params, clipping_type="layer_wise", clipping_level=0.5)
    params[0].grad = torch.tensor([5.0])
    optimizer.step()
    assert optimizer.clipping_stats()["coefficient"] == pytest.approx(0.1)


def test_set_whose_groups_have_no_parameters():
    weight = parameter(0.0, 0.0)
    optimizer = ClippedSGD([{"params": [weight]}, {"params": [], "clipping_type": "coord_wise"}])
    weight.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    assert weight.grad.tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("key", ["cliping_level", "clipping_lvl", "clip_level", "p_autoclip", "beta"])
def test_misspelt_argument_of_a_group_is_refused(key):
    with pytest.raises(TypeError, match=key):
        ClippedSGD([{"params": [parameter(0.0)], key: 0.5}])


def test_history_of_an_earlier_type_does_not_come_back():
    weight = parameter(0.0)
    optimizer = ClippedSGD([weight], clipping_type="auto", clipping_level=0.5)
    group = optimizer.param_groups[0]
    for clipping_type, level, length in (("auto", 0.5, 1.0), ("norm", 1e9, 1000.0), ("auto", 0.5, 1000.0)):
        group["clipping_type"], group["clipping_level"] = clipping_type, level
        for _ in range(5):
            weight.grad = torch.tensor([length])
            optimizer.step()
    assert optimizer.clipping_stats()["threshold"] == 1000.0


def test_copy_of_a_clipper_remembers_on_its_own():
    weight = parameter(0.0, 0.0)
    clipper = GradientClipper([weight], "auto", 0.5)
    weight.grad = torch.ones(2)
    clipper.step()
    twin = copy.deepcopy(clipper)
    state = twin.state_dict()
    restored = GradientClipper([weight])
    restored.load_state_dict(state)
    for copied in (twin, restored):
        for p in copied._group["params"]:
            p.grad = torch.full((2,), 2.0)
        copied.step()
        assert copied.state_dict()["clipping_memory_steps"].tolist()[0] == 2
        assert len(copied.grad_norms()) == 2
    assert clipper.state_dict()["clipping_memory_steps"].tolist()[0] == 1


def test_loaded_level_scheduler_writes_the_level_of_its_step():
    optimizer = ClippedSGD([parameter(0.0)])
    scheduler = LevelScheduler(optimizer, linear_warmup(0.1, 1.0, steps=9))
    for _ in range(5):
        scheduler.step()
    late = LevelScheduler(optimizer, linear_warmup(0.1, 1.0, steps=9))
    late.load_state_dict(scheduler.state_dict())
    assert optimizer.param_groups[0]["clipping_level"] == pytest.approx(0.6)


def warned_line(step, weight):
    weight.grad = torch.tensor([math.inf])
    with pytest.warns(ClippingWarning, match="not finite") as caught:
        step()
    return caught[0].filename


def test_warnings_point_at_the_users_line():
    weight = parameter(0.0)
    optimizer = ClippedSGD([weight])
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert warned_line(optimizer.step, weight) == __file__
    assert warned_line(GradientClipper([weight]).step, weight) == __file__


def test_ratio_levels_are_not_suspected_of_a_wrong_unit():
    weight = parameter(0.0, 0.0)
    optimizer = ClippedSGD([weight], lr=0.0, clipping_type="adaptive")
    for step in range(450):
        weight.grad = torch.randn(2, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    assert optimizer.clipping_stats()["clip_rate"] == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("flags", [{}, {"fused": True}])
def test_every_entry_of_low_precision_weights_moves(dtype, flags):
    """torch's fused SGD on the CPU moves the tail of such a tensor only (pytorch issue 191763)."""
    weight = torch.nn.Parameter(torch.ones(100, dtype=dtype))
    optimizer = ClippedSGD([weight], lr=0.25, clipping_level=1e3, **flags)
    weight.grad = torch.ones(100, dtype=dtype)
    optimizer.step()
    assert weight.tolist() == [0.75] * 100


@pytest.mark.parametrize(("dtype", "unscale"), [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, False)])
def test_low_precision_weights_move_under_a_gradient_scaler_too(dtype, unscale):
    weight = torch.nn.Parameter(torch.ones(100, dtype=dtype))
    optimizer = ClippedSGD([weight], lr=0.25, clipping_level=1e3, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(weight.float().sum()).backward()
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [0.75] * 100
    assert weight.grad.tolist() == [1.0] * 100
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(10)


@pytest.mark.parametrize("options", [{"clipping_type": "coord_wise"}, {"norm_type": 3}, {"norm_type": math.inf}, {}])
def test_sparse_gradient_without_entries(options):
    embedding = torch.nn.Embedding(6, 4, sparse=True)
    optimizer = ClippedSGD(embedding.parameters(), **options)
    embedding(torch.zeros(0, dtype=torch.long)).sum().backward()
    optimizer.step()
    assert optimizer.clipping_stats()["steps"] == 0


@pytest.mark.parametrize("size", [8_000, 65_000, 2**20])
@pytest.mark.parametrize("counts", [(1,), None])
def test_long_vectors_keep_their_digits(counts, size):
    values = torch.full((size,), 0.3)
    (norm,) = norms.host_norms([values], counts, 2.0)
    assert norm == pytest.approx(values.double().norm().item(), rel=1e-5)


@pytest.mark.parametrize(("optimizer_class", "lr"), [(ClippedSGD, 1e-7), (ClippedAdamW, 1e-8)])
def test_slow_training_is_not_taken_for_clipping_by_the_loop(optimizer_class, lr):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    inputs, targets = torch.randn(64, 8), torch.randn(64, 1)
    optimizer = optimizer_class(model.parameters(), lr=lr, clipping_level=100)
    for _ in range(450):
        order = torch.randperm(64)
        optimizer.zero_grad()
        (model(inputs[order]) - targets[order]).square().mean().backward()
        optimizer.step()
    assert optimizer.clipping_stats()["steps"] == 450


def test_level_of_entries_in_the_wrong_unit_is_told():
    weight = parameter(0.0, 0.0)
    optimizer = ClippedSGD([weight], lr=0.0, clipping_type="value", clipping_level=1e-9)

    def run():
        for step in range(200):
            weight.grad = torch.randn(2, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    with pytest.warns(ClippingWarning, match="clipping_level"):
        run()


def test_history_of_a_group_that_was_merged_does_not_come_back():
    first, second = parameter(0.0), parameter(0.0)
    optimizer = ClippedSGD([{"params": [first]}, {"params": [second]}], clipping_type="auto", clipping_level=0.5)
    for level, length in ((0.6, 1.0), (0.5, 1000.0), (0.6, 1000.0)):
        optimizer.param_groups[1]["clipping_level"] = level
        for _ in range(20):
            first.grad, second.grad = torch.tensor([length]), torch.tensor([length])
            optimizer.step()
    assert second.grad.item() == 1000.0


def test_parameter_named_twice_is_clipped_once():
    weight = parameter(0.0, 0.0)
    weight.grad = torch.tensor([3.0, 4.0])
    assert GradientClipper([weight, weight]).step().item() == 5.0
    assert weight.grad.tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("types", [("layer_wise_auto", "auto"), ("auto", "layer_wise_auto"), ("layer_wise_zscore", "zscore")])
@pytest.mark.parametrize("host", [True, False])
def test_history_of_one_tensor_serves_both_measures(types, host, request):
    if not host:
        request.getfixturevalue("no_host")
    params = [parameter(0.0, 0.0), parameter(0.0)]
    optimizer = ClippedSGD([{"params": [p]} for p in params], lr=0.1, foreach=True, clipping_type=types[0])
    for kind in (types[0], types[1], types[0]):
        for group in optimizer.param_groups:
            group["clipping_type"] = kind
        for step in range(3):
            for p in params:
                p.grad = torch.full_like(p, step + 1.0)
            optimizer.step()
    assert optimizer.clipping_stats()["steps"] == 9


def test_weights_are_those_that_stand_in_the_group_now():
    first, second = parameter(1.0), parameter(100.0)
    optimizer = ClippedSGD([first], lr=0.1, clipping_type="adaptive", clipping_level=0.5)
    first.grad = torch.tensor([10.0])
    optimizer.step()
    optimizer.param_groups[0]["params"][0] = second
    second.grad = torch.tensor([10.0])
    optimizer.step()
    assert optimizer.clipping_stats()["threshold"] == 50.0


@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise_auto", "coord_wise", "adaptive"])
@pytest.mark.parametrize("host", [True, False])
def test_group_without_blocks(clipping_type, host, request):
    if not host:
        request.getfixturevalue("no_host")
    weight, empty = parameter(0.0), torch.nn.Parameter(torch.zeros(0, 3))
    groups = [{"params": params, "clipping_type": clipping_type} for params in ([], [empty])]
    groups[1]["clipping_level"] = 0.5
    optimizer = ClippedSGD([*groups, {"params": [weight]}], lr=0.1)
    weight.grad, empty.grad = torch.ones(1), torch.zeros(0, 3)
    optimizer.step()
    assert optimizer.clipping_stats()["steps"] == 1


@pytest.mark.parametrize("reload", [False, True])
def test_history_is_not_taken_up_again_after_steps_without_clipping(reload):
    weight = parameter(0.0)
    optimizer = ClippedSGD([weight], clipping_type="auto", clipping_level=0.5)

    def run(steps, length, **arguments):
        optimizer.param_groups[0].update(arguments)
        for _ in range(steps):
            weight.grad = torch.tensor([length])
            optimizer.step()

    run(20, 1.0)
    run(3, 1.0, clipping_type="none", clipping_level=None)
    if reload:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(1, 1000.0, clipping_type="auto", clipping_level=0.5)
    assert weight.grad.item() == 1000.0


def test_arguments_of_a_step_that_does_not_clip_are_checked_too():
    weight = parameter(0.0)
    optimizer = ClippedSGD([weight], clipping_level=0.5)
    optimizer.param_groups[0]["clipping_type"] = "none"
    weight.grad = torch.ones(1)
    with pytest.raises(ValueError, match="clipping_level must be None"):
        optimizer.step()


def test_median_of_thresholds_that_are_infinite_on_an_accelerator(no_host):
    params = [parameter(0.0), parameter(0.0)]
    optimizer = ClippedSGD(params, clipping_type="layer_wise_zscore")
    for p in params:
        p.grad = torch.ones(1)
    optimizer.step()
    assert optimizer.clipping_stats()["threshold"] == math.inf


@pytest.mark.parametrize("shape", [(), (2,)])
def test_buffer_of_another_type_is_kept_from_the_fused_kernel(shape):
    weight = torch.nn.Parameter(torch.zeros(shape))
    optimizer = ClippedSGD([weight], lr=1.0, momentum=0.5, clipping_level=9.0)
    weight.grad = torch.ones(shape)
    optimizer.step()
    weight.grad, weight.data = None, weight.data.double()
    weight.grad = torch.ones(shape, dtype=torch.float64)
    optimizer.step()
    assert (-weight).flatten().tolist() == [2.5] * weight.numel()


def test_parameter_that_is_replaced_by_one_with_more_units():
    optimizer = ClippedSGD([torch.nn.Parameter(torch.ones(2, 3))], lr=1.0, clipping_type="adaptive", clipping_level=1.0)
    weight = torch.nn.Parameter(torch.ones(4, 3))
    weight.grad = torch.tensor([[2.0], [0.5], [4.0], [1.0]]).expand(4, 3).clone()
    optimizer.param_groups[0]["params"][0] = weight
    optimizer.step()
    torch.testing.assert_close(weight.grad[:, 0], torch.tensor([1.0, 0.5, 1.0, 1.0]))
