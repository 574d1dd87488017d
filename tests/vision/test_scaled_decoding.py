"""JPEGs decoded at a fraction of their scale: nearly the same tensor, the same place, the same refusals."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.outside_data import colourful, encoded, with_orientation
from vision.decoding.image import ImageError, ImageFile, ImageLimits, decode_image
from vision.forms.native_resolution import native_from_bytes
from vision.forms.tiling import tiles_from_bytes
from vision.transform import ImageTransform

FOX = Path(__file__).parents[1] / "samples" / "fox.jpg"
LEVELS = {"mean": (0, 0, 0), "std": (1 / 255,) * 3, "input_size": (3, 32, 32), "interpolation": "bicubic"}
ODD = (601, 403)  # no multiple of 2, 4 or 8
MEAN_LEVELS, MAX_LEVELS = 1.5, 50.0
"""Of 255. Photographs of up to 3000 pixels, made 224 pixels large, differed by 0.6 in the mean and 18 at most, as
libjpeg's scaled transform is a little softer than Pillow's bicubic. The images here become 32 pixels large, where it
is up to 1.3, and 45 in the row that touches the padding, a quarter of a pixel of which the last row of blocks fills."""


def mosaic(width: int, height: int) -> Image.Image:
    """A large image with the detail of a photograph."""
    image, fox = Image.new("RGB", (width, height)), Image.open(FOX)
    for top in range(0, height, fox.height):
        for left in range(0, width, fox.width):
            image.paste(fox, (left, top))
    return image


def both(**options) -> tuple[ImageTransform, ImageTransform]:
    """A transform that decodes images whole, and one that does not."""
    return ImageTransform(LEVELS, **options), ImageTransform(LEVELS, **options, scaled_decoding=True)


def assert_close_in_levels(scaled, whole) -> None:
    difference = (scaled - whole).abs()
    assert difference.mean() <= MEAN_LEVELS
    assert difference.max() <= MAX_LEVELS


@pytest.mark.parametrize("size", [ODD, ODD[::-1], (640, 480), (1203, 37)])
def test_a_scaled_image_differs_no_more_than_by_resampling(size):
    data = encoded(mosaic(*size), "JPEG", quality=90)
    whole, scaled = (transform.from_bytes(data, name="a") for transform in both())
    assert not torch.equal(scaled, whole)
    assert_close_in_levels(scaled, whole)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_scaled_image_is_upright_and_in_its_place(orientation):
    data = encoded(mosaic(*ODD), "JPEG", quality=95, exif=with_orientation(orientation))
    whole, scaled = (transform.from_bytes(data, name="a") for transform in both())
    assert_close_in_levels(scaled, whole)


def test_tiles_of_a_scaled_image_are_those_of_the_whole_one():
    data = encoded(mosaic(*ODD), "JPEG", quality=90)
    whole, scaled = (tiles_from_bytes(transform, data, name="a") for transform in both(max_tiles=9))
    assert scaled.grid == whole.grid != (1, 1)
    assert_close_in_levels(scaled.pixel_values, whole.pixel_values)


def test_a_scaled_image_keeps_its_native_size():
    data = encoded(mosaic(*ODD), "JPEG", quality=90)
    transforms = both(patch_size=8, max_patches=100)
    whole, scaled = (native_from_bytes(transform, data, name="a") for transform in transforms)
    assert_close_in_levels(scaled, whole)


@pytest.mark.parametrize(("side", "scale"), [(64, 1), (127, 1), (128, 2), (255, 2), (256, 4), (512, 8), (4096, 8)])
def test_what_is_decoded_is_at_least_twice_as_large_as_what_is_wanted(side, scale):
    wide = ImageFile(encoded(Image.new("RGB", (side, 40)), "JPEG"), name="a")
    transform = ImageTransform(LEVELS, scaled_decoding=True)
    image, _ = transform.decode(wide, side / 32)
    assert image.width == -(-side // scale)


@pytest.mark.parametrize("side", [1, 3, 7, 9])
def test_a_narrow_strip_can_be_scaled(side):
    data = encoded(mosaic(2000, side), "JPEG")
    assert ImageTransform(LEVELS, scaled_decoding=True).from_bytes(data, name="a").shape == (3, 32, 32)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_are_decoded_whole(image_format):
    data = encoded(mosaic(*ODD), image_format)
    whole, scaled = (transform.from_bytes(data, name="a") for transform in both())
    assert torch.equal(scaled, whole)


def test_from_bytes_is_decode_and_transform():
    data = encoded(mosaic(*ODD), "JPEG")
    transform = ImageTransform(LEVELS)
    assert torch.equal(transform.from_bytes(data, name="a"), transform(decode_image(data, name="a")))


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_a_broken_jpeg_is_refused_at_every_scale(scale):
    data = bytearray(encoded(mosaic(*ODD), "JPEG"))
    table = data.index(b"\xff\xc4")
    data[table + 5 : table + 21] = b"\xff" * 16  # more Huffman codes than there are
    with pytest.raises(ImageError) as caught:
        ImageFile(bytes(data), name="a").decode(scale=scale)
    assert caught.value.reason == "corrupt"


def test_a_cut_jpeg_is_refused_before_it_is_decoded_at_any_scale():
    data = encoded(mosaic(*ODD), "JPEG", progressive=True)
    with pytest.raises(ImageError) as caught:
        ImageTransform(LEVELS, scaled_decoding=True).from_bytes(data[:-2], name="a")
    assert caught.value.reason == "truncated"


def test_the_limits_are_those_of_the_whole_image():
    data = encoded(mosaic(*ODD), "JPEG")
    for limits in (ImageLimits(max_pixels=601 * 403 - 1), ImageLimits(max_memory_bytes=900_000)):
        with pytest.raises(ImageError, match="limit"):
            ImageTransform(LEVELS, scaled_decoding=True).from_bytes(data, name="a", limits=limits)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_can_be_scaled(mode):
    data = encoded(colourful(600, 400).convert(mode), "JPEG", quality=95, exif=with_orientation(6))
    whole, scaled = (transform.from_bytes(data, name="a") for transform in both())
    assert_close_in_levels(scaled, whole)


def test_a_scaled_image_is_no_larger_in_memory():
    data = io.BytesIO()
    mosaic(*ODD).save(data, "JPEG")
    assert ImageFile(data.getvalue(), name="a").decode(scale=8).size == (76, 51)
