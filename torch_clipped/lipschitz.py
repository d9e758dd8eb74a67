"""How curved is a loss? An estimate for the constants that accelerated methods ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["estimate_lipschitz"]

_PASSES = 100  # over the loader, at most
_TOLERANCE = 1e-3  # relative change between passes at which the iteration ends


def estimate_lipschitz(model: nn.Module, loss: Callable[[Any, Any], Tensor], loader: Iterable[tuple[Any, Any]]) -> float:
    """The local Lipschitz constant of the gradient: the largest absolute eigenvalue of the Hessian of the mean loss.

        v <- H v / ||H v||          L = lim ||H v||

    Power iteration on products of the Hessian with a vector, each of them one pass over ``loader``, until the estimate
    changes by less than a thousandth, at most 100 passes. It holds for the present weights: elsewhere the loss may be more
    curved, and gradients of single batches are. Power iteration comes from below. The start is random from a fixed seed, and
    torch's random state is not touched by it.

    Args:
        model: called with the inputs; use ``model.eval()`` first if it has dropout or batch norms. Gradients in ``p.grad`` stay.
        loss: ``loss(outputs, targets)``, a mean over the batch, twice differentiable.
        loader: pairs of inputs and targets, which can be gone through many times, and in which ``len(targets)`` is the
            number of samples.

    Returns:
        The estimate; 0 where the Hessian is 0.

    Raises:
        ValueError: the model has nothing to train, the loader is empty, or the Hessian is not finite.

    Example:
        >>> import torch
        >>> from torch_clipped import estimate_lipschitz
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> loader = [(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))]
        >>> round(estimate_lipschitz(model, torch.nn.functional.mse_loss, loader), 3)
        10.0

    References:
        Barak A. Pearlmutter, Fast Exact Multiplication by the Hessian, 1994, https://doi.org/10.1162/neco.1994.6.1.147.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("model must have parameters that require a gradient, got none")
    generator = torch.Generator().manual_seed(0)
    vector = [torch.randn(p.shape, generator=generator).to(p) for p in params]
    largest, before = _length(vector), 0.0
    for _ in range(_PASSES):
        vector = [v / largest for v in vector]
        vector = _mean_hessian_product(model, loss, loader, params, vector)
        largest, before = _length(vector), largest
        if not largest < float("inf"):
            raise ValueError(f"the Hessian of the loss must be finite, got a product of length {largest}")
        if largest == 0 or abs(largest - before) < _TOLERANCE * largest:
            break
    return largest


def _length(vector: Sequence[Tensor]) -> float:
    return float(torch.stack([v.double().norm() for v in vector]).norm())


def _mean_hessian_product(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    loader: Iterable[tuple[Any, Any]],
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
) -> list[Tensor]:
    total, samples = [torch.zeros_like(v) for v in vector], 0
    for inputs, targets in loader:
        with torch.enable_grad():
            gradient = torch.autograd.grad(loss(model(inputs), targets), params, create_graph=True, materialize_grads=True)
            product = sum(((g * v).sum() for g, v in zip(gradient, vector, strict=True)), start=torch.zeros(()))
            parts: Sequence[Tensor] = [torch.zeros_like(v) for v in vector]
            if product.requires_grad:  # else the loss is linear
                parts = torch.autograd.grad(product, params, materialize_grads=True)
        for sum_, part in zip(total, parts, strict=True):
            sum_.add_(part, alpha=len(targets))
        samples += len(targets)
    if samples == 0:
        raise ValueError("loader must give at least one batch, got none; an iterator that is used up gives none either")
    return [sum_ / samples for sum_ in total]
