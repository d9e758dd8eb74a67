"""Images with a class for each pixel: PascalVOC's files, and shapes drawn at random."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..common.packages import needed
from .task_parts import evenly

if TYPE_CHECKING:
    from PIL import Image

VOC = Path("VOCdevkit", "VOC2012")
VOC_CLASSES = 21  # the background and 20 kinds of objects
BORDER = 255  # label of the outlines of objects, which belong to no class
SHAPES = ("background", "circle", "square", "triangle")
SHAPE_SIZE = 32  # pixels on a side
EDGE = 4  # smallest distance of the centre of a shape from the edge, in pixels
NEAREST, BILINEAR = 0, 2  # Pillow's numbers of its resampling filters
Pictures = tuple[Tensor, Tensor]  # images, uint8 (count, 3, height, width), and labels, uint8 (count, height, width)


def read_voc(folder: Path, split: str, size: int, most: int) -> Pictures:
    """Return the images of a split of PascalVOC 2012 (Everingham et al., 2010, https://doi.org/10.1007/s11263-009-0275-4).

    Args:
        folder: folder with VOCdevkit/VOC2012, as in the archive VOCtrainval_11-May-2012.tar.
        split: "train" or "val": the file of that name in ImageSets/Segmentation lists the images.
        size: height and width after resizing; labels take the nearest pixel.
        most: largest number of images to read, spread evenly over the list, which is in the order of the years.

    Raises:
        ValueError: a file is missing or damaged; the message names the file and the expected content.
    """
    listing = folder / VOC / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        names = listing.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{listing} cannot be read ({error}): expected a list of the images of PascalVOC 2012") from None
    if not names:
        raise ValueError(f"{listing} is empty: expected the name of an image in each line")
    images, labels = [], []
    for name in (names[i] for i in evenly(len(names), most)):
        image_path = folder / VOC / "JPEGImages" / f"{name}.jpg"
        label_path = folder / VOC / "SegmentationClass" / f"{name}.png"
        image, label = _open(image_path, "a colour image"), _open(label_path, "an image with a class number for each pixel")
        if label.mode not in ("P", "L"):
            raise ValueError(f"{label_path} must hold class numbers (mode P or L), got mode {label.mode}")
        if image.size != label.size:
            raise ValueError(f"{label_path} must be of the size of {image_path}, {image.size}, got {label.size}")
        images.append(np.asarray(image.convert("RGB").resize((size, size), resample=BILINEAR)))
        labels.append(np.asarray(label.resize((size, size), resample=NEAREST)))
        unknown = np.setdiff1d(labels[-1], [*range(VOC_CLASSES), BORDER])
        if len(unknown):
            raise ValueError(
                f"{label_path} must hold classes 0 to {VOC_CLASSES - 1} and {BORDER} at borders, got {unknown.tolist()}"
            )
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(np.stack(labels))


def _open(path: Path, wanted: str) -> Image.Image:
    """Return a whole image; raise ValueError if it is missing or damaged."""
    reader = needed("PIL.Image", "Pillow", "task segmentation with data")
    try:
        with reader.open(path) as file:
            image: Image.Image = file.copy()  # reads all of it
            return image
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: expected {wanted}") from None
    except (OSError, SyntaxError, ValueError, reader.DecompressionBombError) as error:  # Pillow raises all for damaged files
        raise ValueError(f"{path} cannot be read ({error}): expected {wanted}") from None


def draw_shapes(count: int, seed: int) -> Pictures:
    """Draw circles, upright squares and triangles one over the other, light on a dark background, with noise.

    Colours are random, but circles have much red, squares much green, and triangles much blue.

    Args:
        count: number of images.
        seed: seed of all draws.
    """
    random = np.random.default_rng(seed)
    drawn = [_draw_image(random) for _ in range(count)]
    images, labels = (np.stack([pair[place] for pair in drawn]) for place in (0, 1))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def _draw_image(random: np.random.Generator) -> tuple[Any, Any]:
    image = np.empty((SHAPE_SIZE, SHAPE_SIZE, 3))
    image[:] = random.uniform(0, 100, 3)
    label = np.zeros((SHAPE_SIZE, SHAPE_SIZE), dtype=np.uint8)
    for _ in range(random.integers(1, 4)):
        kind = int(random.integers(1, len(SHAPES)))
        inside = _inside(SHAPES[kind], random.uniform(EDGE, SHAPE_SIZE - EDGE, 2), random.uniform(5, 10))
        colour = random.uniform(100, 255, 3)
        colour[kind - 1] = random.uniform(215, 255)
        image[inside], label[inside] = colour, kind
    image += random.normal(0, 25, image.shape)
    return image.clip(0, 255).astype(np.uint8), label


def _inside(shape: str, centre: Any, radius: float) -> Any:
    """Return the pixels inside a shape whose corners, or edge, are at ``radius`` from its centre; polygons rest on a side."""
    down, right = np.mgrid[:SHAPE_SIZE, :SHAPE_SIZE] - np.reshape(centre, (2, 1, 1))
    if shape == "circle":
        return np.hypot(down, right) <= radius
    corners = {"square": 4, "triangle": 3}[shape]
    sides = np.pi / 2 + 2 * np.pi * np.arange(corners) / corners
    reach = radius * np.cos(np.pi / corners)  # distance of a side from the centre
    return np.all([down * np.sin(side) + right * np.cos(side) <= reach for side in sides], axis=0)
