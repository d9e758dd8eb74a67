"""Images in the layout of MNIST."""

import gzip

import numpy as np


def write_idx(folder, counts=(5010, 40), side=6, packed=False):
    """Images in the layout of MNIST, light where their class says; the class is the last digit of their number."""
    folder.mkdir(exist_ok=True)
    for part, count in zip(("train", "t10k"), counts, strict=True):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.zeros((count, side, side), dtype=np.uint8)
        images.reshape(count, -1)[np.arange(count), labels] = 255
        for name, values in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
            content = header + values.tobytes()
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(content) if packed else content)
    return folder
