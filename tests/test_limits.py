"""Spikes that are skipped, caps and warm-ups: every type on both kinds of arithmetic against the slow oracle."""

import math

import pytest
import torch
from reference import ReferenceClipper, reference_adam_step, reference_sgd_step

from torch_clipped import ClippedAdamW, ClippedSGD
from torch_clipped.clipping import CLIPPING_TYPES
from torch_clipped.decisions import uniform

SHAPES = [(3, 4), (5,), (2, 3, 2, 2)]
STEPS = 60
LEVELS = {"auto": 0.6, "linear_rand_auto": 0.6, "quadratic_rand_auto": 0.6, "coord_wise": 2.0, "norm": 6.0, "layer_wise": 4.0}
LEVELS |= {"linear_rand_norm": 6.0, "quadratic_rand_norm": 6.0, "adaptive": 2.0}
TYPES = [name for name, rule in CLIPPING_TYPES.items() if rule is not None]
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
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("clipping_type", TYPES)
def test_steps_with_a_spike_are_skipped(clipping_type, name, arithmetic):
    warm_up = 20 if clipping_type == "adagc" else None
    _, oracle = check_against_the_oracle(name, clipping_type, action="skip", warm_up=warm_up)
    assert 0 < oracle.skipped_steps < oracle.steps
    assert oracle.clipped_steps == oracle.skipped_steps


@BOTH
@pytest.mark.parametrize("action", ["clip", "skip"])
@pytest.mark.parametrize("clipping_type", TYPES)
def test_no_block_is_left_longer_than_the_cap(clipping_type, action, arithmetic):
    _, oracle = check_against_the_oracle("adamw", clipping_type, action=action, cap=CAPS.get(clipping_type, 3.0))
    assert oracle.clipped_steps > oracle.skipped_steps


@BOTH
@pytest.mark.parametrize("warm_up", [0, 5, 20])
@pytest.mark.parametrize("clipping_type", REMEMBERING)
def test_types_do_not_clip_before_the_end_of_their_warm_up(clipping_type, warm_up, arithmetic):
    _, oracle = check_against_the_oracle("sgd", clipping_type, warm_up=warm_up)
    assert oracle.clipped_steps > 0
