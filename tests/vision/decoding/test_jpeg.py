"""A JPEG whose compressed data ends early is refused, wherever it was cut, and no whole one is."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.outside_data import colourful, encoded
from vision.decoding.image import ImageError, decode_image
from vision.decoding.jpeg import MARKER, _pieces, read_jpeg

FOX = (Path(__file__).parents[2] / "samples" / "fox.jpg").read_bytes()
END = b"\xff\xd9"


def photo(mode: str = "RGB") -> Image.Image:
    return Image.open(io.BytesIO(FOX)).resize((200, 130)).convert(mode)


KINDS = {
    "baseline": encoded(photo(), "JPEG"),
    "baseline of optimal codes": encoded(photo(), "JPEG", optimize=True),
    "baseline with full colour": encoded(photo(), "JPEG", subsampling=0),
    "grey": encoded(photo("L"), "JPEG"),
    "CMYK": encoded(photo("CMYK"), "JPEG"),
    "a restart in each row": encoded(photo(), "JPEG", restart_marker_rows=1),
    "a restart every 3 blocks": encoded(photo(), "JPEG", restart_marker_blocks=3),
    "progressive": encoded(photo(), "JPEG", progressive=True),
    "progressive with restarts": encoded(photo(), "JPEG", progressive=True, restart_marker_blocks=5),
    "flat": encoded(Image.new("RGB", (640, 480), (128, 128, 128)), "JPEG"),
    "flat with restarts": encoded(Image.new("RGB", (640, 480), (128, 128, 128)), "JPEG", restart_marker_rows=1),
    "flat progressive": encoded(Image.new("RGB", (640, 480), "grey"), "JPEG", progressive=True),
}


def first_data(data: bytes) -> int:
    """Where the first entropy-coded byte stands."""
    start = data.index(b"\xff\xda") + 2
    return start + int.from_bytes(data[start : start + 2], "big")


def refusal(data: bytes) -> str | None:
    try:
        decode_image(data, name="a")
    except ImageError as error:
        return error.reason
    return None


@pytest.mark.parametrize("percent", [1, 10, 25, 40, 60, 75, 90, 97])
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_that_was_cut_and_given_an_end_again_is_refused(kind, percent):
    data = KINDS[kind]
    begin = first_data(data)
    cut = begin + (len(data) - 2 - begin) * percent // 100
    assert refusal(data[:cut] + END) in ("truncated", "corrupt")


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_jpeg_has_the_pixels_that_pillow_gives(kind):
    expected = Image.open(io.BytesIO(KINDS[kind])).convert("RGB")
    assert decode_image(KINDS[kind], name="a").tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["a restart in each row", "a restart every 3 blocks", "progressive with restarts"])
def test_a_restart_interval_that_is_cut_in_the_middle_of_the_file_is_refused(kind):
    data = KINDS[kind]
    second = data.index(b"\xff\xd1", first_data(data))
    assert refusal(data[: second - 8] + data[second:]) in ("truncated", "corrupt")


@pytest.mark.parametrize("kind", ["a restart in each row", "progressive with restarts"])
def test_a_lost_restart_interval_is_refused(kind):
    data = KINDS[kind]
    places = [data.index(bytes([0xFF, code]), first_data(data)) for code in (0xD1, 0xD2)]
    assert refusal(data[: places[0]] + data[places[1] :]) in ("truncated", "corrupt")


def test_an_earlier_scan_that_is_cut_is_refused():
    data = KINDS["progressive"]
    scans = [match for match in MARKER.finditer(data) if match[1] == b"\xda"]
    for scan in scans[1:-1]:
        end = MARKER.search(data, scan.end() + 2 + 8).start()
        begin = scan.end() + int.from_bytes(data[scan.end() : scan.end() + 2], "big")
        if end - begin > 100:
            assert refusal(data[: begin + (end - begin) // 2] + data[end:]) == "truncated"


def test_a_progressive_jpeg_without_its_last_scans_is_refused():
    data = KINDS["progressive"]
    scans = [match.start() for match in MARKER.finditer(data) if match[1] == b"\xda"]
    assert len(scans) > 5
    for scan in scans[1:]:
        assert refusal(data[:scan] + END) == "truncated"


def test_bytes_between_the_data_and_the_end_are_no_damage():
    for extra in (bytes(40), b"\xff" * 5, b"\xff\x00" * 20):
        assert refusal(KINDS["baseline"][:-2] + extra + END) is None


def test_a_cut_jpeg_in_a_tiff_is_refused():
    data = encoded(photo(), "TIFF", compression="jpeg")
    assert refusal(data) is None
    place = data.index(END)  # of the first strip
    assert refusal(data[:place] + b"\0\0" + data[place + 2 :]) == "truncated"


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    look=st.sampled_from(["flat", "noise", "gradient", "black"]),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    options=st.fixed_dictionaries(
        {
            "quality": st.integers(1, 100),
            "progressive": st.booleans(),
            "optimize": st.booleans(),
            "subsampling": st.integers(0, 2),
            "restart_marker_blocks": st.sampled_from([0, 0, 1, 2, 7]),
        }
    ),
)
def test_no_whole_jpeg_is_taken_for_a_cut_one(size, look, mode, options):
    width, height = size
    if look == "noise":
        image = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))
    else:
        image = {"flat": Image.new("RGB", size, (128, 128, 128)), "black": Image.new("RGB", size)}.get(look)
        image = image or colourful(width, height)
    data = encoded(image.convert(mode), "JPEG", **options)
    assert decode_image(data, name="a").size == size


def test_tables_said_again_and_again_are_read_in_linear_time():
    data = encoded(photo(), "JPEG")
    table = data[data.index(b"\xff\xdb") :][: 2 + 67]
    assert int.from_bytes(table[2:4], "big") == 67
    seconds = []
    for count in (2_000, 16_000):
        repeated = data[:2] + count * table + data[2:]
        tries = []
        for _ in range(3):  # a busy machine makes one slow, not all
            began = time.process_time()
            pieces = list(_pieces(read_jpeg(repeated).parts))
            tries.append(time.process_time() - began)
        seconds.append(min(tries))
        assert len(pieces[0]) > 67 * count
    assert seconds[1] < 24 * seconds[0] + 0.1  # 64 times, where each copies all before it
