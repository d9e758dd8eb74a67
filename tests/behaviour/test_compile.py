"""Whole training steps under torch.compile: the weights of the eager ones, and nothing is compiled again from step to step."""

import pytest
import torch
from support.versions import needs_torch
from torch._dynamo.utils import counters

from torch_clipped import ClippedAdamW, ClippedSGD

WITH_INDUCTOR = [pytest.mark.slow, needs_torch("2.9", "inductor in such an environment")]
BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=WITH_INDUCTOR)]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
    ),  # torch looks at the loss
    pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning"),  # torch advises 3.13.1
]


def train(cls, clipping_type, backend, steps=8, warm_up=3):
    """The weights and statistics after some steps, and how many graphs were compiled; an error if one is after the warm-up."""
    torch.manual_seed(0)
    torch.compiler.reset()
    counters.clear()
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    arguments = {"momentum": 0.9} if cls is ClippedSGD else {}
    optimizer = cls(model.parameters(), lr=0.05, clipping_type=clipping_type, clipping_window=4, **arguments)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def step(inputs, targets):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss

    compiled = step if backend is None else torch.compile(step, backend=backend)
    for number in range(steps):
        with torch._dynamo.config.patch(error_on_recompile=number >= warm_up):
            compiled(torch.randn(6, 8), torch.randn(6, 1))
        schedule.step()
    return [p.detach().clone() for p in model.parameters()], optimizer.clipping_stats(), counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clipping_type", ["norm", "auto"])
@pytest.mark.parametrize("cls", [ClippedSGD, ClippedAdamW])
def test_compiled_training_is_the_eager_one_and_is_compiled_once(cls, clipping_type, backend):
    weights, stats, _ = train(cls, clipping_type, backend=None)
    compiled_weights, compiled_stats, graphs = train(cls, clipping_type, backend)
    for one, other in zip(weights, compiled_weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert compiled_stats == pytest.approx(stats, rel=1e-4)
    assert stats["clipped_steps"] > 0
    assert graphs == 1  # of model and loss; the graph breaks at backward() and step()
