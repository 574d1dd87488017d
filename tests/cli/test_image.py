import json

import pytest
from PIL import Image

from arlow_vl.cli import main
from tests.outside_data import encoded, png, with_orientation


@pytest.fixture
def four_colours(tmp_path):
    image = Image.new("RGB", (3, 2), "white")
    for place, colour in {(0, 0): "red", (2, 0): "lime", (0, 1): "blue"}.items():
        image.putpixel(place, Image.new("RGB", (1, 1), colour).getpixel((0, 0)))
    path = tmp_path / "a.jpg"  # the content counts, not the name
    path.write_bytes(encoded(image, "PNG"))
    return path


RED, GREEN, BLUE, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]


def test_json_gives_size_and_corner_pixels(four_colours, capsys):
    assert main(["image", "check", "--json", str(four_colours)]) == 0
    assert json.loads(capsys.readouterr().out) == {"width": 3, "height": 2, "corners": [RED, GREEN, BLUE, WHITE]}


def test_the_image_is_upright(four_colours, capsys):
    four_colours.write_bytes(encoded(Image.open(four_colours), "PNG", exif=with_orientation(6)))
    main(["image", "check", "--json", str(four_colours)])
    assert json.loads(capsys.readouterr().out) == {"width": 2, "height": 3, "corners": [BLUE, RED, WHITE, GREEN]}


def test_without_json_it_is_readable(four_colours, capsys):
    main(["image", "check", str(four_colours)])
    assert capsys.readouterr().out.splitlines()[:2] == ["3 x 2 pixels", "top left: 255 0 0"]


BROKEN_TIFF = bytearray(encoded(Image.linear_gradient("L"), "TIFF", compression="tiff_lzw"))
BROKEN_TIFF[40:140] = bytes(100)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(20_000, 20_000), "20,000 x 20,000 pixels, the limit is 64,000,000"),
        (b"hello", "no image"),
        (b"", "0 bytes"),
        (encoded(Image.new("RGB", (9, 9)), "PNG")[:-5], "cut off"),
        (bytes(BROKEN_TIFF), "decoder error"),  # libtiff would write lines of its own
        (None, "no such file"),
    ],
)
def test_an_error_is_one_line_that_names_file_and_reason(tmp_path, capfd, data, reason):
    path = tmp_path / "a.png"
    if data is not None:
        path.write_bytes(data)
    assert main(["image", "check", "--json", str(path)]) == 3
    shown = capfd.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert "a.png" in shown.err
    assert reason in shown.err


@pytest.mark.parametrize("name", ["a\x1b[31mred\nline.png", "a\x9b2J.png", "a\u202egnp.png", "a\udcff.png"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_file_name_cannot_move_the_cursor(tmp_path, capfd, name, exists):
    path = tmp_path / name
    if exists:
        path.write_bytes(b"hello")
    assert main(["image", "check", str(path)]) == 3
    shown = capfd.readouterr().err
    assert shown.removesuffix("\n").isprintable()
    assert "png: " in shown
    if exists:
        path.write_bytes(encoded(Image.new("RGB", (9, 9)), "PNG"))
        assert main(["image", "check", str(path)]) == 0
