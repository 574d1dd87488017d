"""High resolution by tiling: a thumbnail of the whole image, then a grid of as many tiles as it needs."""

from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vision.transform import MAX_GRID, ImageTransform

AS_SHARP = 0.9
"""Share of the best sharpness that suffices: of nearly equal grids the smaller is taken."""


class Tiles(NamedTuple):
    """One image for the encoder: its thumbnail, then its tiles row by row."""

    pixel_values: Float[Tensor, "tiles 3 height width"]
    tile_ids: Int[Tensor, " tiles"]
    """0: the thumbnail; 1 + row * MAX_GRID + column: a tile."""
    grid: tuple[int, int]
    """Rows and columns; (1, 1): the thumbnail alone."""


def choose_grid(width: int, height: int, tile: tuple[int, int], max_tiles: int) -> tuple[int, int]:
    """Rows and columns of the grid of tiles (of height, width pixels) into which an image goes.

    Of the grids within the budget it is the one with the fewest tiles that shows the image nine tenths as sharply as
    the sharpest does. No grid is sharper than the image itself, so that none is taken to enlarge it.
    """

    def sharpness(rows: int, columns: int) -> float:
        return min(columns * tile[1] / width, rows * tile[0] / height, 1.0)

    sides = range(1, min(MAX_GRID, max_tiles) + 1)
    grids = [grid for grid in product(sides, sides) if grid[0] * grid[1] <= max_tiles]
    enough = AS_SHARP * max(sharpness(*grid) for grid in grids)
    sharp = [grid for grid in grids if sharpness(*grid) >= enough]
    return min(sharp, key=lambda grid: (grid[0] * grid[1], -sharpness(*grid)))


def tile_image(transform: ImageTransform, image: Image.Image) -> Tiles:
    """The image's thumbnail and tiles, padded to the grid's aspect and normalised as `transform` says."""
    _, height, width = transform.input_size
    rows, columns = grid = choose_grid(image.width, image.height, (height, width), transform.max_tiles)
    thumbnail = transform.normalise(transform.fit(image, height, width))[None]
    if grid == (1, 1):
        return Tiles(thumbnail, torch.zeros(1, dtype=torch.int64), grid)
    whole = transform.normalise(transform.fit(image, rows * height, columns * width))
    tiles = whole.view(3, rows, height, columns, width).permute(1, 3, 0, 2, 4).flatten(0, 1)
    places = 1 + torch.arange(rows)[:, None] * MAX_GRID + torch.arange(columns)
    tile_ids = torch.cat([torch.zeros(1, dtype=torch.int64), places.flatten()])
    return Tiles(torch.cat([thumbnail, tiles]), tile_ids, grid)
