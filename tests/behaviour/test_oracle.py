"""Every type, optimizer, implementation and data type against the slow oracle."""

import math

import pytest
import torch
from support.reference import ReferenceClipper, reference_adam_step, reference_sgd_step

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD
from torch_clipped.clipping import CLIPPING_TYPES
from torch_clipped.decisions import uniform

SHAPES = [(3, 4), (5,), (), (2, 3, 2, 2)]
STEPS = 40
OPTIMIZERS = {
    "sgd": (ClippedSGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": (ClippedSGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "maximize": True}),
    "adam": (ClippedAdam, {"lr": 0.05, "weight_decay": 0.03}),
    "adamw": (ClippedAdamW, {"lr": 0.05, "weight_decay": 0.01, "amsgrad": True}),
}
IMPLEMENTATIONS = {
    "chosen": {},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "loop": {"foreach": False, "fused": False},
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2**-7}
LEVELS = {"auto": 0.6, "linear_rand_auto": 0.6, "quadratic_rand_auto": 0.6, "coord_wise": 0.5}


def gradients(step, dtype):
    """Heavy-tailed lengths, now and then a missing, a zero, or no gradient at all; rounded to ``dtype``."""
    generator = torch.Generator().manual_seed(step)
    scale = math.exp(1.5 * torch.randn((), generator=generator).item())
    grads = [(torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype) for shape in SHAPES]
    if step % 5 == 3:
        grads[1] = None
    if step % 7 == 4:
        grads[0].zero_()
    if step % 11 == 6:
        grads = [None if g is None else g.zero_() for g in grads]
    return grads


def flat(tensors):
    return [None if t is None else t.double().flatten().tolist() for t in tensors]


def start(dtype):
    generator = torch.Generator().manual_seed(100)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def reference_step(name, weights, grads, state):
    options = {k: v for k, v in OPTIMIZERS[name][1].items() if k != "lr"}
    if name in ("sgd", "nesterov"):
        reference_sgd_step(weights, grads, state, 0.05, **options)
    else:
        decay, amsgrad = options["weight_decay"], options.get("amsgrad", False)
        reference_adam_step(weights, grads, state, 0.05, (0.9, 0.999), 1e-8, decay, decoupled=name == "adamw", amsgrad=amsgrad)


def assert_close(actual, wanted, tolerance, what):
    for a, w in zip(actual, wanted, strict=True):
        assert (a is None) == (w is None), what
        if a is not None:
            bound = tolerance * max(map(abs, w))
            assert all(abs(x - y) <= bound for x, y in zip(a, w, strict=True)), what


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clipping_type", [name for name, rule in CLIPPING_TYPES.items() if rule is not None])
def test_clipped_gradients_and_weights_are_the_oracles(clipping_type, name, implementation, dtype):
    optimizer_class, options = OPTIMIZERS[name]
    params, level = start(dtype), LEVELS.get(clipping_type)
    arguments = {"clipping_type": clipping_type, "clipping_level": level, "clipping_window": 8, "clipping_seed": 3}
    optimizer = optimizer_class(params, **options, **IMPLEMENTATIONS[implementation], **arguments)
    oracle = ReferenceClipper(clipping_type, level, window=8)
    weights, state = flat(params), {}
    for step in range(STEPS):
        grads = gradients(step, dtype)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        number = uniform(3, 0, oracle.steps)
        wanted = oracle.clip(flat(grads), weights=flat(params), uniform=number, shapes=SHAPES)
        optimizer.step()
        assert_close(flat([p.grad for p in params]), wanted, TOLERANCE[dtype], f"gradient of step {step}")
        if dtype != torch.bfloat16:  # rounded weights drift from the oracle's
            reference_step(name, weights, wanted, state)
            assert_close(flat(params), weights, 10 * TOLERANCE[dtype], f"weights after step {step}")
    stats = optimizer.clipping_stats()
    assert (stats["steps"], stats["clipped_steps"]) == (oracle.steps, oracle.clipped_steps)
    assert oracle.clipped_steps > 0
    if not math.isnan(stats["grad_norm"]):
        torch.testing.assert_close(optimizer.grad_norms(), torch.tensor(oracle.grad_norms).double(), rtol=1e-6, atol=0)
        assert stats["grad_norm"] == pytest.approx(oracle.grad_norms[-1], rel=1e-6)


@pytest.mark.parametrize("norm_type", [1, 1.5, 2, 3, 17, math.inf])
@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise", "auto"])
def test_any_norm_type_is_the_oracles(clipping_type, norm_type):
    params, level = start(torch.float64), LEVELS.get(clipping_type)
    optimizer = ClippedSGD(params, clipping_type=clipping_type, clipping_level=level, norm_type=norm_type)
    oracle = ReferenceClipper(clipping_type, level, norm_type=norm_type)
    for step in range(10):
        grads = gradients(step, torch.float64)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        wanted = oracle.clip(flat(grads))
        optimizer.step()
        assert_close(flat([p.grad for p in params]), wanted, 1e-12, f"gradient of step {step}")
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(oracle.grad_norms[-1], rel=1e-12)


@pytest.mark.parametrize("clipping_type", [name for name, rule in CLIPPING_TYPES.items() if rule is not None])
def test_accelerator_path_takes_the_same_steps_as_the_host_path(clipping_type, request):
    """The tensor arithmetic of accelerators, run on the CPU by denying that the CPU is the host."""

    def run():
        params, level = start(torch.float32), LEVELS.get(clipping_type)
        arguments = {"clipping_type": clipping_type, "clipping_level": level, "clipping_window": 8}
        optimizer = ClippedSGD(params, lr=0.05, momentum=0.9, **arguments)
        for step in range(STEPS):
            for p, g in zip(params, gradients(step, torch.float32), strict=True):
                p.grad = g
            if step == 20:
                params[2].grad = torch.tensor(math.inf)
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in params]), optimizer.clipping_stats(), optimizer.grad_norms()

    with pytest.warns(RuntimeWarning, match="not finite"):
        weights, stats, norms = run()
    request.getfixturevalue("no_host")
    device_weights, device_stats, device_norms = run()
    torch.testing.assert_close(device_weights, weights, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(device_norms, norms, rtol=1e-6, atol=0)
    assert device_stats == pytest.approx(stats, rel=1e-5, nan_ok=True)
    assert stats["skipped_steps"] == 1


@pytest.mark.parametrize("clipping_type", ["layer_wise_auto", "zscore", "layer_wise_zscore", "adaptive", "zclip", "adagc"])
@pytest.mark.parametrize("accelerator", [False, True])
def test_adaptive_types_over_200_steps_with_spikes(clipping_type, accelerator, request):
    """Long enough for every warm-up and for the window to wrap; a late parameter, zeros, and spikes of 1,000 times the length."""
    if accelerator:
        request.getfixturevalue("no_host")
    params = start(torch.float64)
    optimizer = ClippedSGD(params, lr=0.01, momentum=0.5, clipping_type=clipping_type, clipping_window=50)
    oracle = ReferenceClipper(clipping_type, window=50)
    for step in range(200):
        grads = gradients(step, torch.float64)
        if step < 130:
            grads[2] = None
        if step % 20 == 19:
            grads = [None if g is None else 1000 * g for g in grads]
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        wanted = oracle.clip(flat(grads), weights=flat(params), shapes=SHAPES)
        optimizer.step()
        assert_close(flat([p.grad for p in params]), wanted, 1e-9, f"gradient of step {step}")
        assert optimizer.clipping_stats()["clipped_steps"] == oracle.clipped_steps
    assert oracle.clipped_steps >= 5
    assert oracle.clipped_steps < oracle.steps or clipping_type == "adaptive"
