"""Norms of gradients, and of the noise in them, at constant weights."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .._engine.compat import fork_random_state
from .._engine.norms import total_norm
from .._engine.validation import integer

__all__ = ["gradient_lengths", "noise_lengths"]

Batch = TypeVar("Batch")
Loss = Callable[[nn.Module, Batch], Tensor]

_CHUNK = 1 << 20  # entries subtracted at a time
_SAME = 1e-4  # allowed relative drift of a batch's loss and gradient norm between passes: accelerators do not repeat all digits


def gradient_lengths(model: nn.Module, loss: Loss[Batch], loader: Iterable[Batch], batches: int | None = None) -> Tensor:
    """Measure the norms ||g_i|| of the gradients of single batches at the present weights.

    Weights, ``p.grad``, buffers (running statistics), the training mode and the random states of torch, numpy and Python are
    restored afterwards, also after an exception. Hooks on ``p.grad`` are not called. Frozen parameters do not count. A loader
    with batches of one sample gives the norms of the gradients of single samples.

    Args:
        model: the model, used in its present mode: call ``model.eval()`` first if dropout shall not count as noise.
        loss: ``loss(model, batch)`` returns a tensor with one element, as for :meth:`torch_clipped.OptimizersCollector.step`.
        loader: batches for ``loss``.
        batches (int): the number of batches, from the first on. Default: None, all.

    Returns:
        1-D float64 tensor on the CPU, with one norm for each batch; inf or NaN if a gradient is not finite.

    Raises:
        ValueError: the model has nothing to train, there is no batch, or ``loss`` does not return a tensor with one element.

    Example:
        >>> import torch
        >>> from torch_clipped.heavy_tails import gradient_lengths
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> gradient_lengths(model, lambda model, batch: model(batch).sum(), [torch.tensor([[3.0, 4.0]]), torch.ones(1, 2)])
        tensor([5.0000, 1.4142], dtype=torch.float64)
    """
    if batches is not None:
        integer("batches", batches, smallest=1)
    lengths: list[float] = []
    _visit(model, loss, loader, batches, lambda value, gradient: lengths.append(total_norm(gradient)))
    return torch.tensor(lengths, dtype=torch.float64, device="cpu")


def noise_lengths(model: nn.Module, loss: Loss[Batch], loader: Iterable[Batch], batches: int | None = None) -> Tensor:
    """Measure the norms ||g_i - g|| of the noise in the gradients of single batches at the present weights; g is their mean.

    The first of two passes over the same batches computes the mean, the second the distances from the mean. Both draw the same
    random numbers (dropout). Only the mean and one gradient are in memory at a time. A batch whose loss or gradient norm differs
    between the passes raises ValueError. A loader that shuffles by the global random state gives the same batches twice; a loader
    with its own generator or persistent workers does not. All notes of :func:`gradient_lengths` on model and loss apply here,
    too.

    Args:
        model: the model, used in its present mode.
        loss: ``loss(model, batch)`` returns a tensor with one element.
        loader: batches that can be iterated twice.
        batches (int): the number of batches, from the first on, at least 2. Default: None, all.

    Returns:
        1-D float64 tensor on the CPU, with one norm for each batch.

    Raises:
        ValueError: the model has nothing to train, there are fewer than two batches, the loader cannot be iterated twice or
            gives other batches the second time, or a gradient is not finite.

    Example:
        >>> import torch
        >>> from torch_clipped.heavy_tails import noise_lengths
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> noise_lengths(model, lambda model, batch: model(batch).sum(), [torch.zeros(1, 2), torch.tensor([[6.0, 8.0]])])
        tensor([5., 5.], dtype=torch.float64)

    References:
        Jingzhao Zhang, Sai Praneeth Karimireddy, Andreas Veit, Seungyeon Kim, Sashank J. Reddi, Sanjiv Kumar, Suvrit Sra, Why
        are Adaptive Methods Good for Attention Models?, 2020, https://arxiv.org/abs/1912.03194.

        Eduard Gorbunov, Marina Danilova, Alexander Gasnikov, Stochastic Optimization with Heavy-Tailed Noise via Accelerated
        Gradient Clipping, 2020, https://arxiv.org/abs/2005.10785.
    """
    if batches is not None:
        integer("batches", batches, smallest=2)
    if isinstance(loader, Iterator):
        raise ValueError(f"loader must be one that can be gone through twice, such as a list, got {type(loader).__name__}")
    mean: list[Tensor] = []
    seen: list[tuple[float, float]] = []
    lengths: list[float] = []

    def first_time(value: float, gradient: list[Tensor]) -> None:
        seen.append((value, total_norm(gradient)))
        if not all(map(math.isfinite, seen[-1])):
            raise ValueError(f"gradients must be finite, but batch {len(seen) - 1} has {_described(seen[-1])}")
        if not mean:
            mean.extend(torch.zeros_like(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in gradient)
        for average, g in zip(mean, gradient, strict=True):
            average.mul_(1 - 1 / len(seen)).add_(g, alpha=1 / len(seen))

    def second_time(value: float, gradient: list[Tensor]) -> None:
        _compare(len(lengths), seen[len(lengths)] if len(lengths) < len(seen) else None, (value, total_norm(gradient)))
        lengths.append(_distance(gradient, mean))

    _visit(model, loss, loader, batches, first_time)
    if len(seen) < 2:
        raise ValueError("loader must give at least two batches, got one, whose gradient is the mean")
    _visit(model, loss, loader, batches, second_time)
    if len(lengths) < len(seen):
        _compare(len(lengths), seen[len(lengths)], None)
    return torch.tensor(lengths, dtype=torch.float64, device="cpu")


def _visit(
    model: nn.Module,
    loss: Loss[Batch],
    loader: Iterable[Batch],
    batches: int | None,
    visit: Callable[[float, list[Tensor]], None],
) -> None:
    """Call ``visit`` with the loss and the gradient of every batch, without keeping them."""
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("model must have parameters that require a gradient, got none")
    count = 0
    with _state_kept(model), torch.inference_mode(False), torch.enable_grad():
        for batch in islice(loader, batches):
            value = loss(model, batch)
            if not isinstance(value, Tensor) or value.numel() != 1:
                what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__} {value!r}"
                raise ValueError(f"loss must return a tensor with one element, got {what}")
            gradient = torch.autograd.grad(value, params, materialize_grads=True)
            visit(value.item(), [g.to_dense() if g.is_sparse else g for g in gradient])
            del gradient  # before the next one is made
            count += 1
    if count == 0:
        raise ValueError("loader must give at least one batch, got none; an iterator that is used up gives none either")


@contextmanager
def _state_kept(model: nn.Module) -> Iterator[None]:
    """Restore the buffers and the modes of all modules, and the random states, on leaving the context."""
    modules = [(module, module.training, dict(module._buffers)) for module in model.modules()]
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]
    python, legacy = random.getstate(), np.random.get_state()
    with fork_random_state():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
            for module, training, buffers in modules:
                module.training = training
                module._buffers.clear()
                module._buffers.update(buffers)
            with torch.no_grad():
                for buffer, value in values:
                    buffer.copy_(value)


def _distance(gradient: Sequence[Tensor], mean: Sequence[Tensor]) -> float:
    """Return the norm of gradient - mean, in parts: the whole difference would be a third gradient in memory."""
    parts = []
    for g, average in zip(gradient, mean, strict=True):
        shape = g.shape or (1,)
        rows = max(1, _CHUNK * shape[0] // max(1, g.numel()))
        pairs = zip(torch.split(g.reshape(shape), rows), torch.split(average.reshape(shape), rows), strict=True)
        parts += [total_norm([one - other]) for one, other in pairs]
    return math.hypot(*parts)


def _described(found: tuple[float, float] | None) -> str:
    return "none" if found is None else f"loss {found[0]:.6g} and gradient norm {found[1]:.6g}"


def _compare(batch: int, before: tuple[float, float] | None, now: tuple[float, float] | None) -> None:
    if before and now and all(math.isclose(a, b, rel_tol=_SAME) for a, b in zip(before, now, strict=True)):
        return
    raise ValueError(
        f"loader must give the same batches in both passes, but batch {batch} had {_described(before)}, then {_described(now)}: "
        "do not shuffle, or make a list of the batches"
    )
