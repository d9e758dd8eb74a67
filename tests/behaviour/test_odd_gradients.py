"""Gradients with entries that are not finite or share memory, decisions of one's own, and steps that are interrupted."""

import copy
import math
import signal
import sys
import warnings
from itertools import cycle

import pytest
import torch
from support.cases import TYPES
from torch import nn

from torch_clipped import (
    Clipped,
    ClippedAdamW,
    ClippedSGD,
    Clipping,
    ClippingWarning,
    Constant,
    GradientClipper,
    Quantile,
    clip_gradients_,
    register_clipping,
)

inf, nan = math.inf, math.nan


def parameters(*grads):
    params = [nn.Parameter(torch.ones_like(grad)) for grad in grads]
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad.clone()
    return params


def clipped(clipping_type, level, *grads, **options):
    params = parameters(*map(torch.tensor, grads))
    optimizer = ClippedSGD(params, lr=0.0, clipping_type=clipping_type, clipping_level=level, nonfinite="propagate", **options)
    optimizer.step()
    return [p.grad for p in params], optimizer


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}, {"norm_type": 1.0}])
def test_entries_are_clamped_beside_such_that_are_not_finite_as_torch_clamps_them(options):
    grads = [[inf, 4.0, -inf], [30.0, 40.0], [nan, 4.0, -0.5], [0.5, -0.25]]
    found, optimizer = clipped("value", 1.0, *grads, **options)
    params = parameters(*map(torch.tensor, grads))
    torch.nn.utils.clip_grad_value_(params, 1.0)
    torch.testing.assert_close(found, [p.grad for p in params], rtol=0, atol=0, equal_nan=True)
    assert found[0].tolist() == [1, 1, -1]
    assert optimizer.clipping_stats()["clipped_steps"] == 1


def test_sparse_entries_are_clamped_beside_such_that_are_not_finite():
    (p,) = parameters(torch.ones(3, 2))
    grad = torch.tensor([[inf, 4.0], [0.0, 0.0], [nan, -inf]])
    optimizer = ClippedSGD([p], lr=0.0, clipping_type="value", clipping_level=1.0, nonfinite="propagate")
    p.grad = grad.to_sparse(1)
    optimizer.step()
    torch.testing.assert_close(p.grad.to_dense(), grad.clamp(-1.0, 1.0), rtol=0, atol=0, equal_nan=True)


def test_complex_entries_keep_their_direction_beside_such_that_are_not_finite():
    (found,), _ = clipped("value", 1.0, [3 + 4j, complex(inf, 1.0), complex(nan, 0.0), 0j])
    assert found[0] == pytest.approx(0.6 + 0.8j)
    assert found[1].real == inf
    assert found[2].isnan()
    assert found[3] == 0


def test_finite_tensors_are_clipped_beside_such_that_are_not_finite():
    found, optimizer = clipped("layer_wise", 1.0, [inf, 4.0], [30.0, 40.0], [nan, 1.0])
    torch.testing.assert_close(found, [*map(torch.tensor, ([inf, 4.0], [0.6, 0.8], [nan, 1.0]))], equal_nan=True)
    assert optimizer.clipping_stats()["clipped_steps"] == 1


def test_finite_units_are_clipped_beside_such_that_are_not_finite():
    found, _ = clipped("adaptive", 0.1, [[inf, 4.0], [30.0, 40.0]], [[nan], [1.0]])
    expected = [[[inf, 4.0], [0.06 * 2**0.5, 0.08 * 2**0.5]], [[nan], [0.1]]]
    torch.testing.assert_close(found, [*map(torch.tensor, expected)], equal_nan=True)


@pytest.mark.parametrize("clipping_type", ["norm", "auto", "zclip", "quadratic_rand_norm"])
def test_whole_gradient_that_is_not_finite_is_left_alone(clipping_type):
    found, _ = clipped(clipping_type, None, [inf, 4.0], [30.0, 40.0])
    assert [grad.tolist() for grad in found] == [[inf, 4.0], [30.0, 40.0]]


@pytest.mark.parametrize("clipping_type", ["layer_wise_auto", "layer_wise_zscore", "adagc"])
def test_histories_of_finite_tensors_go_on_beside_such_that_are_not_finite(clipping_type):
    def run(poisoned):
        params = parameters(torch.zeros(2), torch.zeros(3))
        optimizer = ClippedSGD(params, lr=0.1, clipping_type=clipping_type, nonfinite="propagate")
        for step in range(160):
            params[0].grad = torch.tensor([inf if poisoned and step > 120 else 1.0, 1.0])
            params[1].grad = torch.full((3,), 1.0 + 0.1 * (step % 3) + 50 * (step == 150))
            optimizer.step()
        return params[1], optimizer.param_groups[0]

    weights, group = run(poisoned=True)
    expected, expected_group = run(poisoned=False)
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    for key, value in group.items():
        if key.removeprefix("clipping_memory_") in ("average", "seen", "lengths", "count") and value.numel():
            torch.testing.assert_close(value[..., 1], expected_group[key][..., 1], rtol=0, atol=0)


def test_warm_up_of_adagc_leaves_finite_tensors_alone_where_the_whole_norm_is_not_finite():
    found, optimizer = clipped("adagc", None, [inf, 4.0], [30.0, 40.0])
    assert found[1].tolist() == [30.0, 40.0]
    assert optimizer.param_groups[0]["clipping_memory_seen"].tolist() == [0, 0]


def always(alpha, beta, draw):
    return alpha == alpha


OWN_TYPES = {
    "always_norm": Clipping("global", Constant(1.0), always),
    "always_layer": Clipping("layer", Constant(1.0), always),
    "always_entry": Clipping("coordinate", Constant(1.0), always),
    "always_unit": Clipping("unit", Constant(1.0), always),
}


@pytest.mark.parametrize("arrays", ["host", "accelerator"])
@pytest.mark.parametrize("clipping_type", OWN_TYPES)
@pytest.mark.usefixtures("table")
def test_decision_that_says_yes_to_short_gradients_does_not_lengthen_them(clipping_type, arrays, request):
    register_clipping(clipping_type, OWN_TYPES[clipping_type])
    if arrays == "accelerator":
        request.getfixturevalue("no_host")
    params = parameters(torch.tensor([0.03, 0.04]))
    optimizer = ClippedSGD(params, lr=0.0, clipping_type=clipping_type)
    optimizer.step()
    assert params[0].grad.tolist() == pytest.approx([0.03, 0.04])
    assert optimizer.clipping_stats()["clipped_steps"] == 0


@pytest.mark.usefixtures("table")
def test_thresholds_of_entries_come_from_finite_norms_only():
    register_clipping("quantile_entry", Clipping("coordinate", Quantile(0.5)))
    params = parameters(torch.tensor([1.0, -3.0]))
    optimizer = ClippedSGD(params, lr=0.0, clipping_type="quantile_entry", nonfinite="propagate")
    for grad in ([1.0, -3.0], [inf, 2.0], [nan, 9.0]):
        params[0].grad = torch.tensor(grad)
        optimizer.step()
    assert params[0].grad[1] == 3.0
    assert optimizer.param_groups[0]["clipping_memory_count"].tolist() == [1]


@pytest.mark.parametrize(("clipping_type", "make"), [*zip(TYPES, cycle([ClippedSGD, ClippedAdamW]), strict=False)])
def test_gradient_whose_entries_share_memory_is_clipped_as_a_dense_one(clipping_type, make):
    def run(dense):
        params = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(4))]
        optimizer = make(params, lr=0.1, clipping_type=clipping_type)
        for _ in range(3):
            for p in params:
                (grad,) = torch.autograd.grad(7 * p.sum(), p)
                assert 0 in grad.stride()
                p.grad = grad.contiguous() if dense else grad
            optimizer.step()
        return [p.detach() for p in params], [p.grad for p in params], optimizer.grad_norms()

    torch.testing.assert_close(run(dense=False), run(dense=True))


def test_gradient_whose_entries_share_memory_is_clipped_by_hand():
    p = nn.Parameter(torch.ones(4))
    for clip in (lambda: clip_gradients_(p, "norm", 1.0), GradientClipper(p, "norm", 1.0).step):
        p.grad = torch.ones(()).expand(4)
        assert clip() == 2.0
        assert p.grad.tolist() == [0.5] * 4


def test_skipped_steps_are_told_of_at_powers_of_ten_in_a_row():
    (p,) = parameters(torch.ones(3))
    optimizer = ClippedSGD([p], lr=0.1)
    told = []
    for step in range(1, 126):
        p.grad = torch.full((3,), 1.0 if step == 5 else nan)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        told += [step] * len(caught)
        assert all(issubclass(one.category, ClippingWarning) for one in caught)
    assert told == [1, 6, 15, 105]
    assert optimizer.clipping_stats()["skipped_steps"] == 124


class ClippedAdagrad(Clipped, torch.optim.Adagrad):
    """Adagrad with gradient clipping."""


@pytest.mark.parametrize("make", [ClippedAdagrad, ClippedSGD, ClippedAdamW])
@pytest.mark.parametrize("odd", ["gradient", "weight", "state"])
def test_fused_kernels_are_not_used_where_memory_lies_in_another_order(make, odd):
    def run(fused):
        weight = torch.arange(12.0).view(3, 4) / 12
        p = nn.Parameter(weight.t().contiguous().t() if odd == "weight" else weight)
        momentum = {"momentum": 0.9} if make is ClippedSGD else {}
        optimizer = make([p], lr=0.1, clipping_level=5.0, fused=fused, **momentum)
        for step in range(4):
            grad = torch.arange(12.0).view(3, 4).roll(step)
            p.grad = grad.t().contiguous().t() if odd == "gradient" else grad
            optimizer.step()
            if odd == "state" and step == 1:
                for key, value in optimizer.state[p].items():
                    if isinstance(value, torch.Tensor) and value.dim() == 2:
                        optimizer.state[p][key] = value.t().contiguous().t()
        return p.detach().clone()

    torch.testing.assert_close(run(fused=True), run(fused=False))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float16, torch.float64])
@pytest.mark.parametrize("fused", [None, True])
def test_step_counts_of_another_type_in_a_checkpoint_are_taken(dtype, fused):
    def run(dtype):
        (p,) = parameters(torch.ones(3))
        optimizer = ClippedAdamW([p], lr=0.1, fused=fused)
        for step in range(6):
            p.grad = torch.full((3,), 1.0 + step)
            optimizer.step()
            if step == 2:
                state_dict = copy.deepcopy(optimizer.state_dict())
                state_dict["state"][0]["step"] = state_dict["state"][0]["step"].to(dtype)
                optimizer.load_state_dict(state_dict)
                optimizer.state[p]["step"] = optimizer.state[p]["step"].to(dtype)
        return p.detach(), optimizer.clipping_stats()["steps"], float(optimizer.state[p]["step"])

    found, expected = run(dtype), run(torch.float32)
    torch.testing.assert_close(found[0], expected[0])
    assert found[1:] == expected[1:] == (6, 6)


def test_interrupted_step_leaves_flags_and_attributes_as_they_were():
    """Interrupts one step at every line of this package and of torch's step that it runs."""

    def make():
        params = parameters(torch.full((3,), 30.0), torch.full((2, 2), 40.0))
        return params, ClippedSGD(params, lr=0.1, momentum=0.9, clipping_type="norm")

    def interrupted(at):
        params, optimizer = make()
        optimizer.step()
        for p in params:
            p.grad = torch.full_like(p, 50.0)
        seen = 0

        def trace(frame, event, argument):
            nonlocal seen
            name = frame.f_globals.get("__name__", "")
            if name.startswith("torch_clipped") or name == "torch.optim.sgd":
                if event == "line":
                    seen += 1
                    if seen == at:
                        sys.settrace(None)
                        signal.raise_signal(signal.SIGINT)
                return trace
            return None

        try:
            sys.settrace(trace)
            optimizer.step()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        group = optimizer.param_groups[0]
        left = {name for name in ("grad_scale", "found_inf") if getattr(optimizer, name, None) is not None}
        assert (group["fused"], group["foreach"], left) == (None, None, set()), f"after line {at}"
        return seen >= at

    at = 1
    while interrupted(at):
        at += 1
    assert at > 100


def test_rows_of_a_large_bfloat16_gradient_are_multiplied_in_float32():
    weight = torch.nn.Parameter(torch.ones(700, 100, dtype=torch.bfloat16))
    grad = torch.randn(700, 100, generator=torch.Generator().manual_seed(0)).bfloat16()
    optimizer = ClippedSGD([weight], lr=0.1, clipping_type="adaptive", clipping_level=0.01)
    weight.grad = grad.clone()
    optimizer.step()
    coefficients = (0.01 * 10 / torch.linalg.vector_norm(grad.double(), dim=1, keepdim=True)).clamp(max=1)
    torch.testing.assert_close(weight.grad.double(), grad.double() * coefficients, rtol=2**-8, atol=0.0)  # half a last digit


def test_units_of_a_gradient_that_is_sparse_in_two_dimensions_are_clipped():
    weight = torch.nn.Parameter(torch.ones(4, 5))
    dense = torch.zeros(4, 5)
    dense[1, 2], dense[1, 3], dense[3, 0] = 3.0, 4.0, 2.0
    optimizer = ClippedSGD([weight], lr=0.1, clipping_type="adaptive", clipping_level=0.01)
    weight.grad = dense.to_sparse()
    optimizer.step()
    rows = 0.01 * 5**0.5 / torch.tensor([1.0, 5.0, 1.0, 2.0])[:, None]
    torch.testing.assert_close(weight.grad.to_dense(), dense * rows)
