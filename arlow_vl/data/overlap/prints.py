"""The print of an image: 256 bits and 48 colours that hardly change when it is compressed or resized again.

The bits are a dHash in two directions: where a cell of the image is brighter than the one to its left (8 rows of 17
cells) or above it (17 rows of 8). A step of a few levels counts as none, lest noise in even areas decide. The colours
are the means of a grid of 4 by 4. Images of one red and of one blue circle have the same bits, and drawings with few
edges have nearly the same; their colours tell them apart.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

MARGIN = 3.0
"""Levels of 255 by which a cell must be brighter."""
FINE, COARSE, GRID = 17, 8, 4
SIDE = FINE * COARSE  # a multiple of GRID too


def _means(cells: int) -> Float[np.ndarray, "cells side"]:
    """Returns a matrix that takes the means of so many equal runs of `SIDE` values."""
    return np.repeat(np.eye(cells, dtype=np.float32), SIDE // cells, axis=1) * (cells / SIDE)


TO_FINE, TO_COARSE = _means(FINE), _means(COARSE)

BITS, COLOURS = 256, GRID * GRID * 3
PRINT = np.dtype([("bits", "u1", BITS // 8), ("colours", "u1", COLOURS)])


class Fault(NamedTuple):
    """Reason why an image has no print, as a stable snake_case word."""

    reason: str


def print_of(image: Image.Image) -> np.void:
    """Returns the print of an RGB image, a `PRINT`."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=1.0)
    grey = np.asarray(small.convert("L"), np.float32)
    across, down = TO_COARSE @ grey @ TO_FINE.T, TO_FINE @ grey @ TO_COARSE.T
    found = np.zeros(1, PRINT)
    found["bits"] = np.packbits(np.concatenate([_brighter(across, 1), _brighter(down, 0)]))
    found["colours"] = np.asarray(small.resize((GRID, GRID), Image.Resampling.BOX)).reshape(-1)
    return found[0]


def _brighter(cells: Float[np.ndarray, "rows columns"], axis: int) -> Bool[np.ndarray, " steps"]:
    return (np.diff(cells, axis=axis) > MARGIN).reshape(-1)
