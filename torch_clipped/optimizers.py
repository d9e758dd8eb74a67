"""Optimizers that clip: torch's own, with the gradient clipped between the closure and the update."""

from __future__ import annotations

from torch.optim import SGD, Adam, AdamW

from .mixin import Clipped

__all__ = ["Clipped", "ClippedAdam", "ClippedAdamW", "ClippedSGD"]


class ClippedSGD(Clipped, SGD):
    """:class:`torch.optim.SGD` with gradient clipping; for the clipping arguments see :class:`Clipped`.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedSGD
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = ClippedSGD(model.parameters(), lr=5e-2, momentum=0.9, clipping_type="layer_wise", clipping_level=1)
        >>> model(torch.ones(2, 3)).square().sum().backward()
        >>> optimizer.step()
    """


class ClippedAdam(Clipped, Adam):
    """:class:`torch.optim.Adam` with gradient clipping; for the clipping arguments see :class:`Clipped`.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedAdam
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = ClippedAdam(model.parameters(), lr=1e-3, clipping_type="auto", clipping_level=0.9)
        >>> model(torch.ones(2, 3)).square().sum().backward()
        >>> optimizer.step()
    """


class ClippedAdamW(Clipped, AdamW):
    """:class:`torch.optim.AdamW` with gradient clipping; for the clipping arguments see :class:`Clipped`.

    Example:
        >>> import torch
        >>> from torch_clipped import ClippedAdamW
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = ClippedAdamW(model.parameters(), lr=1e-3, weight_decay=0.1, clipping_level=1.0)
        >>> model(torch.ones(2, 3)).square().sum().backward()
        >>> optimizer.step()
    """
