"""The look of the pictures: colours that colour-blind readers tell apart, and curves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Colours that colour-blind readers tell apart (M. Okabe and K. Ito)
BLACK, BLUE, VERMILION, GREEN, SKY, GREY = "#000000", "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#777777"


def smooth(curves: NDArray[Any], window: int) -> NDArray[Any]:
    """Return the mean of each value and the ``window - 1`` before it, of as many as there are at the start."""
    return np.stack([curves[:, max(0, step + 1 - window) : step + 1].mean(axis=1) for step in range(curves.shape[1])], axis=1)
