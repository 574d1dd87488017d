import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from arlow_vl.data.fetch.images import SourceImage, StoredImage, difference_hash, draw, draw_all, hash_distances
from vision.decoding.image import decode_image

SVG = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="30pt" height="60pt">'
    b'<rect width="20" height="80" fill="red"/></svg>'
)


def noise(seed, size=(64, 48)):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def source(data, **fields):
    names = {"key": "k", "source": "s", "license": "MIT", "style": "t", "caption": "c", "names": ("k",)}
    return SourceImage(**{**names, **fields}, data=data)


def drawn(data, **fields):
    return decode_image(draw(source(data, **fields)).jpeg, name="k")


def test_a_hash_survives_resizing_and_jpeg():
    image = noise(0)
    small = difference_hash(draw(source(png(image.resize((32, 24))))).jpeg, name="small")
    assert hash_distances(difference_hash(png(image), name="a")[None], small[None]).item() <= 12


def test_hashes_of_other_images_are_far():
    a, b = (difference_hash(png(noise(seed)), name="x") for seed in (0, 1))
    assert hash_distances(a[None], b[None]).item() > 60


def test_distances_count_differing_bits():
    left = np.random.default_rng(0).random((3, 256)) < 0.5
    right = np.random.default_rng(1).random((2, 256)) < 0.5
    expected = (left[:, None] != right[None]).sum(axis=-1)
    assert (hash_distances(left, right) == expected).all()


def test_a_large_image_is_shrunk_and_a_small_one_is_not_enlarged():
    assert drawn(png(noise(0, (600, 300)))).size == (256, 128)
    assert drawn(png(noise(0, (40, 30)))).size == (40, 30)


def test_an_svg_in_points_is_drawn_on_white():
    image = drawn(SVG)
    assert image.size == (128, 256)
    assert image.getpixel((20, 100))[0] > 200
    assert image.getpixel((120, 100)) == (255, 255, 255)


def test_white_margins_are_cut_only_from_pages():
    page = Image.new("RGB", (400, 400), "white")
    ImageDraw.Draw(page).rectangle((100, 100, 163, 163), fill="black")
    assert drawn(png(page), on_page=True).size == (68, 68)
    assert drawn(png(page)).size == (256, 256)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(Image.new("RGBA", (64, 64))), "blank"),
        (png(noise(0, (8, 8))), "tiny"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><broken", "bad_svg"),
    ],
)
def test_an_unusable_image_gives_its_reason(data, reason):
    assert draw(source(data)) == reason


def test_an_image_too_large_to_decode_is_left_out_from_its_header():
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    assert draw(source(buffer.getvalue())) == "too_many_pixels"


@pytest.mark.parametrize("workers", [1, 3])
def test_drawing_keeps_the_order_and_counts_what_is_left_out(workers, monkeypatch):
    monkeypatch.setattr("arlow_vl.data.fetch.images.WORKERS", workers)
    monkeypatch.setattr("arlow_vl.data.fetch.images.DRAWN", 2)
    images = [source(png(noise(n)), key=str(n)) for n in range(6)]
    images.insert(2, source(b"no image", key="bad"))
    steps = []
    stored, left_out = draw_all(images, steps.append)
    assert [image.origin.key for image in stored] == list("012345")
    assert left_out.total() == 1
    assert steps == [1, 2, 3, 4, 5, 6]
    assert all(isinstance(image, StoredImage) and image.origin.data == b"" for image in stored)
