"""Checkpoints that an earlier engine has written load, and the runs go on as they did there."""

from pathlib import Path

import pytest
import torch

from torch_clipped import ClippedAdamW, ClippedSGD

DATA = Path(__file__).parent / "data"
CASES = {
    "auto": (ClippedSGD, {"lr": 0.1, "momentum": 0.9}),
    "layer_wise_zscore": (ClippedAdamW, {"lr": 0.01}),
    "zclip": (ClippedSGD, {"lr": 0.1}),
}


def gradients(step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(4, 3, generator=generator) * (1 + 5 * (step % 7 == 3)), torch.randn(3, generator=generator)]


@pytest.mark.parametrize("clipping_type", CASES)
def test_older_checkpoint_goes_on(clipping_type):
    found = torch.load(DATA / f"{clipping_type}.pt", weights_only=True)
    params = [torch.nn.Parameter(weight) for weight in found["weights"]]
    cls, options = CASES[clipping_type]
    optimizer = cls(params, clipping_type=clipping_type, **options)
    optimizer.load_state_dict(found["optimizer"])
    assert optimizer.clipping_stats() == pytest.approx(found["stats"], nan_ok=True)
    for step in range(30, 45):
        for p, g in zip(params, gradients(step), strict=True):
            p.grad = g
        optimizer.step()
    torch.testing.assert_close([p.detach() for p in params], found["later"], rtol=1e-5, atol=1e-6)
    assert optimizer.clipping_stats()["steps"] == 45
