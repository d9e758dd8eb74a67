"""Task perceptron of ``compare``: a perceptron on images in IDX files or on the digits of scikit-learn."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import nn

from .task import Task
from .task_image import GreyImages, load_images

WIDTH = 128


def perceptron(pixels: int) -> nn.Module:
    """Return a perceptron with one hidden layer and ten classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))


def load(data: Path | None, pretrained: Path | None, seed: int, quick: bool) -> Task:
    """Return the task on the images in the folder ``data``, or on the digits; raise ValueError if files are missing."""
    parts, words = load_images(data, seed)
    pixels = parts["train"][0][0].numel()
    task = GreyImages("perceptron", parts, partial(perceptron, pixels), 15 if quick else 2000, quick)
    task.source = f"perceptron of {WIDTH} hidden units on {words}"
    task.learning_rates = {"SGD": (0.02, 0.04, 0.08, 0.16), "Adam": (0.0005, 0.001, 0.002, 0.004)}
    return task
