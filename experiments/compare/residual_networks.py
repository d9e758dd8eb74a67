"""Residual networks: ResNet-18, and a small one for images of a few pixels.

Not from torchvision, whose wheels run only with one build of torch.

References:
    He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2016, https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu


class Block(nn.Module):
    """Pair of convolutions of 3 x 3 beside a shortcut, which is a convolution of 1 x 1 if the shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(inputs, outputs, 3, stride)
        self.second = _convolution(outputs, outputs, 3, 1)
        self.shortcut = nn.Identity() if (inputs, stride) == (outputs, 1) else _convolution(inputs, outputs, 1, stride)

    def forward(self, images: Tensor) -> Tensor:
        return relu(self.second(relu(self.first(images))) + self.shortcut(images))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """Return a convolution followed by batch normalization."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def _blocks(inputs: int, widths: Sequence[int], depth: int) -> list[Block]:
    """Return ``depth`` blocks of each width; the first of each but the first width halves the image."""
    blocks = []
    for stage, width in enumerate(widths):
        for place in range(depth):
            blocks.append(Block(inputs, width, 2 if stage and not place else 1))
            inputs = width
    return blocks


def resnet18(classes: int) -> nn.Sequential:
    """Return ResNet-18: images (batch, 3, height, width) -> logits (batch, classes)."""
    stem = [_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)]
    return nn.Sequential(*stem, *_blocks(64, (64, 128, 256, 512), 2), *head)


def small_residual_network(classes: int = 10, stride: int = 1) -> nn.Sequential:
    """Return a network for grey images: (batch, 1, height, width) -> logits (batch, classes); stride 2 halves the images."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes)]
    return nn.Sequential(_convolution(1, 16, 3, stride), nn.ReLU(), *_blocks(16, (16, 32), 1), *head)
