import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.outside_data import colourful
from vision.forms.native_resolution import native_image, native_size, patchify, unpatchify
from vision.transform import ImageTransform

DATA_CONFIG = {"mean": (0.5, 0.4, 0.3), "std": (0.2,) * 3, "input_size": (3, 32, 32), "interpolation": "bicubic"}
SIDES, PATCHES, BUDGETS = st.integers(1, 9000), st.sampled_from([8, 14, 16]), st.integers(1, 1024)


@pytest.mark.parametrize(
    ("width", "height", "max_patches", "size"),
    [
        (64, 48, 1024, (48, 64)),  # as it is
        (5, 5, 1024, (16, 16)),  # a patch is the least
        (640, 480, 192, (192, 256)),
        (480, 640, 192, (256, 192)),
        (8000, 8000, 256, (256, 256)),
        (10_000, 10, 256, (16, 4096)),
        (64_000_000, 1, 4, (16, 64)),
        (1, 64_000_000, 1, (16, 16)),
    ],
)
def test_the_size_of_an_image(width, height, max_patches, size):
    assert native_size(width, height, 16, max_patches) == size


@given(SIDES, SIDES, PATCHES, BUDGETS)
def test_a_size_is_whole_patches_within_the_budget(width, height, patch, max_patches):
    tall, wide = native_size(width, height, patch, max_patches)
    assert (tall % patch, wide % patch) == (0, 0)
    assert 1 <= tall * wide // patch**2 <= max_patches


@given(SIDES, SIDES, PATCHES, BUDGETS)
def test_a_side_is_never_a_patch_longer_than_the_aspect_says(width, height, patch, max_patches):
    """One scale, not over 1, explains both sides."""
    tall, wide = native_size(width, height, patch, max_patches)
    least = max((tall - patch) / height, (wide - patch) / width)
    assert least < min(tall / height, wide / width, 1.0) + 1e-6


@given(SIDES, SIDES, PATCHES, BUDGETS)
def test_the_budget_is_used_where_the_image_is_large_enough(width, height, patch, max_patches):
    tall, wide = native_size(width, height, patch, max_patches)
    rows, columns = tall // patch, wide // patch
    is_whole = rows == math.ceil(height / patch) and columns == math.ceil(width / patch)
    assert is_whole or min((rows + 1) * columns, rows * (columns + 1), (rows + 1) * (columns + 1)) > max_patches / 2


def test_an_image_is_resized_by_the_encoders_own_config():
    transform = ImageTransform(DATA_CONFIG, patch_size=8, max_patches=12)
    image = colourful(80, 60)
    assert native_size(80, 60, 8, 12) == (24, 32)
    square = ImageTransform({**DATA_CONFIG, "input_size": (3, 24, 32)})
    assert torch.equal(native_image(transform, image), square(image))


def test_a_transform_of_one_size_has_no_native_resolution():
    with pytest.raises(ValueError, match="patch_size and max_patches"):
        native_image(ImageTransform(DATA_CONFIG), colourful())


def test_packed_patches_have_no_padding_and_come_back_bit_for_bit():
    images = [torch.randn(3, height, width) for height, width in ((8, 24), (16, 8), (8, 8))]
    patches, grids = patchify(images, 8)
    assert patches.shape == (6, 192)
    assert grids.tolist() == [[1, 3], [2, 1], [1, 1]]
    for ours, image in zip(unpatchify(patches, grids), images, strict=True):
        assert torch.equal(ours, image)


def test_a_patch_is_what_naflexvit_takes():
    model = timm.create_model("naflexvit_base_patch16_gap", depth=1, embed_dim=32, num_heads=2).eval()
    image = torch.randn(3, 32, 64)
    patches, grids = patchify([image], 16)
    places = torch.cartesian_prod(*map(torch.arange, grids[0].tolist()))
    with torch.no_grad():
        ours = model.forward_features(patches[None], patch_coord=places[None])["patches"]
        theirs = model.forward_features(image[None])
    torch.testing.assert_close(ours, theirs)
