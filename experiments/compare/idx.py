"""Images in IDX files, as of MNIST (LeCun, Bottou, Bengio, Haffner, 1998, https://doi.org/10.1109/5.726791)."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LAYOUT = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, also with .gz"
Images = tuple[Tensor, Tensor]  # uint8 (count, height, width), and labels (count,)


def is_idx(folder: Path) -> bool:
    """Return whether a folder has IDX files."""
    return _found(folder, "train-images-idx3-ubyte") is not None


def read_idx(folder: Path, part: str) -> Images:
    """Return the images and labels of a part, ``train`` or ``t10k``.

    Raises:
        ValueError: a file is missing or damaged.
    """
    images, labels = _read(folder, f"{part}-images-idx3-ubyte", 3), _read(folder, f"{part}-labels-idx1-ubyte", 1)
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"data must have as many {part} labels as images, got {len(images)} images and {len(labels)} labels")
    return images, labels.long()


def _found(folder: Path, name: str) -> Path | None:
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _read(folder: Path, name: str, dimensions: int) -> Tensor:
    """Return the bytes of a file, whose header has their type, dimensions and sizes."""
    path = _found(folder, name)
    if path is None:
        raise ValueError(f"data must be a folder with {LAYOUT}, got {str(folder)!r} without {name}")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"data must hold IDX files, but {str(path)!r} cannot be read ({error})") from None
    header = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:header], dtype=">u4").tolist() if len(content) >= header else []
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != header + math.prod(shape):
        raise ValueError(f"data must hold IDX files of {dimensions} dimensions of bytes, but {str(path)!r} is none or cut off")
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy())
