"""Task segmentation of ``compare``: the class of each pixel with a U-Net, on PascalVOC or on drawn shapes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .segmentation_data import BORDER, SHAPE_SIZE, SHAPES, VOC_CLASSES, Pictures, draw_shapes, read_voc
from .task import PARTS, Grids
from .task_parts import device_of, evaluating, halves, seeded, shuffled
from .unet import UNet

VOC_SIZE = 128  # side of the resized photographs, in pixels
VOC_EVALUATED = 256
SHAPES_TRAINED, SHAPES_EVALUATED = 256, 64
VALIDATION_SEED, TEST_SEED = 10**6, 2 * 10**6  # added to the seed


class SegmentationTask:
    """Task to classify each pixel; see :class:`experiments.compare.task.Task`."""

    name = "segmentation"
    metric = "mean IoU"
    decays = True

    def __init__(
        self, parts: dict[str, Pictures], classes: int, source: str, width: int, depth: int, batch: int, steps: int
    ) -> None:
        self.training, self.classes, self.source = parts["train"], classes, source
        self.width, self.depth, self.steps = width, depth, steps
        self.batch = min(batch, len(self.training[0]))
        evaluated = len(parts["validation"][0])
        self._parts = parts | {"train": (self.training[0][:evaluated], self.training[1][:evaluated])}
        self.learning_rates: Grids = {"SGD": (0.02, 0.04, 0.08, 0.16), "Adam": (0.002, 0.004, 0.008, 0.016)}
        everywhere = torch.full_like(parts["test"][1], int(self.training[1][self.training[1] != BORDER].mode().values))
        self.trivial = ("one class everywhere", mean_iou(count_pairs(everywhere, parts["test"][1], classes)))

    def make_model(self, seed: int) -> nn.Module:
        """Return a model, the same for the same seed."""
        return seeded(lambda: UNet(self.classes, self.width, self.depth), seed)

    def batches(self, seed: int) -> Iterator[Pictures]:
        """Return batches of images and labels."""
        images, labels = self.training
        return ((images[some], labels[some]) for some in shuffled(len(images), self.batch, seed))

    def loss(self, model: nn.Module, batch: Pictures) -> Tensor:
        """Return the cross-entropy of the pixels; borders are ignored."""
        logits, labels = _logits(model, batch)
        return cross_entropy(logits, labels.long(), ignore_index=BORDER)

    def evaluate(self, model: nn.Module, part: str) -> float:
        """Return the mean IoU; the training images are limited to the number of validation images."""
        pairs = torch.zeros(self.classes, self.classes, dtype=torch.long)
        with evaluating(model):
            for batch in zip(*(tensor.split(self.batch) for tensor in self._parts[part]), strict=True):
                logits, labels = _logits(model, batch)
                pairs += count_pairs(logits.argmax(1).cpu(), labels.cpu(), self.classes)
        return mean_iou(pairs)


def _logits(model: nn.Module, batch: Pictures) -> Pictures:
    """Return logits and labels, on the device of the model."""
    device = device_of(model)
    images, labels = (tensor.to(device) for tensor in batch)
    return model(images.float() / 127.5 - 1), labels


def count_pairs(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count the pixels by true class (row) and predicted class (column); borders are ignored."""
    known = labels != BORDER
    return torch.bincount(classes * labels[known].long() + predictions[known], minlength=classes**2).view(classes, classes)


def mean_iou(pairs: Tensor) -> float:
    """Return the mean over the classes of intersection / union = right / (labelled + predicted - right).

    Classes that neither occur nor are predicted do not count in the mean.

    Example:
        >>> mean_iou(torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))  # 3 of 4, and 2 of 3
        0.7083333333333333
    """
    right = pairs.diagonal().double()
    union = pairs.sum(0) + pairs.sum(1) - right
    return float((right / union)[union > 0].mean())


def load(data: Path | None, pretrained: Path | None, seed: int, quick: bool) -> SegmentationTask:
    """Return PascalVOC from the folder ``data``, or shapes of ``seed``; raise ValueError if files are missing or damaged."""
    if data is None:
        counts = {"train": SHAPES_TRAINED} | dict.fromkeys(("validation", "test"), 16 if quick else SHAPES_EVALUATED)
        seeds = {"train": seed, "validation": seed + VALIDATION_SEED, "test": seed + TEST_SEED}
        shapes = {part: draw_shapes(count, seeds[part]) for part, count in counts.items()}
        source = f"small U-Net on {SHAPES_TRAINED} images of shapes, {SHAPE_SIZE} x {SHAPE_SIZE}, seed {seed}"
        return SegmentationTask(shapes, len(SHAPES), source, width=8, depth=2, batch=8, steps=10 if quick else 300)
    size, trained, evaluated = (SHAPE_SIZE, 64, 16) if quick else (VOC_SIZE, 10**9, VOC_EVALUATED)
    training, validation = read_voc(data, "train", size, trained), read_voc(data, "val", size, evaluated)
    source = (
        f"{'small ' if quick else ''}U-Net on PascalVOC 2012, {size} x {size}: {len(training[0])} training images; one half of "
        f"{len(validation[0])} validation images for validation, one for tests"
    )
    parts = {
        part: (validation[0][some], validation[1][some]) for part, some in zip(PARTS[1:], halves(len(validation[0])), strict=True)
    }
    width, depth, steps = (8, 2, 10) if quick else (32, 4, 1500)
    return SegmentationTask({"train": training, **parts}, VOC_CLASSES, source, width=width, depth=depth, batch=8, steps=steps)
