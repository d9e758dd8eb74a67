"""Torch's fused kernels: taken where they are right, with the coefficient folded in, and never where they are wrong."""

import math

import pytest
import torch
from support.cases import pairwise

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD

CLASSES = {
    "sgd": (ClippedSGD, {"lr": 0.1, "momentum": 0.9}),
    "adam": (ClippedAdam, {"lr": 0.1}),
    "adamw": (ClippedAdamW, {"lr": 0.1}),
}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def kernel_calls(monkeypatch):
    """Counts the calls of torch's fused kernels."""
    calls = []
    for name in ("_fused_sgd_", "_fused_adam_", "_fused_adamw_"):
        kernel = getattr(torch, name)

        def counted(*args, name=name, kernel=kernel, **kwargs):
            calls.append((name, kwargs["grad_scale"]))
            return kernel(*args, **kwargs)

        monkeypatch.setattr(torch, name, counted)
    return calls


@pytest.mark.parametrize("name", CLASSES)
def test_fused_kernels_are_chosen_and_leave_no_trace_in_the_groups(name, kernel_calls):
    cls, options = CLASSES[name]
    param = torch.nn.Parameter(randn(5))
    optimizer = cls([param], **options)
    param.grad = randn(5, seed=1)
    optimizer.step()
    assert len(kernel_calls) == 1
    assert optimizer.param_groups[0]["fused"] is None
    assert optimizer.state_dict()["param_groups"][0]["fused"] is None
    assert not hasattr(optimizer, "grad_scale")


def test_nothing_is_folded_where_nothing_is_clipped(kernel_calls):
    param = torch.nn.Parameter(randn(5))
    optimizer = ClippedSGD([param], clipping_level=100)
    param.grad = randn(5, seed=1)
    before = param.grad.clone()
    optimizer.step()
    assert kernel_calls == [("_fused_sgd_", None)]
    assert param.grad.equal(before)
    param.grad = 1000 * before
    optimizer.step()
    assert kernel_calls[1][1].item() == pytest.approx(10 * before.norm().item(), rel=1e-6)


@pytest.mark.parametrize("flags", [{"foreach": True}, {"foreach": False}, {"fused": False}])
def test_flags_of_the_user_are_obeyed(flags, kernel_calls):
    param = torch.nn.Parameter(randn(5))
    optimizer = ClippedSGD([param], **flags)
    param.grad = randn(5, seed=1)
    optimizer.step()
    assert kernel_calls == []


@pairwise(lay_out=["grad", "param", "both", "transposed", "holes"], level=[0.5, 1e9], name=CLASSES)
def test_memory_layouts_that_fused_kernels_get_wrong(lay_out, level, name):
    cls, options = CLASSES[name]
    runs = []
    for flags in ({}, {"foreach": False, "fused": False}):
        weight, grad = randn(4, 3, 5, 6), randn(4, 3, 5, 6, seed=1)
        if lay_out in ("param", "both"):
            weight = weight.to(memory_format=torch.channels_last)
        if lay_out in ("grad", "both"):
            grad = grad.to(memory_format=torch.channels_last)
        if lay_out == "transposed":
            grad = grad.transpose(0, 3).contiguous().transpose(0, 3)
        if lay_out == "holes":
            weight = torch.zeros(4, 3, 5, 12)[..., ::2].copy_(weight)
        param = torch.nn.Parameter(weight)
        optimizer = cls([param], clipping_level=level, **options, **flags)
        for _ in range(3):
            param.grad = grad.clone(memory_format=torch.preserve_format)
            optimizer.step()
        runs.append(param.detach().clone())
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overflow_at", [None, 0, 2])
@pytest.mark.parametrize("name", CLASSES)
def test_gradient_scaler_where_the_fused_kernel_that_was_asked_for_would_be_wrong(name, overflow_at):
    """The scaler leaves unscaling to a fused kernel, and the kernel of this step cannot unscale."""
    cls, options = CLASSES[name]
    runs = []
    for fused in (True, False):
        param = torch.nn.Parameter(randn(4, 6))
        optimizer = cls([param], clipping_level=0.5, fused=fused, foreach=None if fused else False, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        norms = []
        for step in range(4):
            optimizer.zero_grad()
            scaler.scale(param.sum()).backward()
            param.grad = (1024 * randn(6, 4, seed=step)).T
            if step == overflow_at:
                param.grad[0, 0] = math.inf
            scaler.step(optimizer)
            scaler.update(1024.0)
            norms.append(optimizer.clipping_stats()["grad_norm"])
        runs.append((param.detach().clone(), norms))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=1e-5, atol=1e-6)
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("dampening", [0.0, 0.3])
def test_parameter_whose_first_gradient_comes_late(dampening):
    runs = []
    for flags in ({}, {"foreach": False, "fused": False}):
        params = [torch.nn.Parameter(randn(5, seed=i)) for i in range(2)]
        optimizer = ClippedSGD(params, lr=0.1, momentum=0.9, dampening=dampening, **flags)
        for step in range(4):
            params[0].grad = randn(5, seed=10 + step)
            params[1].grad = randn(5, seed=20 + step) if step >= 2 else None
            optimizer.step()
        runs.append(torch.stack([p.detach() for p in params]))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-6, atol=1e-7)


def test_overflow_in_the_very_first_step_under_a_gradient_scaler():
    for seed in range(20):
        param = torch.nn.Parameter(randn(1000, seed=seed))
        start = param.detach().clone()
        optimizer = ClippedSGD([param], lr=0.1, momentum=0.9, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale((param * math.inf).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert param.equal(start)
        assert optimizer.clipping_stats()["steps"] == optimizer.clipping_stats()["skipped_steps"] == 0
        param.grad = None
        scaler.scale((param * 2).sum()).backward()
        scaler.step(optimizer)
        assert param.isfinite().all()


def test_float64_keeps_its_digits_in_a_clipped_fused_step():
    param = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = ClippedSGD([param], lr=1.0, clipping_level=1.0, fused=True)
    param.grad = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    optimizer.step()
    wanted = -torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) / math.sqrt(14)
    torch.testing.assert_close(param.detach(), wanted, rtol=1e-14, atol=0)


def test_coefficients_that_float32_cannot_hold():
    for dtype in (torch.float32, torch.bfloat16):
        param = torch.nn.Parameter(torch.zeros(4, dtype=dtype))
        optimizer = ClippedSGD([param], lr=1.0, clipping_level=1e-6)
        param.grad = torch.full((4,), 2e38, dtype=dtype)
        optimizer.step()
        assert (-param).tolist() == pytest.approx([5e-7] * 4, rel=1e-2)


@pytest.mark.parametrize("name", CLASSES)
def test_plain_checkpoint_does_not_switch_fused_kernels_off(name, kernel_calls):
    cls, options = CLASSES[name]
    param = torch.nn.Parameter(randn(5))
    plain = cls.__mro__[2]([param], **options)
    param.grad = randn(5, seed=1)
    plain.step()
    assert kernel_calls == []
    optimizer = cls([param], **options)
    optimizer.load_state_dict(plain.state_dict())
    optimizer.step()
    assert len(kernel_calls) == 1


def test_failing_step_leaves_the_groups_as_the_user_wrote_them(monkeypatch):
    param = torch.nn.Parameter(randn(5))
    optimizer = ClippedSGD([param])
    param.grad = randn(5, seed=1)
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert optimizer.param_groups[0]["fused"] is None
    assert not hasattr(optimizer, "grad_scale")


def test_group_of_type_none_is_not_scaled_with_the_others():
    first, second = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    groups = [{"params": [first]}, {"params": [second], "clipping_type": "none"}]
    optimizer = ClippedSGD(groups, lr=1.0, clipping_level=1.0, fused=True)
    first.grad, second.grad = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0])
    optimizer.step()
    assert (-first).tolist() == pytest.approx([0.6, 0.8])
    assert (-second).tolist() == [3.0, 4.0]


@pytest.mark.parametrize("lay", ["transposed", "float64", "shorter"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_parameters_that_change_after_many_steps_are_kept_from_a_kernel_that_would_mix_them_up(momentum, lay):
    def run(cls, **options):
        weight = torch.nn.Parameter(torch.ones(3, 2))
        optimizer = cls([weight], lr=0.1, momentum=momentum, **options)
        for step in range(6):
            if step == 3:
                if lay == "transposed":
                    weight.data = weight.data.t().contiguous().t()
                elif lay == "float64":
                    weight.data = weight.data.double()
                    for entries in optimizer.state.values():
                        entries["momentum_buffer"] = entries["momentum_buffer"].double()
                else:
                    weight.data = weight.data[:2].clone()
                    optimizer.state.clear()
            shape = weight.shape
            weight.grad = torch.arange(shape.numel(), dtype=torch.float32).view(shape).to(weight.dtype) / (step + 1)
            optimizer.step()
        return weight.detach()

    torch.testing.assert_close(run(ClippedSGD, clipping_level=1e9), run(torch.optim.SGD, foreach=False))


def test_a_buffer_that_somebody_replaces_is_looked_at():
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = ClippedSGD([weight], lr=0.1, momentum=0.9, clipping_level=1e9)
    plain = torch.nn.Parameter(torch.ones(3, 2))
    other = torch.optim.SGD([plain], lr=0.1, momentum=0.9, foreach=False)
    for step in range(6):
        for one, p in ((optimizer, weight), (other, plain)):
            if step == 3:
                buffer = one.state[p]["momentum_buffer"]
                one.state[p]["momentum_buffer"] = buffer.t().contiguous().t()
            p.grad = torch.arange(6.0).view(3, 2)
            one.step()
    torch.testing.assert_close(weight, plain)


@pytest.fixture
def poisoned_memory():
    """Fills new memory with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("no_host", "poisoned_memory")
@pytest.mark.filterwarnings("ignore:.*skipped:RuntimeWarning")
def test_first_step_that_a_fused_kernel_skips_leaves_a_momentum_of_zero(kernel_calls):
    param = torch.nn.Parameter(torch.zeros(3))
    optimizer = ClippedSGD([param], lr=1.0, momentum=0.9, clipping_level=100.0)
    for gradient in (torch.inf, 1.0, 1.0):
        param.grad = torch.full((3,), gradient)
        optimizer.step()
    assert len(kernel_calls) == 3
    assert param.tolist() == pytest.approx([-2.9] * 3)
