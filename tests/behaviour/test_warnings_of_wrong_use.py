"""Clipping that is surely wrong is told once, and nothing else is."""

import warnings

import pytest
import torch

from torch_clipped import ClippedSGD, ClippingWarning, GradientClipper
from torch_clipped._engine.monitor import StepMonitor


def train(optimizer, param, gradient, steps=650):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(steps):
            param.grad = gradient(step)
            optimizer.step()
    return [str(w.message) for w in caught if issubclass(w.category, ClippingWarning)]


def make(**options):
    param = torch.nn.Parameter(torch.zeros(20))
    return param, ClippedSGD([param], lr=0.0, **options)


def noise(step, scale=1.0):
    return torch.randn(20, generator=torch.Generator().manual_seed(step)) * scale


def test_level_in_the_wrong_unit_is_told_once():
    param, optimizer = make(clipping_level=1e-5)
    messages = train(optimizer, param, noise)
    assert len(messages) == 1
    assert "clipping_level" in messages[0]


def test_strong_clipping_that_is_not_absurd_is_not_told():
    param, optimizer = make(clipping_level=0.01)
    assert train(optimizer, param, noise) == []
    param, optimizer = make(clipping_level=1e-5)
    assert train(optimizer, param, lambda step: noise(step, 1e-5 if step % 50 == 0 else 1.0)) == []


@pytest.mark.parametrize("level", [0.5, 1.0, 100.0])
@pytest.mark.parametrize(("max_norm", "scale"), [(1.0, 1.0), (10.0, 100.0), (0.25, 0.2), (0.02, 0.01)])
def test_gradient_that_the_loop_has_clipped_already_is_told_once(max_norm, scale, level):
    param, optimizer = make(clipping_level=level)

    def gradient(step):
        param.grad = noise(step, scale)
        assert torch.nn.utils.clip_grad_norm_([param], max_norm) > max_norm
        return param.grad

    messages = train(optimizer, param, gradient)
    assert len(messages) == 1
    assert f"norm {max_norm:g}" in messages[0]
    assert "clip_grad_norm_" in messages[0]


def test_ordinary_gradients_are_not_told():
    for gradient in (
        noise,
        lambda step: torch.ones(20),  # the gradient of a linear loss
        lambda step: torch.ones(20) * (1 - 1e-7 * step),  # a slow training without noise
        lambda step: torch.zeros(20),
        lambda step: torch.ones(20) * (1 + 1e-5 * (step % 2)),  # two that alternate
        lambda step: torch.ones(20) * 1e-4 * (1 + 1e-3 * (step % 2)),  # two small ones
    ):
        param, optimizer = make(clipping_level=1.0)
        assert train(optimizer, param, gradient) == []


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-3, 1e-6])
def test_one_gradient_again_and_again_but_for_rounding_is_not_told(scale):
    param, optimizer = make(clipping_level=1e9)
    assert train(optimizer, param, lambda step: noise(0, scale) * (1 + 5e-7 * noise(step)), steps=200) == []
    norms = optimizer.grad_norms()
    assert norms.max() < (1 + StepMonitor.SAME) * norms.min()
    assert (norms.diff()[1:] * norms.diff()[:-1] < 0).sum() > 50


def test_warning_points_at_the_line_that_steps():
    param, optimizer = make(clipping_level=1e-6)

    def run():
        for step in range(200):
            param.grad = noise(step)
            optimizer.step()

    with pytest.warns(ClippingWarning) as caught:
        run()
    assert caught[0].filename == __file__


def test_editing_the_level_does_not_start_the_watch_anew():
    param, optimizer = make(clipping_level=1e-6)

    def gradient(step):
        optimizer.param_groups[0]["clipping_level"] = 1e-6 + 1e-9 * step
        return noise(step)

    assert len(train(optimizer, param, gradient)) == 1


def test_clipping_by_hand_is_watched_too():
    param = torch.nn.Parameter(torch.zeros(20))
    assert len(train(GradientClipper([param], "norm", 1e-5), param, noise)) == 1
