"""Small U-Net."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class UNet(nn.Module):
    """U-Net: convolutions on smaller and smaller images, then back up, joined with the features of the same size on the way down.

    Args:
        classes: channels of the result.
        width: channels at the full size; twice as many after each halving.
        depth: number of halvings of the image; height and width must be multiples of 2**depth.

    References:
        O. Ronneberger, P. Fischer, T. Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation, 2015,
        https://arxiv.org/abs/1505.04597. This one has batch normalization, and padded convolutions that keep the sizes.
    """

    def __init__(self, classes: int, width: int = 8, depth: int = 2) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.first = _block(3, width)
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), _block(a, b)) for a, b in pairwise(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in reversed(list(pairwise(widths))))
        self.join = nn.ModuleList(_block(2 * a, a) for a in reversed(widths[:-1]))
        self.logits = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (batch, 3, height, width) to logits (batch, classes, height, width)."""
        kept = [self.first(images)]
        for down in self.down:
            kept.append(down(kept[-1]))
        hidden = kept.pop()
        for up, join in zip(self.up, self.join, strict=True):
            hidden = join(torch.cat([up(hidden), kept.pop()], dim=1))
        logits: Tensor = self.logits(hidden)
        return logits


def _block(channels: int, width: int) -> nn.Sequential:
    """Return two convolutions, each followed by batch normalization and ReLU."""
    layers: list[nn.Module] = []
    for before in (channels, width):
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)
