"""A PNG whose compressed pixels are a whole stream, but of too few rows: Pillow leaves the others black."""

import struct
import zlib

import numpy as np
import pytest

from vision.decoding.image import ImageError, decode_image
from vision.decoding.png import ADAM7

WIDTH, HEIGHT = 11, 9


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(rows: bytes, depth: int, colour_type: int, is_interlaced: bool = False) -> bytes:
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour_type, 0, 0, is_interlaced)
    palette = chunk(b"PLTE", bytes(range(48))) if colour_type == 3 else b""
    packed = zlib.compress(rows)
    pixels = chunk(b"IDAT", packed[:7]) + chunk(b"IDAT", packed[7:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + pixels + chunk(b"IEND", b"")


KINDS = {"grey": (8, 0, 11), "bits": (1, 0, 2), "colour": (8, 2, 33), "16 bits": (16, 2, 66), "palette": (4, 3, 6),
         "alpha": (8, 6, 44), "grey and alpha": (8, 4, 22)}  # fmt: skip


@pytest.mark.parametrize("value", [0, 9], ids=["black", "not black"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_rows_must_be_there_whatever_a_pixel_is(kind, value):
    depth, colour_type, bytes_of_row = KINDS[kind]
    row = b"\0" + bytes([value]) * bytes_of_row
    assert decode_image(png(row * HEIGHT, depth, colour_type), name="a.png").size == (WIDTH, HEIGHT)
    for rows in (HEIGHT - 1, 1):
        with pytest.raises(ImageError, match=r"^a\.png: not all of its pixels are there$") as error:
            decode_image(png(row * rows, depth, colour_type), name="a.png")
        assert error.value.reason == "truncated"


def test_interlaced_images_must_have_all_their_passes():
    sizes = [-(-(HEIGHT - top) // down) * (1 + 3 * -(-(WIDTH - left) // right)) for left, top, right, down in ADAM7]
    ends = np.cumsum(sizes).tolist()
    assert decode_image(png(bytes(ends[-1]), 8, 2, True), name="a.png").size == (WIDTH, HEIGHT)
    for end in ends[:-1]:
        with pytest.raises(ImageError, match="not all of its pixels"):
            decode_image(png(bytes(end), 8, 2, True), name="a.png")


def test_a_stream_that_is_cut_is_told_in_our_words():
    rows = png(b"\0" + bytes(range(33)) * HEIGHT, 8, 2)
    start = rows.index(b"IDAT") - 4
    cut = rows[:start] + chunk(b"IDAT", zlib.compress(bytes(34) * HEIGHT)[:-9]) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match=r"^a\.png: not all of its pixels are there$"):
        decode_image(cut, name="a.png")
