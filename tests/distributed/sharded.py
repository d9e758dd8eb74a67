"""Steps of the same optimizer on whole and on sharded parameters, for the workers."""

import math

import programs
import torch
import torch.distributed as dist
from support.versions import TORCH
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from torch_clipped._engine.sharding import is_sharded

SHAPES = ((7, 5), (5,), (), (3, 4, 2), (1, 6), (8, 8))


def layouts():
    """Ways to spread tensors of ``SHAPES`` over the ranks: of each tensor the mesh and its placements, or None."""
    world, rows, columns, copies = dist.get_world_size(), Shard(0), Shard(1), Replicate()
    line = programs.mesh(world, names=("ranks",))
    alone = programs.mesh(world, 1, names=("ranks", "one"))["one"]
    found = {
        "rows": [(line, [rows if shape else copies]) for shape in SHAPES],
        "last dimension": [(line, [Shard(len(shape) - 1) if shape else copies]) for shape in SHAPES],
        "some": [(line, [rows]), None, None, (line, [columns]), (line, [copies]), (line, [columns])],
    }
    found["one rank"] = [(alone, [rows if shape else copies]) for shape in SHAPES]
    if world == 4:
        square = programs.mesh(2, 2, names=("data", "model"))
        found["square"] = [(square, [copies, rows if shape else copies]) for shape in SHAPES]
        found["two meshes"] = [
            (square, [rows, columns]),
            (square, [copies, rows]),
            None,
            (square, [columns, Shard(2)]),
            (line, [columns]),
            (square["data"], [rows]),
        ]
    return found


ALIKE = {"src_data_rank": None} if TORCH >= (2, 7) else {}  # all ranks have the same: nothing is sent


def tensors(seed, factor=1.0, dtype=torch.float32):
    """Tensors of ``SHAPES``, the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=generator, dtype=torch.float64) * factor).to(dtype) for shape in SHAPES]


def heavy_tailed(step, dtype=torch.float32):
    """Gradients of step ``step``."""
    generator = torch.Generator().manual_seed(1000 + step)
    return tensors(step, math.exp(1.5 * torch.randn((), generator=generator).item()), dtype)


def spread(tensor, layout, partial=False):
    """A copy of a tensor as its layout says; with ``partial`` as ranks' parts of sums where it would be replicated."""
    if layout is None:
        return tensor.clone()
    mesh, placements = layout
    whole = distribute_tensor(tensor.clone(), mesh, placements, **ALIKE)
    if not partial:
        return whole
    summed = [dim for dim, placement in enumerate(placements) if placement.is_replicate()]
    part = whole.to_local() / math.prod(mesh.size(dim) for dim in summed)
    placements = [Partial() if dim in summed else placement for dim, placement in enumerate(placements)]
    return DTensor.from_local(part, mesh, placements, shape=tensor.shape, stride=tensor.stride())


def whole(tensor):
    """All of a tensor, on every rank."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach().clone()


def parameters(layout=None, dtype=torch.float32):
    """Parameters with the same start, whole or spread."""
    layout = layout or [None] * len(SHAPES)
    return [torch.nn.Parameter(spread(t, one)) for t, one in zip(tensors(7, dtype=dtype), layout, strict=True)]


def step(optimizer, params, grads, layout=None, partial=False):
    """Step with these whole gradients, which are spread as the layout says."""
    for p, grad, one in zip(params, grads, layout or [None] * len(params), strict=True):
        p.grad = None if grad is None else spread(grad, one, partial)
    optimizer.step()
