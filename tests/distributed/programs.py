"""What functions need that run in the processes of a group: a model, data with heavy tails, training under DDP."""

from contextlib import contextmanager
from functools import cache, partial
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from torch_clipped import mixin
from torch_clipped._engine.current_sets import CurrentSets


@contextmanager
def device_arithmetic():
    """Gives optimizers that are made within the arithmetic of accelerators, on the CPU."""
    with patch.object(mixin, "CurrentSets", partial(CurrentSets, is_accelerated=True)):
        yield


@cache
def mesh(*shape, names=None):
    """The mesh of this shape, made once: to make one takes all ranks longer than a step."""
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


class Model(torch.nn.Module):
    """Two layers; on demand a third that every third step uses and a fourth that none does."""

    def __init__(self, with_unused=False):
        super().__init__()
        torch.manual_seed(7)
        self.first, self.second = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)
        if with_unused:
            self.sometimes, self.never = torch.nn.Linear(4, 3), torch.nn.Linear(2, 2)

    def forward(self, inputs, step):
        outputs = self.second(torch.tanh(self.first(inputs)))
        return outputs + self.sometimes(inputs) if hasattr(self, "sometimes") and step % 3 == 0 else outputs


def loss_of(model, step, rank):
    """The loss of a rank's own batch: a mean squared error, times a factor whose tail is heavy."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    inputs, outputs = torch.randn(8, 4, generator=generator), torch.randn(8, 3, generator=generator)
    return (model(inputs, step) - outputs).square().mean() * (2 * torch.randn((), generator=generator)).exp()


def losses(model, steps, distributed, ranks=2):
    """The loss of each step: of this rank's batch, for gradients that are averaged over the ranks, or the mean of all ranks."""
    for step in steps:
        if distributed:
            yield loss_of(model, step, dist.get_rank())
        else:
            yield sum(loss_of(model, step, rank) for rank in range(ranks)) / ranks


def under_ddp(model, **arguments):
    """The model under DDP; from here on the ranks' global random states differ."""
    model = DistributedDataParallel(model, **arguments)
    torch.manual_seed(100 + dist.get_rank())
    torch.rand(dist.get_rank())
    return model


def weights_of(model):
    """Copies of all weights, one after the other."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])
