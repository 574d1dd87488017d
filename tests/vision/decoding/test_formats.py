"""Whatever the bytes are: an RGB image or an ImageError, in little time, without a warning."""

import struct
import warnings
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.outside_data import colourful, encoded, with_orientation
from vision.decoding.image import ImageError, decode_image
from vision.decoding.parts import SplicedFile, exif_orientation

EXIF = with_orientation(6)
SEEDS = {
    "JPEG": encoded(colourful(), "JPEG", exif=EXIF),
    "progressive JPEG": encoded(colourful(), "JPEG", progressive=True),
    "PNG": encoded(colourful().convert("P"), "PNG", exif=EXIF, transparency=b"\0\x80"),
    "APNG": encoded(colourful(), "PNG", save_all=True, append_images=[colourful().rotate(180)]),
    "GIF": encoded(colourful(), "GIF", save_all=True, append_images=[colourful().rotate(180)]),
    "WEBP": encoded(colourful().convert("RGBA"), "WEBP", exif=EXIF),
    "animated WEBP": encoded(colourful(), "WEBP", save_all=True, append_images=[colourful().rotate(180)]),
    "BMP": encoded(colourful().convert("P"), "BMP"),
    "TIFF": encoded(colourful().convert("L"), "TIFF", exif=EXIF),
    "LZW TIFF": encoded(colourful(), "TIFF", compression="tiff_lzw"),
    "big TIFF": encoded(colourful().convert("F"), "TIFF", big_tiff=True),
}
NUMBERS = st.sampled_from([0, 1, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**32 - 1])


def with_valid_checksums(data: bytes) -> bytes:
    """A PNG's chunks as they are, so that mutations get past their checksums."""
    parts, position = [data[:8]], 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        if end + 4 > len(data):
            break
        parts.append(data[position:end] + struct.pack(">I", zlib.crc32(data[position + 4 : end])))
        position = end + 4
    return b"".join([*parts, data[position:]])


@st.composite
def mutated(draw, data: bytes) -> bytes:
    image = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(image) - 1)))
        match draw(st.sampled_from(["byte", "number", "cut", "insert", "delete"])):
            case "byte":
                image[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "number":
                image[place : place + 4] = struct.pack(draw(st.sampled_from("<>")) + "I", draw(NUMBERS))
            case "cut":
                image = image[:place]
            case "insert":
                image[place:place] = draw(st.binary(max_size=20))
            case "delete":
                del image[place : place + draw(st.integers(1, 20))]
    return bytes(image)


@pytest.mark.parametrize("kind", SEEDS)
def test_mutated_bytes_are_an_image_or_an_image_error(kind):
    @settings(max_examples=40)
    @given(data=mutated(SEEDS[kind]))
    def check(data):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                image = decode_image(with_valid_checksums(data) if "PNG" in kind else data, name="a")
            except ImageError:
                return
        assert image.mode == "RGB"
        assert image.width * image.height > 0

    check()


@settings(max_examples=100)
@given(st.binary(max_size=200), st.sampled_from([seed[:12] for seed in SEEDS.values()]))
def test_random_bytes_after_a_signature_are_an_image_error(data, signature):
    with pytest.raises(ImageError):
        decode_image(signature + data, name="a")


@settings(max_examples=100)
@given(st.binary(max_size=80))
def test_an_orientation_is_1_to_8_whatever_the_exif_holds(data):
    assert 1 <= exif_orientation(b"Exif\0\0II*\0" + data) <= 8


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=9), max_size=6), st.integers(0, 60), st.integers(0, 60))
def test_a_spliced_file_reads_as_the_joined_parts(parts, start, size):
    file = SplicedFile(parts)
    file.seek(start)
    read = b""
    while piece := file.read(max(1, size - len(read))):
        read += piece
        if len(read) >= size:
            break
    assert read[:size] == b"".join(parts)[start : start + size]
