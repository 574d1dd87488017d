"""Every mode that a file can have becomes upright 8-bit RGB on white."""

import io
import math
import struct

import pytest
from PIL import Image, ImageOps

from tests.outside_data import colourful, encoded, png, png_chunk, tiff, with_orientation
from vision.decoding.image import ImageError, decode_image


def decoded(data: bytes) -> Image.Image:
    return decode_image(data, name="a")


def upright_on_white(data: bytes) -> Image.Image:
    """The same by Pillow's own functions, each on the whole image."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white.convert("RGB")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(image_format, orientation):
    data = encoded(colourful(12, 700), image_format, exif=with_orientation(orientation))
    image, upright = decoded(data), upright_on_white(data)
    assert (image.size, image.tobytes()) == (upright.size, upright.tobytes())


def test_large_images_are_turned_strip_by_strip():
    data = encoded(colourful(700, 1000).convert("L"), "PNG", exif=with_orientation(7))
    assert decoded(data).tobytes() == upright_on_white(data).tobytes()


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_unreadable_exif_leaves_the_image_upright(exif):
    assert decoded(encoded(colourful(), "JPEG", exif=exif)).size == (12, 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_laid_on_white(mode):
    clear = Image.new("LA", (2, 1), (0, 0)).convert("RGBA")
    clear.putpixel((1, 0), (0, 0, 0, 128))
    data = encoded(clear.convert(mode), "TIFF" if mode == "PA" else "PNG")
    assert decoded(data).getpixel((0, 0)) == (255, 255, 255)
    assert decoded(data).getpixel((1, 0)) == (127, 127, 127)


def test_palette_transparency_is_laid_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert list(decoded(encoded(image, "PNG", transparency=b"\0\xff")).tobytes()) == [255, 255, 255, 40, 50, 60]
    assert list(decoded(encoded(image, "GIF", transparency=1)).tobytes()) == [10, 20, 30, 255, 255, 255]


COLOUR_KEYS = {  # depth, colour type, key, two pixels of which the first has the key's colour, the second's grey
    "grey of 1 bit": (1, 0, [0], b"\x40", 255),
    "grey of 2 bits": (2, 0, [1], b"\x60", 170),
    "grey of 4 bits": (4, 0, [3], b"\x3a", 170),
    "grey of 8 bits": (8, 0, [7], b"\x07\xaa", 170),
    "grey of 16 bits": (16, 0, [1000], struct.pack(">HH", 1000, 257 * 170), 170),
    "RGB of 8 bits": (8, 2, [1, 2, 3], b"\1\2\3\xaa\xaa\xaa", 170),
    "RGB of 16 bits": (16, 2, [999, 999, 999], struct.pack(">6H", 999, 999, 999, *[257 * 170] * 3), 170),
}


@pytest.mark.parametrize("kind", COLOUR_KEYS)
def test_the_transparent_colour_of_a_png_becomes_white(kind):
    depth, colour, key, pixels, grey = COLOUR_KEYS[kind]
    extra = png_chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    assert list(decoded(png(2, 1, pixels, depth=depth, colour=colour, extra=extra)).tobytes()) == [255] * 3 + [grey] * 3


def test_16_bit_images_with_alpha_are_laid_on_white():
    pixels = struct.pack(">4H", 0, 0, 257 * 90, 65_535)
    assert list(decoded(png(2, 1, pixels, depth=16, colour=4)).tobytes()) == [255] * 3 + [90] * 3
    pixels = struct.pack(">8H", 0, 0, 0, 0, 257 * 90, 0, 65_535, 65_535)
    assert list(decoded(png(2, 1, pixels, depth=16, colour=6)).tobytes()) == [255, 255, 255, 90, 0, 255]


def test_16_bit_grey_is_scaled_not_clipped():
    pixels = struct.pack(">4H", 0, 257 * 100, 40_000, 65_535)
    assert list(decoded(png(4, 1, pixels, depth=16)).getchannel(0).tobytes()) == [0, 100, 156, 255]


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_16_bit_tiff_is_scaled_in_either_byte_order(mode):
    image = Image.frombytes(mode, (2, 1), struct.pack("<2H" if mode == "I;16" else ">2H", 257 * 100, 65_535))
    assert list(decoded(encoded(image, "TIFF")).getchannel(0).tobytes()) == [100, 255]


def test_12_bit_tiff_uses_its_own_range():
    assert list(decoded(tiff(2, 1, 12, b"\xff\xf0\x00")).getchannel(0).tobytes()) == [255, 0]


@pytest.mark.parametrize(("bits", "pixels"), [(8, b"\0\xff"), (16, b"\0\0\xff\xff")])
def test_a_negative_tiff_is_turned_positive(bits, pixels):
    assert list(decoded(tiff(2, 1, bits, pixels, white=0)).getchannel(0).tobytes()) == [255, 0]


@pytest.mark.parametrize(
    ("mode", "values", "greys"),
    [
        ("F", [0.0, 0.5, 1.0], [0, 128, 255]),
        ("F", [0.0, 100.0, 255.0], [0, 100, 255]),
        ("F", [0.0, 25_700.0, 65_535.0], [0, 100, 255]),
        ("F", [-1.0, 0.0, 1.0], [0, 128, 255]),
        ("F", [1e9, 3e9, 5e9], [0, 128, 255]),
        ("F", [0.25, 0.25, 0.25], [64, 64, 64]),
        ("F", [-3.0, -3.0, -3.0], [0, 0, 0]),
        ("I", [0, 100, 255], [0, 100, 255]),
        ("I", [0, 25_700, 65_535], [0, 100, 255]),
        ("I", [0, 500_000, 1_000_000], [0, 128, 255]),
        ("I", [-100, 0, 100], [0, 128, 255]),
        ("F", [0.0, 0.5, 1.001], [0, 128, 255]),
        ("F", [-0.001, 0.5, 1.0], [0, 128, 255]),
        ("F", [0.0, 5.0, 10.0], [0, 128, 255]),
        ("F", [0.0, 100.0, 256.5], [0, 100, 255]),
        ("I", [0, 100, 256], [0, 100, 255]),
        ("I", [0, 500, 1000], [0, 128, 255]),
    ],
)
def test_32_bit_values_are_scaled_by_the_smallest_range_that_holds_them(mode, values, greys):
    image = Image.new(mode, (3, 1))
    image.putdata(values)
    assert list(decoded(encoded(image, "TIFF")).getchannel(0).tobytes()) == greys


@pytest.mark.parametrize("stray", [-9999.0, 3.0, 1e9])
def test_a_few_stray_values_do_not_move_the_range_of_the_others(stray):
    image = Image.new("F", (100, 100), 0.5)
    image.putpixel((7, 9), stray)
    assert decoded(encoded(image, "TIFF")).getpixel((50, 50)) == (128, 128, 128)


def test_unsigned_32_bit_values_are_no_negative_ones():
    pixels = struct.pack("<4I", 0, 2**30, 2**31, 2**32 - 1)
    assert list(decoded(tiff(4, 1, 32, pixels)).getchannel(0).tobytes()) == [0, 64, 128, 255]
    signed = struct.pack("<3i", -(2**31), 0, 2**31 - 1)
    assert list(decoded(tiff(3, 1, 32, signed, [(339, 3, 1, 2)])).getchannel(0).tobytes()) == [0, 128, 255]


def test_float_pixels_that_are_no_numbers_are_refused():
    with pytest.raises(ImageError, match="no finite numbers"):
        decoded(encoded(Image.new("F", (2, 2), math.nan), "TIFF"))


def test_cmyk_as_adobe_inverts_it_keeps_its_colours():
    inks = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert decoded(encoded(inks, "JPEG", quality=100)).getpixel((0, 0)) == pytest.approx((0, 255, 255), abs=3)
    assert decoded(encoded(inks, "TIFF")).getpixel((0, 0)) == (0, 255, 255)


def test_lab_becomes_rgb():
    white = Image.merge("LAB", [Image.new("L", (2, 2), value) for value in (255, 128, 128)])
    assert decoded(encoded(white, "TIFF")).getpixel((0, 0)) == pytest.approx((255, 255, 255), abs=2)
