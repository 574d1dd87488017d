import pytest
import torch

from vision.forms.tiling import MAX_GRID
from vision.places import NOWHERE, grid_of, grid_places, native_places, tile_places

NO_PLACE = [NOWHERE, NOWHERE]


def test_places_are_the_middles_of_patches_row_by_row():
    assert grid_places(2, 2).tolist() == [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
    assert grid_places(1, 1, prefix_tokens=2).tolist() == [NO_PLACE, NO_PLACE, [0.5, 0.5]]


@pytest.mark.parametrize(
    ("count", "size", "grid"),
    [
        (49, (224, 224), (7, 7)),
        (28, (224, 112), (7, 4)),
        (14, (33, 200), (2, 7)),
        (7, (10, 70), (1, 7)),
        (15, (3, 5), (3, 5)),
    ],
)
def test_a_grid_has_the_aspect_of_its_image(count, size, grid):
    assert grid_of(count, *size) == grid


def test_the_example_of_a_thumbnail_and_two_tiles():
    ids = torch.tensor([0, 1, 2])
    places = tile_places(grid_places(1, 2), ids, torch.tensor([3]))
    assert (places[..., 0] == 0.5).all()
    assert places[..., 1].tolist() == [[0.25, 0.75], [0.125, 0.375], [0.625, 0.875]]


def test_tiles_lie_where_the_mosaic_has_them_whatever_the_images_beside_it():
    tile = grid_places(3, 2, prefix_tokens=1)
    ids = [1 + row * MAX_GRID + column for row in range(2) for column in range(3)]
    mosaic = grid_places(6, 6).view(2, 3, 3, 2, 2).transpose(1, 2).reshape(6, 6, 2)  # 2 x 3 tiles of 3 x 2
    places = tile_places(tile, torch.tensor([0, 0, *ids, 0]), torch.tensor([1, 7, 1]))
    assert torch.equal(places[[0, 1, 8]], tile.expand(3, -1, -1))
    assert (places[:, 0] == NOWHERE).all()
    torch.testing.assert_close(places[2:8, 1:], mosaic)


def test_images_in_native_resolution_have_each_their_own_grid():
    places = native_places(torch.tensor([[1, 2], [2, 1]]), torch.tensor([3, 3]), prefix_tokens=1)
    assert places.tolist() == [NO_PLACE, [0.5, 0.25], [0.5, 0.75], NO_PLACE, [0.25, 0.5], [0.75, 0.5]]
