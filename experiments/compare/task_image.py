"""Images to classify: ResNet-18 on ImageNet, or a small residual network on the handwritten digits of scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .methods import Grids
from .residual_networks import resnet18, small_residual_network
from .task import Task
from .task_image_folders import EVALUATED, ImageFolders
from .task_parts import device_of, evaluating, evenly, needed, seeded, shuffled

HELD_OUT = 500  # of the 1797 digits
BRIGHTEST = 16.0  # a pixel of the digits


def load(data: Path | None, pretrained: Path | None, seed: int, quick: bool) -> Task:
    """ImageNet in the folder ``data``, or the digits where it is None; ValueError where files are missing."""
    return Digits(seed, quick) if data is None else ImageNet(data, quick)


class Digits:
    """1797 grey images of 8 x 8 pixels, ten classes."""

    name, metric = "image", "accuracy"

    def __init__(self, seed: int, quick: bool) -> None:
        self.batch, self.steps = 64, 15 if quick else 200
        self.learning_rates: Grids = {"SGD": (0.01, 0.05, 0.25, 1.25), "Adam": (0.0004, 0.002, 0.01, 0.05)}
        digits = needed("sklearn.datasets", "scikit-learn", "task image without data").load_digits()
        images = torch.tensor(digits.images / BRIGHTEST, dtype=torch.float32)[:, None]
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        images, labels = images[order], torch.tensor(digits.target)[order]
        self._training, self._validation = (images[HELD_OUT:], labels[HELD_OUT:]), (images[:HELD_OUT], labels[:HELD_OUT])
        self._evaluated = 100 if quick else HELD_OUT
        self.source = f"small residual network on the digits of scikit-learn, {len(images) - HELD_OUT} for training"

    def make_model(self, seed: int) -> nn.Module:
        """The same for the same seed."""
        return seeded(small_residual_network, seed)

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels."""
        images, labels = self._training
        return ((images[some], labels[some]) for some in shuffled(len(images), self.batch, seed))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy."""
        return classification_loss(model, batch)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy; on as many training images as there are for validation."""
        halves = {"train": self._training, "validation": self._validation}
        with evaluating(model):
            return {name: _share_right(model, self._batches_of(*half)) for name, half in halves.items()}

    def _batches_of(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        some = torch.tensor(evenly(len(labels), self._evaluated))
        return ((images[part], labels[part]) for part in some.split(self.batch))


class ImageNet:
    """Colour photographs in folders of their classes, cut to 224 x 224 pixels as He et al. 2016 do."""

    name, metric = "image", "accuracy"

    def __init__(self, data: Path, quick: bool) -> None:
        self._folders = ImageFolders(data)
        self.batch, self.steps = min(4 if quick else 128, len(self._folders.training)), 2 if quick else 5000
        self.learning_rates: Grids = {"SGD": (0.01, 0.05, 0.25, 1.25), "Adam": (0.0002, 0.001, 0.005, 0.025)}
        self._evaluated = 4 if quick else EVALUATED
        folders = self._folders
        self.source = (
            f"ResNet-18 on {data.resolve().name}: {len(folders.training)} training images, {len(folders.classes)} classes; "
            f"accuracy on {min(self._evaluated, len(folders.training))} of them "
            f"and {min(self._evaluated, len(folders.validation))} of {len(folders.validation)} validation images"
        )

    def make_model(self, seed: int) -> nn.Module:
        """The same for the same seed."""
        return seeded(lambda: resnet18(len(self._folders.classes)), seed)

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Randomly cut and mirrored images, and their labels."""
        generator = torch.Generator().manual_seed(seed)
        training = self._folders.training
        for some in shuffled(len(training), self.batch, seed):
            yield self._folders.batch([training[i] for i in some.tolist()], generator)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy."""
        return classification_loss(model, batch)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy, on the middle of the images."""
        with evaluating(model):
            return {name: _share_right(model, self._batches_of(name)) for name in ("train", "validation")}

    def _batches_of(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        files = self._folders.training if name == "train" else self._folders.validation
        chosen = [files[i] for i in evenly(len(files), self._evaluated)]
        return (self._folders.batch(chosen[i : i + self.batch], None) for i in range(0, len(chosen), self.batch))


def classification_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of the classes, in nats."""
    images, labels = (tensor.to(device_of(model)) for tensor in batch)
    return cross_entropy(model(images), labels)


def _share_right(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    device = device_of(model)
    right = [model(images.to(device)).argmax(1) == labels.to(device) for images, labels in batches]
    return float(torch.cat(right).double().mean())
