"""Steps, and whole training steps, under torch.compile: the weights of the eager ones, and nothing is compiled again."""

import json
import subprocess
import sys

import pytest
import torch
from support.assertions import assert_close
from support.loops import CLASSES
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


@pytest.mark.parametrize(
    ("name", "clipping_type", "backend"),
    [
        *(("SGD", name, "eager") for name in ("none", "norm", "layer_wise_auto", "linear_rand_auto", "adaptive")),
        *(("AdamW", name, "eager") for name in ("none", "norm")),
        *((name, "norm", "aot_eager") for name in ("SGD", "AdamW")),
    ],
)
def test_compiled_step_is_the_eager_one(problem, name, clipping_type, backend):
    clipped_class, _, options = CLASSES[name]
    torch.compiler.reset()
    runs = []
    for compiled in (False, True):
        params = problem.parameters()
        optimizer = clipped_class(params, **options, clipping_type=clipping_type, clipping_window=4)
        step = torch.compile(optimizer.step, backend=backend) if compiled else optimizer.step
        for number in range(5):
            for p, g in zip(params, problem.gradients(number), strict=True):
                p.grad = g
            step()
        runs.append((problem.copies(params), optimizer.clipping_stats()))
    (weights, stats), (compiled_weights, compiled_stats) = runs
    assert_close(compiled_weights, weights, 1e-5)
    assert compiled_stats == pytest.approx(stats, rel=1e-5, nan_ok=True)
    assert stats["steps"] == 5 or clipping_type == "none"


FIRST_STEP = """
import torch
from torch_clipped import ClippedSGD
weight = torch.nn.Parameter(torch.zeros(2))
weight.grad = torch.tensor([3.0, 4.0])
optimizer = ClippedSGD([weight], lr=1.0)
torch.compile(optimizer.step, backend="eager")()
print(weight.tolist())
"""


def test_first_step_of_a_process_may_be_a_compiled_one():
    done = subprocess.run([sys.executable, "-c", FIRST_STEP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx([-0.6, -0.8])
