"""Images in the directory layout of ImageNet: train/CLASS/*.JPEG and val/CLASS/*.JPEG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIZE, LARGER = 224, 256  # pixels: side of the input, and shorter side before the central part is cut out
EVALUATED = 2000  # images of each half of the data for the metric
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of ImageNet's red, green and blue
AREAS, RATIOS = (0.08, 1.0), (3 / 4, 4 / 3)  # of random cuts (Szegedy et al. 2015)
ENDINGS = (".jpeg", ".jpg", ".png")
LAYOUT = "train/CLASS/*.JPEG and val/CLASS/*.JPEG"
File = tuple[Path, int]  # and its class


class ImageFolders:
    """Image files of both halves, read as tensors; raises ValueError if the layout is different."""

    def __init__(self, data: Path) -> None:
        train, validation = data / "train", data / "val"
        for folder in (train, validation):
            if not folder.is_dir():
                raise ValueError(f"data must be a folder with {LAYOUT}, got {str(data)!r} without a folder {folder.name}")
        self._threads = ThreadPoolExecutor()  # Pillow releases the GIL while it decodes
        self.classes = _classes(train)
        if _classes(validation) != self.classes:
            different = sorted(set(self.classes) ^ set(_classes(validation)))
            raise ValueError(
                f"data must have the same classes in train and val ({LAYOUT}), got {str(data)!r} "
                f"where only one of them has {', '.join(different[:5])}{', ...' if len(different) > 5 else ''}"
            )
        self.training, self.validation = self._files(train), self._files(validation)

    def _files(self, half: Path) -> list[File]:
        found: list[File] = []
        for number, name in enumerate(self.classes):
            files = sorted(path for path in (half / name).iterdir() if path.suffix.lower() in ENDINGS)
            if not files:
                raise ValueError(f"data must have images in every class ({LAYOUT}), got none in {str(half / name)!r}")
            found += [(path, number) for path in files]
        return found

    def batch(self, files: Sequence[File], generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return images (batch, 3, SIZE, SIZE) and labels; randomly cut and mirrored, or the central part without a generator."""
        if generator is None:
            images = self._threads.map(lambda file: _normalized(_middle(_read(file[0]))), files)
        else:
            draws = torch.rand(len(files), 5, generator=generator, dtype=torch.float64).tolist()
            images = self._threads.map(lambda file, drawn: _normalized(_random_part(_read(file[0]), *drawn)), files, draws)
        return torch.stack(list(images)), torch.tensor([number for _, number in files])


def _classes(half: Path) -> list[str]:
    names = sorted(path.name for path in half.iterdir() if path.is_dir())
    if not names:
        raise ValueError(
            f"data must be a folder with {LAYOUT}, got {str(half)!r} without folders of classes; images that lie side by side, "
            "as in the archive of the validation images, are to be sorted by the ground truth of the development kit first"
        )
    return names


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all for damaged files
        raise ValueError(f"data must hold images that can be read, got {str(path)!r} ({error})") from None


def _normalized(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image)).float() / 255
    return ((pixels - MEAN) / STD).permute(2, 0, 1)


def _middle(image: Image.Image) -> Image.Image:
    width, height = image.size
    scale = LARGER / min(width, height)
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return image.crop((left, top, left + SIZE, top + SIZE))


def _random_part(image: Image.Image, area: float, ratio: float, across: float, down: float, mirror: float) -> Image.Image:
    """Return a part of the image, chosen by five numbers between 0 and 1."""
    part = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=random_box(*image.size, area, ratio, across, down))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror < 0.5 else part


def random_box(
    width: int, height: int, area: float, ratio: float, across: float, down: float
) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a part of random area, shape and place, cut off if the shape does not fit.

    Args:
        width: width of the image, in pixels.
        height: height of the image, in pixels.
        area: 0 for the smallest of ``AREAS``, 1 for the largest.
        ratio: the same for width / height and ``RATIOS``, on a logarithmic scale.
        across: 0 for the left edge, 1 for the right one.
        down: 0 for the upper edge, 1 for the lower one.
    """
    pixels = width * height * (AREAS[0] + area * (AREAS[1] - AREAS[0]))
    shape = RATIOS[0] * (RATIOS[1] / RATIOS[0]) ** ratio
    box_width, box_height = min(width, math.sqrt(pixels * shape)), min(height, math.sqrt(pixels / shape))
    left, top = across * (width - box_width), down * (height - box_height)
    return left, top, min(width, left + box_width), min(height, top + box_height)
