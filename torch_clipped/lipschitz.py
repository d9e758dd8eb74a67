"""Estimate of the curvature of a loss, for the constants of accelerated methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ._engine.sharding import is_sharded

__all__ = ["estimate_lipschitz"]

Target = TypeVar("Target", bound=Sized)
Loss = Callable[[Any, Target], Tensor]  # of the model's outputs and the targets

_PASSES = 100  # largest number of passes over the loader
_TOLERANCE = 1e-4  # largest residual of the eigenvector, relative to the eigenvalue, at the end of the iteration


def estimate_lipschitz(model: nn.Module, loss: Loss[Target], loader: Iterable[tuple[object, Target]]) -> float:
    """Estimate the local Lipschitz constant of the gradient, the largest absolute eigenvalue of the Hessian of the mean loss.

        beta_{k+1} v_{k+1} = H v_k - alpha_k v_k - beta_k v_{k-1}          alpha_k = <H v_k, v_k>, all v of norm 1
        L = the largest absolute eigenvalue of the tridiagonal matrix with alpha on its diagonal and beta beside it

    The Lanczos iteration multiplies the Hessian H with vectors, each in one pass over ``loader``. It ends if the residual
    ||H u - L u|| of the eigenvector u of L is at most L / 10,000, or after 100 passes. The estimate is a lower bound that holds
    for the present weights: elsewhere, and for single batches, the loss may be more curved. The start is random from a fixed
    seed; torch's random state is not used.

    Args:
        model: called with the inputs; call ``model.eval()`` first if it has dropout or batch norms. ``p.grad`` does not change.
        loss: ``loss(outputs, targets)``, a mean over the batch, twice differentiable.
        loader: pairs of inputs and targets that can be iterated many times; ``len(targets)`` is the number of samples.

    Returns:
        The estimate; 0 if the Hessian is 0.

    Raises:
        ValueError: the model has nothing to train or is sharded, the loader is empty, or the Hessian is not finite.

    Example:
        >>> import torch
        >>> from torch_clipped import estimate_lipschitz
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> loader = [(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))]
        >>> round(estimate_lipschitz(model, torch.nn.functional.mse_loss, loader), 3)
        10.0

    References:
        Cornelius Lanczos, An Iteration Method for the Solution of the Eigenvalue Problem of Linear Differential and Integral
        Operators, 1950, https://doi.org/10.6028/jres.045.026.

        Barak A. Pearlmutter, Fast Exact Multiplication by the Hessian, 1994, https://doi.org/10.1162/neco.1994.6.1.147.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("model must have parameters that require a gradient, got none")
    for p in params:
        if is_sharded(p):  # FSDP2 does not support second derivatives: the Hessian would seem to be 0
            raise ValueError(
                f"model must be whole, got a parameter spread over {p.device_mesh}: estimate before fully_shard or "
                "parallelize_module is called"
            )
    generator = torch.Generator("cpu").manual_seed(0)
    rest = [torch.randn(p.shape, generator=generator, dtype=torch.float32, device="cpu").to(p) for p in params]
    vector = [torch.zeros_like(r) for r in rest]
    diagonal: list[float] = []
    beside = [_length(rest)]  # the first entry only normalizes the start
    for _ in range(_PASSES):
        before, vector = vector, [r / beside[-1] for r in rest]
        product = _mean_hessian_product(model, loss, loader, params, vector)
        diagonal.append(_inner_product(product, vector))
        rest = [h - diagonal[-1] * v - beside[-1] * b for h, v, b in zip(product, vector, before, strict=True)]
        beside.append(_length(rest))
        if not beside[-1] < float("inf"):
            raise ValueError(f"the Hessian of the loss must be finite, got a product of length {_length(product)}")
        largest, last_entry = _largest_eigenvalue(diagonal, beside[1:-1])
        if beside[-1] * last_entry <= _TOLERANCE * largest:
            break
    return largest


def _largest_eigenvalue(diagonal: Sequence[float], beside: Sequence[float]) -> tuple[float, float]:
    """Return the largest absolute eigenvalue of the symmetric tridiagonal matrix and its eigenvector's last entry, unsigned."""
    matrix = torch.tensor(diagonal, dtype=torch.float64, device="cpu").diag()
    matrix += torch.tensor(beside, dtype=torch.float64, device="cpu").diag(-1)  # only the lower triangle is read
    values, vectors = torch.linalg.eigh(matrix)
    place = values.abs().argmax()
    return float(values[place].abs()), float(vectors[-1, place].abs())


def _inner_product(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))


def _length(vector: Sequence[Tensor]) -> float:
    return math.sqrt(_inner_product(vector, vector))


def _mean_hessian_product(
    model: nn.Module,
    loss: Loss[Target],
    loader: Iterable[tuple[object, Target]],
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
) -> list[Tensor]:
    total, samples = [torch.zeros_like(v) for v in vector], 0
    for inputs, targets in loader:
        with torch.enable_grad():
            gradient = torch.autograd.grad(loss(model(inputs), targets), params, create_graph=True, materialize_grads=True)
            product = sum(((g * v).sum() for g, v in zip(gradient, vector, strict=True)), start=torch.zeros((), device="cpu"))
            parts: Sequence[Tensor] = [torch.zeros_like(v) for v in vector]
            if product.requires_grad:  # otherwise the loss is linear
                parts = torch.autograd.grad(product, params, materialize_grads=True)
        for sum_, part in zip(total, parts, strict=True):
            sum_.add_(part, alpha=len(targets))
        samples += len(targets)
    if samples == 0:
        raise ValueError("loader must give at least one batch, got none; an iterator that is used up gives none either")
    return [sum_ / samples for sum_ in total]
