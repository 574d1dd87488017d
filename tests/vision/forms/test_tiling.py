import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.outside_data import colourful
from vision.forms.tiling import AS_SHARP, MAX_GRID, choose_grid, tile_image
from vision.transform import ImageTransform

DATA_CONFIG = {"mean": (0.5, 0.4, 0.3), "std": (0.2,) * 3, "input_size": (3, 32, 32), "interpolation": "bicubic"}
SIDES, BUDGETS = st.integers(1, 6000), st.integers(1, MAX_GRID**2)
TILE = (224, 224)


def sharpness(width: int, height: int, grid: tuple[int, int]) -> float:
    """Pixels of the grid for a pixel of the image, of which more than one shows no more."""
    return min(grid[1] * TILE[1] / width, grid[0] * TILE[0] / height, 1.0)


@pytest.mark.parametrize(
    ("width", "height", "max_tiles", "grid"),
    [
        (100, 100, 9, (1, 1)),  # it fits as it is
        (224, 224, 64, (1, 1)),
        (240, 224, 64, (1, 1)),  # two tiles would show a fifteenth more
        (300, 224, 64, (1, 2)),
        (448, 448, 64, (2, 2)),
        (4000, 4000, 4, (2, 2)),
        (4000, 4000, 3, (1, 1)),  # a square is no sharper on 1 x 3 tiles
        (4000, 4000, 8, (2, 2)),
        (4200, 4000, 12, (3, 3)),  # 3 x 4 would be 5 % sharper for three tiles more
        (4000, 3000, 12, (3, 4)),
        (3000, 4000, 12, (4, 3)),
        (1920, 1080, 6, (2, 3)),
        (1000, 100, 6, (1, 5)),
        (980, 100, 6, (1, 4)),  # four tiles are nine tenths as sharp as five
        (60, 6000, 64, (8, 1)),  # the grid has eight rows at most
        (5000, 5000, 64, (8, 8)),
        (5000, 5000, 1, (1, 1)),
    ],
)
def test_the_grid_of_an_image(width, height, max_tiles, grid):
    assert choose_grid(width, height, TILE, max_tiles) == grid


def test_tiles_that_are_not_square_count_as_they_are():
    assert choose_grid(1000, 1000, (500, 250), 8) == (2, 4)


@given(SIDES, SIDES, BUDGETS)
def test_a_grid_keeps_to_the_budget(width, height, max_tiles):
    rows, columns = choose_grid(width, height, TILE, max_tiles)
    assert 1 <= rows * columns <= max_tiles
    assert max(rows, columns) <= MAX_GRID


@given(SIDES, SIDES, BUDGETS)
def test_no_row_or_column_is_needless(width, height, max_tiles):
    """Without it the image would lose a part of its sharpness: no tile is empty, and none is there to enlarge."""
    rows, columns = grid = choose_grid(width, height, TILE, max_tiles)
    for smaller in ((rows - 1, columns), (rows, columns - 1)):
        if min(smaller) > 0:
            assert sharpness(width, height, smaller) < sharpness(width, height, grid)
            assert sharpness(width, height, smaller) < 1


@given(SIDES, SIDES, BUDGETS)
def test_no_grid_within_the_budget_is_much_sharper(width, height, max_tiles):
    ours = sharpness(width, height, choose_grid(width, height, TILE, max_tiles))
    sides = range(1, MAX_GRID + 1)
    grids = [(rows, columns) for rows in sides for columns in sides if rows * columns <= max_tiles]
    assert ours >= AS_SHARP * max(sharpness(width, height, grid) for grid in grids)


@given(SIDES, SIDES, BUDGETS)
def test_an_image_on_its_side_has_its_grid_on_its_side(width, height, max_tiles):
    assert choose_grid(height, width, TILE, max_tiles) == choose_grid(width, height, TILE, max_tiles)[::-1]


@given(SIDES, SIDES, BUDGETS)
def test_a_larger_budget_never_blurs_much(width, height, max_tiles):
    fewer, more = (choose_grid(width, height, TILE, budget) for budget in (max_tiles, min(max_tiles + 1, 64)))
    assert sharpness(width, height, more) >= AS_SHARP * sharpness(width, height, fewer)


def test_the_tiles_joined_are_the_image_at_the_size_of_the_grid():
    transform = ImageTransform(DATA_CONFIG, max_tiles=6)
    image = colourful(96, 60)
    tiles = tile_image(transform, image)
    assert tiles.grid == (2, 3)
    whole = ImageTransform({**DATA_CONFIG, "input_size": (3, 64, 96)})(image)
    rows = [torch.cat(list(row), dim=2) for row in tiles.pixel_values[1:].split(3)]
    assert torch.equal(torch.cat(rows, dim=1), whole)


def test_the_thumbnail_comes_first_and_is_the_transform_alone():
    transform = ImageTransform(DATA_CONFIG, max_tiles=6)
    assert torch.equal(tile_image(transform, colourful(96, 60)).pixel_values[0], transform(colourful(96, 60)))


def test_the_ids_tell_thumbnail_row_and_column():
    tiles = tile_image(ImageTransform(DATA_CONFIG, max_tiles=6), colourful(96, 60))
    assert tiles.tile_ids.tolist() == [0, 1, 2, 3, 9, 10, 11]
    assert tiles.tile_ids.dtype == torch.int64


def test_with_one_tile_there_is_the_thumbnail_alone():
    tiles = tile_image(ImageTransform(DATA_CONFIG), colourful(900, 700))
    assert torch.equal(tiles.pixel_values, ImageTransform(DATA_CONFIG)(colourful(900, 700))[None])
    assert (tiles.grid, tiles.tile_ids.tolist()) == ((1, 1), [0])


def test_a_small_image_has_no_tiles_whatever_the_budget():
    tiles = tile_image(ImageTransform(DATA_CONFIG, max_tiles=64), colourful(20, 30))
    assert tiles.pixel_values.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("size", [(200, 10), (10, 200), (90, 90), (130, 61)])
def test_every_tile_shows_a_part_of_the_image(size):
    transform = ImageTransform(DATA_CONFIG, max_tiles=12, background=(255, 255, 255))
    background = transform(Image.new("RGB", (1, 1), "white"))
    for tile in tile_image(transform, Image.new("RGB", size)).pixel_values:
        assert not torch.equal(tile, background)
