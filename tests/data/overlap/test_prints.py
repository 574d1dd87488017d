"""Prints of real images: nearly the same when they are compressed or resized, far apart for other images."""

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from arlow_vl.data.formats.detect import open_source
from arlow_vl.data.index.images import read_image
from arlow_vl.data.overlap.pairs import COLOUR_DISTANCE, MOST_BITS
from arlow_vl.data.overlap.prints import print_of
from vision.decoding.image import decode_image

SAMPLES = Path(__file__).parents[2] / "samples"


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    samples = [sample for folder in ("captions", "easy-vqa") for sample in open_source(SAMPLES / folder).iterate()]
    return [decode_image(read_image(sample.images[0]), name="") for sample in samples]


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=quality)
        return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def distance(one: np.void, other: np.void) -> tuple[int, int]:
    """Bits and colours."""
    bits = np.unpackbits(one["bits"] ^ other["bits"]).sum()
    return int(bits), int(np.abs(one["colours"].astype(int) - other["colours"].astype(int)).max())


def is_near(one: np.void, other: np.void) -> bool:
    bits, colours = distance(one, other)
    return bits <= MOST_BITS and colours <= COLOUR_DISTANCE


@pytest.mark.parametrize("quality", [90, 50, 30])
def test_a_compressed_image_stays_near(images, quality):
    assert all(is_near(print_of(image), print_of(recompressed(image, quality))) for image in images)


@pytest.mark.parametrize("scale", [0.75, 1.5, 3])
def test_a_resized_image_stays_near(images, scale):
    for image in images:
        size = round(image.width * scale), round(image.height * scale)
        assert is_near(print_of(image), print_of(image.resize(size, Image.Resampling.BICUBIC)))


def test_other_images_are_not_near(images):
    prints = [print_of(image) for image in images]
    near = [pair for pair in combinations(prints, 2) if is_near(*pair)]
    assert near == []


def test_colours_tell_equal_shapes_apart():
    discs = []
    for colour in ((200, 30, 30), (30, 66, 200)):
        image = Image.new("RGB", (64, 64), (255, 255, 255))
        ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=colour)
        discs.append(print_of(image))
    bits, colours = distance(*discs)
    assert bits <= MOST_BITS
    assert colours > COLOUR_DISTANCE


def test_an_even_image_with_noise_has_no_bits():
    noise = np.random.default_rng(0).integers(118, 122, (400, 300, 3)).astype(np.uint8)
    assert not print_of(Image.fromarray(noise))["bits"].any()


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (17, 8)])
def test_any_size_has_a_print(size):
    found = print_of(Image.new("RGB", size, (10, 20, 30)))
    assert found["colours"].reshape(-1, 3).tolist() == [[10, 20, 30]] * 16
