"""Places of tokens in their image, as row and column relative to the whole image.

Cross-attention reads the tokens of an image as a set. Without their places it cannot tell left from right.

A worked example, an image that went into tiles: its thumbnail and a grid of 1 x 2 tiles, each of 1 x 2 patches. The
upper number is the row, the lower one the column; both go from 0 at one edge of the image to 1 at the other.

    thumbnail    0.50  0.50     the image's left and right half
                 0.25  0.75
    tile 1       0.50  0.50     the left half again, in two quarters
                 0.125 0.375
    tile 2       0.50  0.50
                 0.625 0.875

So a point of the image has the same place however the image was cut up, and no image is too large.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision.transform import MAX_GRID

NOWHERE = -1.0
"""Row and column of a token of the whole image: class and register tokens."""


@lru_cache(maxsize=1024)
def grid_of(num_patches: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of an image's patches: the grid of `num_patches` that is nearest to its aspect ratio."""
    wanted = math.log(height / width)
    divisors = [rows for rows in range(1, num_patches + 1) if num_patches % rows == 0]
    rows = min(divisors, key=lambda rows: abs(math.log(rows * rows / num_patches) - wanted))
    return rows, num_patches // rows


def grid_places(
    rows: int, columns: int, *, prefix_tokens: int = 0, device: torch.device | None = None
) -> Float[Tensor, "tokens 2"]:
    """Places of the prefix tokens, then of the middles of the patches, row by row."""
    down, across = ((torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n for n in (rows, columns))
    middles = torch.stack(torch.meshgrid(down, across, indexing="ij"), dim=-1).flatten(0, 1)
    return torch.cat([middles.new_full((prefix_tokens, 2), NOWHERE), middles])


def tile_places(
    whole: Float[Tensor, "tokens 2"], tile_ids: Int[Tensor, " tiles"], tiles_per_image: Int[Tensor, " images"]
) -> Float[Tensor, "tiles tokens 2"]:
    """The places of the tokens of tiles, in the image that the tiles make up.

    Args:
        whole: The places of the tokens of an image that is not cut up.
        tile_ids: 0: the thumbnail; else which tile it is (see `vision.forms.tiling`).
    """
    places = []
    for of_image in tile_ids.split(tiles_per_image.tolist()):
        is_tile = (of_image > 0)[:, None]
        corner = torch.stack([(of_image - 1) // MAX_GRID, (of_image - 1) % MAX_GRID], dim=-1) * is_tile  # (tiles, 2)
        grid = torch.where(is_tile, corner.amax(0) + 1, 1)
        places.append((corner[:, None] + whole) / grid[:, None])
    return torch.where(whole == NOWHERE, NOWHERE, torch.cat(places))


def native_places(
    image_grids: Int[Tensor, "images 2"],
    lengths: Int[Tensor, " images"],
    *,
    prefix_tokens: int = 0,
    device: torch.device | None = None,
) -> Float[Tensor, "tokens 2"]:
    """The places of the tokens of images in their native resolution, one image after another."""
    grids = [
        grid_of(length - prefix_tokens, *sides)
        for length, sides in zip(lengths.tolist(), image_grids.tolist(), strict=True)
    ]
    return torch.cat([grid_places(*grid, prefix_tokens=prefix_tokens, device=device) for grid in grids])
