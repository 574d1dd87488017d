import io
import pickle
import struct
import subprocess
import sys
import warnings
import zlib

import pytest
from PIL import Image, ImageFile

from tests.outside_data import colourful, encoded, gif, png, png_chunk, tiff
from vision.decoding.image import ImageError, ImageLimits, decode_image
from vision.decoding.sources import read_image

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "MPO")


def decoded(data: bytes, **limits) -> Image.Image:
    """The image; a warning on the way is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return decode_image(data, name="a.png", limits=ImageLimits(**limits))


def refusal(data: bytes, **limits) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decoded(data, **limits)
    return caught.value


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_allowed_format_gives_the_pixels_that_pillow_gives(image_format):
    data = encoded(colourful(), image_format)
    assert decoded(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize("image_format", ["PPM", "ICO", "PDF", "AVIF", "JPEG2000", "TGA"])
def test_formats_outside_the_list_are_refused(image_format):
    assert refusal(encoded(colourful(32, 32), image_format)).reason in ("format_not_allowed", "not_an_image")


def test_svg_is_refused_by_name():
    assert "SVG" in str(refusal(b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>"))


def test_the_list_of_formats_is_a_setting():
    assert refusal(encoded(colourful(), "PNG"), formats=("JPEG",)).reason == "format_not_allowed"


def test_a_png_named_jpg_is_read_as_the_png_it_is():
    assert decode_image(encoded(colourful(), "PNG"), name="a.jpg").size == (12, 8)


@pytest.mark.parametrize("data", [b"hello", b"BM but no bitmap at all, just a text", bytes(100)])
def test_what_is_no_image_is_refused(data):
    assert refusal(data).reason == "not_an_image"


def test_no_bytes_are_refused():
    assert refusal(b"").reason == "empty"


BIG_HEADERS = {
    "png": png(20_000, 20_000),
    "png one row over": png(8_000, 8_001),
    "gif screen": gif(65_535, 65_535),
    "gif frame outside its screen": gif(1, 1, frame=(60_000, 60_000, 1, 1)),
    "webp": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0" * 4 + b"\xff\xff\xff" * 2,
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 30_000, -30_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "tiff": tiff(12_000, 12_000, 8, b""),
}


@pytest.mark.parametrize("kind", BIG_HEADERS)
def test_more_pixels_than_allowed_are_an_error_without_a_warning(kind):
    assert refusal(BIG_HEADERS[kind]).reason == "too_many_pixels"


def test_more_pixels_in_a_jpeg_header_are_an_error():
    data = bytearray(encoded(colourful(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 30_000, 30_000)
    assert refusal(bytes(data)).reason == "too_many_pixels"


def test_the_pixel_limit_itself_is_allowed():
    data = encoded(colourful(), "PNG")
    assert decoded(data, max_pixels=96).size == (12, 8)
    assert refusal(data, max_pixels=95).reason == "too_many_pixels"


def test_an_error_names_the_image_what_was_seen_and_the_limit():
    assert str(refusal(png(20_000, 20_000))) == (
        "a.png: 20,000 x 20,000 pixels, the limit is 64,000,000; make it smaller"
    )


def test_more_bytes_than_allowed_are_an_error():
    data = encoded(colourful(), "PNG")
    assert decoded(data, max_bytes=len(data)).size == (12, 8)
    assert refusal(data, max_bytes=len(data) - 1).reason == "too_large"


@pytest.mark.parametrize("width", [1, 30_000_000])
def test_an_image_that_takes_too_much_memory_is_refused_before_it_is_decoded(width):
    assert refusal(png(width, 30_000_000 // width)).reason == "too_much_memory"


def test_conversion_counts_as_memory():
    rgb, rgba = encoded(colourful(100, 100), "PNG"), encoded(colourful(100, 100).convert("RGBA"), "PNG")
    assert decoded(rgb, max_memory_bytes=60_000).size == (100, 100)
    assert refusal(rgba, max_memory_bytes=60_000).reason == "too_much_memory"


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_frame_of_an_animation_is_shown(image_format):
    options = {"lossless": True} if image_format == "WEBP" else {}
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    data = encoded(red, image_format, save_all=True, append_images=[blue], **options)
    assert decoded(data).getpixel((3, 3)) == pytest.approx((255, 0, 0), abs=2)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_an_image_cut_anywhere_is_an_error(image_format):
    data = encoded(colourful(40, 40), image_format)
    for length in {1, 3, 9, 20, len(data) // 3, len(data) // 2, len(data) - 30, len(data) - 1}:
        assert refusal(data[:length]).reason in ("truncated", "corrupt", "not_an_image"), length


def test_a_run_length_coded_bitmap_is_read_and_its_cut_form_refused():
    palette = bytes(range(256)) * 4
    rows = b"\x04\x07\x00\x00" * 4 + b"\x00\x01"
    header = struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 1078, 40, 4, 4, 1, 8, 1, len(rows), 0, 0, 0, 0)
    assert decoded(b"BM" + header + palette + rows).size == (4, 4)
    assert refusal(b"BM" + header + palette + rows[:6]).reason == "corrupt"


def test_later_frames_that_are_cut_off_make_the_file_truncated():
    data = encoded(colourful(), "GIF", save_all=True, append_images=[colourful().rotate(180)])
    assert refusal(data[:-40]).reason == "truncated"


def test_a_changed_byte_in_a_png_is_an_error():
    data = bytearray(png(4, 4, bytes(16)))
    data[-20] ^= 1
    assert refusal(bytes(data)).reason == "corrupt"


@pytest.mark.parametrize("data", [png(0, 4), png(4, 0), gif(0, 0, frame=(0, 0, 0, 0)), tiff(0, 5, 8, b"")])
def test_an_image_without_pixels_is_an_error(data):
    assert refusal(data).reason == "no_pixels"


def test_text_chunks_and_profiles_cost_nothing():
    bomb = zlib.compress(bytes(2_000_000))
    extra = b"".join(png_chunk(b"zTXt", b"key%d\0\0" % n + bomb) for n in range(100)) + png_chunk(
        b"iCCP", b"p\0\0" + bomb
    )
    image = decoded(png(4, 4, bytes(16), extra=extra))
    assert "icc_profile" not in image.info and not any(key.startswith("key") for key in image.info)


def test_an_endless_row_of_chunks_is_refused():
    assert refusal(png(4, 4, bytes(16), extra=png_chunk(b"prVt", b"") * 60_000)).reason == "corrupt"


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_with_fewer_bytes_than_its_size_takes_is_cut_off(progressive):
    data = bytearray(encoded(colourful(64, 64), "JPEG", progressive=progressive))
    frame = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 4000, 4000)
    assert refusal(bytes(data)).reason == "truncated"


@pytest.mark.parametrize("options", [{"quality": 1}, {"progressive": True, "quality": 1}, {"optimize": True}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_the_emptiest_jpegs_have_bytes_enough(mode, options):
    assert decoded(encoded(Image.new(mode, (1000, 800)), "JPEG", **options)).size == (1000, 800)


def test_a_jpeg_of_many_scans_is_refused():
    data = encoded(colourful(), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert refusal(data[:-2] + scan * 100 + b"\xff\xd9").reason == "corrupt"


def test_tiff_strips_that_share_their_bytes_are_refused():
    assert refusal(tiff(4, 4, 8, bytes(16), [(325, 4, 1, 10_000_000)])).reason == "corrupt"


@pytest.mark.parametrize("code", [258, 273, 320])
def test_tiff_tags_with_endless_values_are_refused(code):
    data = bytearray(tiff(4, 4, 8, bytes(16), [(320, 3, 1, 0)]))
    place = data.index(struct.pack("<H", code), 24)
    data[place + 4 : place + 8] = struct.pack("<I", 40_000_000)
    assert refusal(bytes(data)).reason == "corrupt"


def test_what_tiff_tags_beside_the_pixels_say_is_not_read():
    exif_of_a_million_fractions = tiff(4, 4, 8, bytes(range(16)), [(34_665, 4, 1, 8), (700, 1, 2**31, 8)])
    assert decoded(exif_of_a_million_fractions).getpixel((1, 0)) == (1, 1, 1)


def test_pillow_is_left_as_it_was():
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    decode_image(encoded(colourful(), "JPEG"), name="a")
    with pytest.raises(ImageError):
        decode_image(b"", name="a")
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_decoded_image_can_be_sent_to_another_process(image_format):
    image = decoded(encoded(colourful(), image_format))
    assert pickle.loads(pickle.dumps(image)).tobytes() == image.tobytes()


def test_an_error_can_be_sent_to_another_process():
    error = pickle.loads(pickle.dumps(refusal(b"")))
    assert (error.name, error.reason, str(error)) == ("a.png", "empty", "a.png: 0 bytes")


def test_a_missing_file_is_an_image_error(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        read_image(tmp_path / "gone.png")


def test_a_file_over_the_limit_is_not_read_to_its_end(tmp_path):
    with open(tmp_path / "big.png", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ImageError, match="the limit"):
        read_image(tmp_path / "big.png")


def test_importing_the_module_loads_neither_torch_nor_timm():
    code = "import sys, vision.decoding.image; print([name in sys.modules for name in ('torch', 'timm')])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[False, False]"
