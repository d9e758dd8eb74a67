"""Colours of the pictures, which colour-blind readers can tell apart (M. Okabe and K. Ito)."""

from __future__ import annotations

BLACK, BLUE, VERMILION, GREEN, SKY = "#000000", "#0072B2", "#D55E00", "#009E73", "#56B4E9"
PINK, ORANGE, GREY = "#CC79A7", "#E69F00", "#777777"
