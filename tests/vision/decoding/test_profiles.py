"""Colour profiles: the same colours in sRGB, whatever the format; a profile that is no use is passed over."""

import io
import zlib

import pytest
from PIL import Image, ImageCms

from tests.outside_data import colourful, encoded, icc_profile, png, png_chunk, with_orientation
from vision.decoding.image import decode_image
from vision.decoding.profiles import MAX_PROFILE_BYTES, convert_to_srgb

ADOBE = icc_profile()
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LOSSLESS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}


def decoded(data: bytes) -> Image.Image:
    return decode_image(data, name="a")


def in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """By Pillow's own function."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), 1, "RGB", False, flags)


@pytest.mark.parametrize("image_format", LOSSLESS)
def test_a_profile_is_converted_to_srgb(image_format):
    data = encoded(colourful(), image_format, icc_profile=ADOBE, **LOSSLESS[image_format])
    assert decoded(data).tobytes() == in_srgb(colourful(), ADOBE).tobytes() != colourful().tobytes()


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_with_a_profile_is_converted_too(orientation):
    options = {"icc_profile": icc_profile(padding=70_000), "exif": with_orientation(orientation)}  # two segments
    data, plain = (encoded(colourful(), "JPEG", **some) for some in (options, {"exif": options["exif"]}))
    assert decoded(data).tobytes() == in_srgb(decoded(plain), ADOBE).tobytes()


def test_adobe_green_is_greener_than_srgb_can_show_and_its_greys_stay_grey():
    image = Image.new("RGB", (2, 1), (100, 150, 200))
    image.putpixel((1, 0), (128, 128, 128))
    first, second = (decoded(encoded(image, "PNG", icc_profile=ADOBE)).getpixel((x, 0)) for x in (0, 1))
    assert first == pytest.approx((66, 151, 203), abs=1)
    assert max(second) - min(second) <= 1


def test_grey_with_a_profile_becomes_brighter_or_darker_by_its_gamma():
    data = encoded(Image.new("L", (4, 4), 128), "PNG", icc_profile=icc_profile(b"GRAY", gamma=1.0))
    assert decoded(data).getpixel((0, 0)) == pytest.approx((188, 188, 188), abs=1)
    clear = encoded(Image.new("LA", (4, 4), (128, 0)), "PNG", icc_profile=icc_profile(b"GRAY", gamma=1.0))
    assert decoded(clear).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_colours_are_converted_before_they_are_laid_on_white(mode):
    image = colourful().convert(mode)
    data = encoded(image, "PNG", icc_profile=ADOBE)
    assert decoded(data).tobytes() == in_srgb(image.convert("RGB"), ADOBE).tobytes()


def test_srgb_by_any_name_leaves_every_pixel():
    image = colourful(200, 100)
    assert convert_to_srgb(image, SRGB) is image
    assert decoded(encoded(image, "PNG", icc_profile=SRGB)).tobytes() == image.tobytes()


BROKEN = {
    "cut": ADOBE[:200],
    "not a profile": b"profile" * 50,
    "of grey": icc_profile(b"GRAY"),
    "too large": icc_profile(padding=MAX_PROFILE_BYTES),
    "a million tags": ADOBE[:128] + b"\x00\x0f\xff\xff" + ADOBE[132:],
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("image_format", LOSSLESS)
def test_a_profile_that_is_no_use_is_passed_over(kind, image_format):
    data = encoded(colourful(), image_format, icc_profile=BROKEN[kind], **LOSSLESS[image_format])
    assert decoded(data).tobytes() == colourful().tobytes()


def test_a_profile_that_unpacks_to_gigabytes_is_not_unpacked():
    bomb = zlib.compress(bytes(200_000_000))
    data = png(4, 4, bytes(range(16)), extra=png_chunk(b"iCCP", b"p\0\0" + bomb))
    assert decoded(data).getpixel((1, 0)) == (1, 1, 1)
