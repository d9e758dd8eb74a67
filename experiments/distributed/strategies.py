"""Three wrappers of torch for the Transformer on many processes; none of them handles clipping.

The LSTM is not among the models: torch has no tensor-parallel LSTM, and ``fully_shard`` splits the flat weights that its kernels
need.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from ..common.language_models import Transformer
from .processes import Processes


class Strategy(NamedTuple):
    """Function that wraps a model for many processes, and whether each process gets a part of the batch or all of it."""

    wrap: Callable[[Transformer, Processes], nn.Module]
    shares_batch: bool


def _alone(model: Transformer, processes: Processes) -> nn.Module:
    return model


def _data_parallel(model: Transformer, processes: Processes) -> nn.Module:
    return DistributedDataParallel(model)


def _fully_sharded(model: Transformer, processes: Processes) -> nn.Module:
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)  # the loss does not change the view
    mesh = _mesh(processes)
    for layer in model.layers.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _tensor_parallel(model: Transformer, processes: Processes) -> nn.Module:
    """Split the wide matrices; attention, embeddings and norms stay plain tensors, the same in all processes."""
    plan = {
        "layers.layers.*.linear1": ColwiseParallel(),
        "layers.layers.*.linear2": RowwiseParallel(),
        "logits": ColwiseParallel(output_layouts=Replicate()),
    }
    return parallelize_module(model, _mesh(processes), plan)


def _mesh(processes: Processes) -> DeviceMesh:
    return init_device_mesh(processes.device.type, (processes.count,))


ALONE = Strategy(_alone, shares_batch=False)
STRATEGIES = {
    "ddp": Strategy(_data_parallel, shares_batch=True),
    "fsdp2": Strategy(_fully_sharded, shares_batch=True),
    "tp": Strategy(_tensor_parallel, shares_batch=False),
}
