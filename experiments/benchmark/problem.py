"""Parameters of known models for ``benchmark``, their gradients, and one optimizer state for all contenders."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..common.optimizers import OPTIMIZERS

LEARNING_RATE = 1e-9  # so small that the weights do not change between timings
GRADIENT_STD, WEIGHT_STD = 0.01, 0.02
Shapes = list[tuple[int, ...]]


def resnet18_shapes() -> Shapes:
    """Return the 62 shapes of ResNet-18: three for each convolution and its batch normalization, two of the last layer."""
    shapes: Shapes = []

    def convolution(outputs: int, inputs: int, kernel: int) -> None:
        shapes.extend([(outputs, inputs, kernel, kernel), (outputs,), (outputs,)])

    convolution(64, 3, 7)
    inputs = 64
    for width in (64, 128, 256, 512):
        for _ in range(2):
            convolution(width, inputs, 3)
            convolution(width, width, 3)
            if inputs != width:
                convolution(width, inputs, 1)  # the shortcut
            inputs = width
    return [*shapes, (1000, 512), (1000,)]


def gpt_shapes(layers: int, width: int) -> Shapes:
    """Return the shapes of a GPT-2 of this size: two embeddings, twelve tensors a layer, the last normalization."""
    layer: Shapes = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)]
    layer += [(width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [(50257, width), (1024, width), *layer * layers, (width,), (width,)]


SIZES: dict[str, Shapes] = {
    "tiny": [(1000,)] * 10,
    "policy": [(64, 4), (64,), (64, 64), (64,), (2, 64), (2,)] * 2,  # two perceptrons of 64 x 64, as in reinforcement learning
    "many": [(256,)] * 1000,
    "resnet18": resnet18_shapes(),
    "gpt2": gpt_shapes(12, 768),
    "1b": gpt_shapes(24, 1792),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Problem:
    """Parameters with gradients, of one size, dtype and optimizer.

    Args:
        size: a key of ``SIZES``.
        dtype: a key of ``DTYPES``.
        optimizer: a key of ``OPTIMIZERS``.
        device: device of the parameters.
        seed: seed of weights and gradients.
    """

    def __init__(self, size: str, dtype: str, optimizer: str, device: str, seed: int) -> None:
        self.size, self.optimizer, self.dtype = size, optimizer, dtype
        self.numels = tuple(map(prod, SIZES[size]))
        generator = torch.Generator(device).manual_seed(seed)

        def normal(std: float) -> list[Tensor]:
            options: dict[str, Any] = {"generator": generator, "device": device, "dtype": DTYPES[dtype]}
            return [torch.randn(shape, **options).mul_(std) for shape in SIZES[size]]

        self.parameters = [nn.Parameter(weight) for weight in normal(WEIGHT_STD)]
        self._gradients = normal(GRADIENT_STD)
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            parameter.grad = gradient.clone()
        self.plain, self.clipped, self.arguments = OPTIMIZERS[optimizer]
        first = self.plain(self.parameters, lr=LEARNING_RATE, fused=False, **self.arguments)
        first.step()
        self._state = dict(first.state)
        self._lengths: dict[tuple[str, bool], Tensor] = {}

    @property
    def gradient_bytes(self) -> int:
        """Return the size of the gradients in bytes."""
        return sum(self.numels) * DTYPES[self.dtype].itemsize

    def restore_gradients(self) -> None:
        """Restore the gradients that clipping changed, the first layer last, so that the caches are as after a backward pass."""
        torch._foreach_copy_([p.grad for p in reversed(self.parameters)], self._gradients[::-1])

    def gradients_are_clipped(self) -> bool:
        """Return whether the gradients have changed since they were restored."""
        return not all(
            torch.equal(p.grad, g) for p, g in zip(self.parameters, self._gradients, strict=True) if p.grad is not None
        )

    def share_state(self, optimizer: Optimizer, fused: bool = False) -> None:
        """Make an optimizer use the state that all contenders share.

        Torch's fused kernels need the step counts on the device of the parameters, its other implementations on the host.
        """
        for parameter, entries in self._state.items():
            optimizer.state[parameter] = dict(entries)
            if fused and "step" in entries:
                optimizer.state[parameter]["step"] = entries["step"].to(parameter.device)

    def lengths(self, measure: str, of_weights: bool = False) -> Tensor:
        """Return the norm of each block of the gradients, or of the weights: float64 of shape (blocks,).

        For coordinates it is the largest absolute entry of each tensor, of shape (tensors,).
        """
        if (measure, of_weights) not in self._lengths:
            tensors = [p.detach() for p in self.parameters] if of_weights else self._gradients
            lengths = torch.cat([_lengths(tensor, measure) for tensor in tensors]).double().cpu()
            self._lengths[measure, of_weights] = lengths.norm(keepdim=True) if measure == "global" else lengths
        return self._lengths[measure, of_weights]


def _lengths(tensor: Tensor, measure: str) -> Tensor:
    order = torch.inf if measure == "coordinate" else 2
    rows = tensor.flatten(1) if measure == "unit" and tensor.dim() > 1 else tensor.reshape(1, -1)
    return torch.linalg.vector_norm(rows, order, dim=1, dtype=torch.float32)
