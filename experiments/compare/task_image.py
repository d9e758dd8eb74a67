"""Task to classify images of IDX files, ImageNet or scikit-learn's digits, with a residual network or a perceptron."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..common.packages import needed
from .idx import is_idx, read_idx
from .residual_networks import resnet18, small_residual_network
from .task import Grids, Task
from .task_image_folders import EVALUATED, ImageFolders
from .task_parts import commonest_share, device_of, evaluating, evenly, halves, seeded, shuffled

LARGE = 16  # pixels: the network halves images of this size or more
BRIGHTEST = 16.0  # largest value of a pixel of the digits
HELD_OUT = 5000  # of the training images in IDX files, for validation
Pictures = tuple[Tensor, Tensor]  # images (count, 1, height, width) from 0 to 1, and labels (count,)


def load(data: Path | None, pretrained: Path | None, seed: int, quick: bool) -> Task:
    """Return the task on the images in the folder ``data``, or on the digits; raise ValueError if files are missing."""
    if data is not None and not is_idx(data):
        return ImageNet(data, quick)
    parts, words = load_images(data, seed)
    stride = 1 if parts["train"][0].shape[-1] < LARGE else 2
    task = GreyImages("image", parts, partial(small_residual_network, stride=stride), 15 if quick else 200, quick)
    task.source, task.decays = f"small residual network on {words}", True
    task.learning_rates = {"SGD": (0.02, 0.04, 0.08, 0.16), "Adam": (0.001, 0.002, 0.004, 0.008)}
    return task


def load_images(data: Path | None, seed: int) -> tuple[dict[str, Pictures], str]:
    """Return training, validation and test images, and their name."""
    if data is None:
        digits = needed("sklearn.datasets", "scikit-learn", "task image without data").load_digits()
        images = torch.tensor(digits.images / BRIGHTEST, dtype=torch.float32)[:, None]
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        every = images[order], torch.tensor(digits.target)[order]
        sizes, words = (len(images) - 700, 350, 350), "the digits of scikit-learn"
        training, validation, test = zip(*(tensor.split(sizes) for tensor in every), strict=True)
    else:
        test_images, test_labels = read_idx(data, "t10k")
        images, labels = read_idx(data, "train")
        if len(images) <= HELD_OUT:
            raise ValueError(f"data must have more than {HELD_OUT} training images, got {len(images)}")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        scaled, labels = images[order, None].float() / 255, labels[order]
        training, validation = (scaled[HELD_OUT:], labels[HELD_OUT:]), (scaled[:HELD_OUT], labels[:HELD_OUT])
        test, words = (test_images[:, None].float() / 255, test_labels), data.resolve().name
    return {"train": training, "validation": validation, "test": test}, f"{words}, {len(training[0])} images for training"


class GreyImages:
    """Grey images of ten classes or fewer."""

    metric = "accuracy"
    decays = False
    source: str
    learning_rates: Grids

    def __init__(self, name: str, parts: dict[str, Pictures], make: Callable[[], nn.Module], steps: int, quick: bool) -> None:
        self.name, self.batch, self.steps, self._parts, self._make = name, 64, steps, parts, make
        self._evaluated = 100 if quick else EVALUATED
        self.trivial = ("commonest class", commonest_share(parts["train"][1], parts["test"][1]))

    def make_model(self, seed: int) -> nn.Module:
        """Return a model, the same for the same seed."""
        return seeded(self._make, seed)

    def batches(self, seed: int) -> Iterator[Pictures]:
        """Return batches of images and labels."""
        images, labels = self._parts["train"]
        return ((images[some], labels[some]) for some in shuffled(len(images), self.batch, seed))

    def loss(self, model: nn.Module, batch: Pictures) -> Tensor:
        """Return the cross-entropy, in nats."""
        return classification_loss(model, batch)

    def evaluate(self, model: nn.Module, part: str) -> float:
        """Return the accuracy on all test images, or on at most 2,000 of another part."""
        images, labels = self._parts[part]
        some = torch.tensor(evenly(len(labels), len(labels) if part == "test" else self._evaluated))
        with evaluating(model):
            return _share_right(model, ((images[each], labels[each]) for each in some.split(500)))


class ImageNet:
    """Colour photographs in folders of their classes, cut to 224 x 224 pixels as in He et al. 2016."""

    name, metric, decays = "image", "accuracy", True

    def __init__(self, data: Path, quick: bool) -> None:
        self._folders = folders = ImageFolders(data)
        self.batch, self.steps = min(4 if quick else 128, len(folders.training)), 2 if quick else 5000
        self.learning_rates: Grids = {"SGD": (0.05, 0.1, 0.2, 0.4), "Adam": (0.0005, 0.001, 0.002, 0.004)}
        self._evaluated = 4 if quick else EVALUATED
        validation, test = halves(len(folders.validation))  # the labels of the test images are not public
        self._parts = {
            "train": folders.training,
            "validation": [folders.validation[i] for i in validation],
            "test": [folders.validation[i] for i in test],
        }
        self.source = (
            f"ResNet-18 on {data.resolve().name}: {len(folders.training)} training images, {len(folders.classes)} classes; "
            f"one half of the {len(folders.validation)} validation images for validation, one for tests"
        )
        training, tested = (torch.tensor([label for _, label in self._parts[part]]) for part in ("train", "test"))
        self.trivial = ("commonest class", commonest_share(training, tested))

    def make_model(self, seed: int) -> nn.Module:
        """Return a model, the same for the same seed."""
        return seeded(lambda: resnet18(len(self._folders.classes)), seed)

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield randomly cut and mirrored images, and their labels."""
        generator = torch.Generator().manual_seed(seed)
        training = self._folders.training
        for some in shuffled(len(training), self.batch, seed):
            yield self._folders.batch([training[i] for i in some.tolist()], generator)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the cross-entropy, in nats."""
        return classification_loss(model, batch)

    def evaluate(self, model: nn.Module, part: str) -> float:
        """Return the accuracy on the central part of the images."""
        files = self._parts[part]
        chosen = [files[i] for i in evenly(len(files), self._evaluated)]
        batches = (self._folders.batch(chosen[i : i + self.batch], None) for i in range(0, len(chosen), self.batch))
        with evaluating(model):
            return _share_right(model, batches)


def classification_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the cross-entropy of the classes, in nats."""
    images, labels = (tensor.to(device_of(model)) for tensor in batch)
    return cross_entropy(model(images), labels)


def _share_right(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    device = device_of(model)
    right = [model(images.to(device)).argmax(1) == labels.to(device) for images, labels in batches]
    return float(torch.cat(right).double().mean())
