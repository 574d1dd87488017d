"""The same image is the same pixels and the same tensor, whatever form it comes in."""

import base64
import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.outside_data import colourful, encoded, icc_profile, png, png_chunk, tiff, with_orientation
from vision.decoding.image import ImageError, ImageLimits, decode_image
from vision.decoding.sources import read_image
from vision.forms.batches import pack_images, prepare_image
from vision.transform import ImageTransform

DATA_CONFIG = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "input_size": (3, 16, 24), "interpolation": "bicubic"}
TRANSFORMS = {
    "one size": ImageTransform(DATA_CONFIG, background=(10, 20, 30)),
    "tiles": ImageTransform(DATA_CONFIG, max_tiles=4),
    "native": ImageTransform(DATA_CONFIG, patch_size=8, max_patches=30),
}


def deep_grey(width: int, height: int) -> bytes:
    values = np.linspace(0, 65_535, width * height).astype(">u2")
    return png(width, height, values.tobytes(), depth=16)


def clear(width: int, height: int) -> Image.Image:
    image = colourful(width, height).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((width, height)))
    return image


FILES = {
    "JPEG": encoded(colourful(90, 61), "JPEG"),
    "progressive JPEG": encoded(colourful(90, 61), "JPEG", progressive=True),
    "large JPEG": encoded(colourful(601, 403), "JPEG"),
    "JPEG turned by EXIF": encoded(colourful(90, 61), "JPEG", exif=with_orientation(6)),
    "CMYK JPEG": encoded(colourful(90, 61).convert("CMYK"), "JPEG"),
    "JPEG with a profile": encoded(colourful(90, 61), "JPEG", icc_profile=icc_profile()),
    "MPO": encoded(colourful(90, 61), "MPO", save_all=True, append_images=[colourful(9, 9)]),
    "PNG with alpha": encoded(clear(90, 61), "PNG"),
    "PNG of 16 bits": deep_grey(90, 61),
    "PNG with a palette": encoded(colourful(90, 61).convert("P"), "PNG", transparency=b"\0\x80"),
    "PNG turned by EXIF, with a profile": encoded(
        colourful(90, 61), "PNG", exif=with_orientation(3), icc_profile=icc_profile()
    ),
    "animated GIF": encoded(colourful(90, 61), "GIF", save_all=True, append_images=[colourful(90, 61).rotate(180)]),
    "WEBP": encoded(clear(90, 61), "WEBP"),
    "TIFF turned by its tag": encoded(colourful(90, 61), "TIFF", exif=with_orientation(5)),
    "float TIFF": encoded(colourful(90, 61).convert("F"), "TIFF"),
    "BMP": encoded(colourful(90, 61), "BMP"),
}


def opened(data: bytes, *, load: bool) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    if load:
        image.load()
    return image


def written(data: bytes, folder: Path) -> Path:
    path = folder / "an image #1 %20.bin"
    path.write_bytes(data)
    return path


FORMS = {
    "path": lambda data, folder: written(data, folder),
    "path in a str": lambda data, folder: str(written(data, folder)),
    "file:// URL": lambda data, folder: written(data, folder).as_uri(),
    "bytearray": lambda data, folder: bytearray(data),
    "data: URL": lambda data, folder: f"data:image/png;base64,{base64.b64encode(data).decode()}",
    "data: URL without a type": lambda data, folder: f"data:;base64,{base64.b64encode(data).decode()}",
    "percent-encoded data: URL": lambda data, folder: "data:," + "".join(f"%{byte:02x}" for byte in data),
    "base64": lambda data, folder: base64.b64encode(data).decode(),
    "base64 in lines": lambda data, folder: base64.encodebytes(data).decode(),
    "PIL image, not decoded": lambda data, folder: opened(data, load=False),
    "PIL image of a path": lambda data, folder: Image.open(written(data, folder)),
    "PIL image, decoded": lambda data, folder: opened(data, load=True),
    "copied PIL image": lambda data, folder: opened(data, load=False).copy(),
    "pickled PIL image": lambda data, folder: pickle.loads(pickle.dumps(opened(data, load=True))),
    "array": lambda data, folder: np.asarray(decode_image(data, name="a")),
    "tensor": lambda data, folder: torch.tensor(np.asarray(decode_image(data, name="a"))).permute(2, 0, 1),
    "float tensor": lambda data, folder: torch.tensor(np.asarray(decode_image(data, name="a"))).permute(2, 0, 1) / 255,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", FILES)
def test_an_image_is_the_same_pixels_in_every_form(kind, form, tmp_path):
    image = read_image(FORMS[form](FILES[kind], tmp_path))
    expected = decode_image(FILES[kind], name="a")
    assert image.mode == "RGB"
    assert (image.size, image.tobytes()) == (expected.size, expected.tobytes())


TOLD_BY_TAGS = {
    "white is zero, 16 bits": tiff(2, 1, 16, b"\0\0\xff\x7f", white=0),
    "white is zero, floats": tiff(2, 1, 32, struct.pack("<2f", 0, 0.75), [(339, 3, 1, 3)], white=0),
    "12 bits": tiff(2, 1, 12, b"\xff\xf1\x23"),
    "unsigned, 32 bits": tiff(3, 1, 32, struct.pack("<3I", 0, 2**31, 2**32 - 1)),
    "signed, 32 bits": tiff(2, 1, 32, struct.pack("<2i", -5, 70_000), [(339, 3, 1, 2)]),
}


@pytest.mark.parametrize("kind", TOLD_BY_TAGS)
def test_a_decoded_tiff_is_read_by_the_tags_of_its_file(kind):
    data = TOLD_BY_TAGS[kind]
    image = opened(data, load=True)
    assert read_image(image).tobytes() == decode_image(data, name="a").tobytes()


@pytest.mark.parametrize("load", [False, True], ids=["opened", "decoded"])
def test_the_transparent_colour_of_16_bits_is_that_of_8_in_a_pil_image(load):
    key = struct.pack(">3H", 999, 20_000, 40_000)
    data = png(2, 1, key + struct.pack(">3H", *[257 * 170] * 3), depth=16, colour=2, extra=png_chunk(b"tRNS", key))
    image = opened(data, load=load)
    assert list(read_image(image).tobytes()) == [255] * 3 + [170] * 3
    assert image.info["transparency"] == (999, 20_000, 40_000)


@pytest.mark.parametrize("size", TRANSFORMS)
@pytest.mark.parametrize("kind", FILES)
def test_an_image_is_the_same_tensor_in_every_form(kind, size, tmp_path):
    def inputs(source):
        return pack_images(TRANSFORMS[size], [prepare_image(TRANSFORMS[size], source, name="a")])

    expected = inputs(FILES[kind])
    for form, make in FORMS.items():
        came = inputs(make(FILES[kind], tmp_path))
        assert came.keys() == expected.keys()
        assert all(torch.equal(came[key], expected[key]) for key in expected), form


@pytest.mark.parametrize(
    ("change", "size"),
    [(lambda image: image.seek(1), (12, 8)), (lambda image: image.draft("RGB", (3, 2)), (3, 2))],
    ids=["another frame", "a draft"],
)
def test_what_was_done_to_an_opened_pil_image_counts(change, size):
    kind = "GIF" if size == (12, 8) else "JPEG"
    later = {"save_all": True, "append_images": [colourful().rotate(180)]} if kind == "GIF" else {}
    image = opened(encoded(colourful(), kind, **later), load=False)
    change(image)
    assert read_image(image).size == size
    if kind == "GIF":
        assert read_image(image).tobytes() == image.convert("RGB").tobytes()


def test_reading_a_pil_image_leaves_it_as_it_was():
    image = opened(FILES["JPEG with a profile"], load=True)
    before = image.tobytes()
    assert read_image(image).tobytes() != before
    assert image.tobytes() == before


def test_an_opened_pil_image_that_is_cut_is_refused():
    data = FILES["JPEG"]
    with pytest.raises(ImageError) as caught:
        read_image(opened(data[: len(data) * 8 // 10] + b"\xff\xd9", load=False), name="the third")
    assert (caught.value.name, caught.value.reason) == ("the third", "truncated")


def test_limits_hold_for_every_form():
    for source in (colourful(), np.zeros((8, 12, 3), np.uint8), encoded(colourful(), "PNG")):
        with pytest.raises(ImageError, match="the limit is 95"):
            read_image(source, limits=ImageLimits(max_pixels=95))
    with pytest.raises(ImageError, match="make it smaller"):
        read_image(f"data:,{'a' * 1000}", limits=ImageLimits(max_bytes=100))


PAYLOAD = base64.b64encode(bytes(range(256)) * 40).decode()


@pytest.mark.parametrize(
    ("source", "reason", "said"),
    [
        ("https://example.org/a.png", "url_not_allowed", "nothing is fetched from a network"),
        ("s3://bucket/a.png", "url_not_allowed", "nothing is fetched from a network"),
        ("file://elsewhere/a.png", "url_not_allowed", "another machine"),
        ("file://img[1].jpg", "url_not_allowed", "write file:///path"),
        ("file://a\u2100b/c.png", "url_not_allowed", "write file:///path"),
        ("data:,\ud800", "corrupt", "a surrogate"),
        ("data:image/png;base64,\ud800", "corrupt", "a surrogate"),
        ("file:///gone/a.png", "missing", "no such file"),
        ("gone.png", "missing", "no such file"),
        ("a\0b.png", "missing", r"a\x00b.png"),
        ("two\nlines.png", "missing", r"two\nlines.png"),
        ("x" * 5000, "missing", "... (5,000 characters)"),
        (PAYLOAD, "missing", "... (13,656 characters)"),
        ("data:image/png;base64", "corrupt", "without a comma"),
        ("data:image/png;base64,!!!!", "corrupt", "base64 is broken"),
        (f"data:image/png;base64,{PAYLOAD}", "not_an_image", "no image of a known format"),
        (".", "missing", "not a regular file"),
    ],
)
def test_a_string_that_is_no_image_is_refused_in_a_short_sentence(source, reason, said):
    with pytest.raises(ImageError) as caught:
        read_image(source)
    assert caught.value.reason == reason
    assert said in str(caught.value)
    assert len(str(caught.value)) < 250
    assert str(caught.value).isprintable()


def test_16_bit_arrays_are_scaled_as_files_of_16_bits_are():
    grey = np.linspace(0, 65_535, 96).astype(np.uint16).reshape(8, 12)
    expected = decode_image(png(12, 8, grey.astype(">u2").tobytes(), depth=16), name="a")
    assert read_image(grey).tobytes() == expected.tobytes()
    colours = np.stack([grey, grey[::-1], grey.T.reshape(8, 12)], -1)
    expected = decode_image(png(12, 8, colours.astype(">u2").tobytes(), depth=16, colour=2), name="a")
    assert read_image(colours).tobytes() == expected.tobytes()


@pytest.mark.parametrize("opened", [io.BytesIO, io.BufferedReader])
def test_an_open_file_is_refused_and_stays_usable(opened):
    file = opened(io.BytesIO(b"data")) if opened is io.BufferedReader else opened(b"data")
    with pytest.raises(ImageError, match=r"expected a path, .* got Buffered|expected a path, .* got BytesIO"):
        read_image(file)
    assert file.read() == b"data"


@pytest.mark.parametrize("tensor", [torch.zeros(3, 4, 4).to_sparse(), torch.zeros(3, 4, 4, device="meta")])
def test_a_tensor_that_is_no_array_is_refused(tensor):
    with pytest.raises(ImageError, match="a tensor that is no array"):
        read_image(tensor)


def test_an_array_out_of_its_range_is_refused_with_its_values():
    with pytest.raises(ImageError, match=r"got float64 of shape \(4, 4\), values 0 to 1.001"):
        read_image(np.array([0, 1.001] * 8).reshape(4, 4))
