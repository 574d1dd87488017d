"""Files that move are told from those that stand, without a decoder."""

import io

import pytest
from PIL import Image

from vision.decoding.animation import is_animated
from vision.decoding.image import decode_image


def moving(form: str, frames: int, **options) -> bytes:
    images = [Image.new("RGB", (20, 16), (60 * shade, 0, 90)) for shade in range(frames)]
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": images[1:]} if frames > 1 else {}
    images[0].save(buffer, form, **more, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_frames_are_counted_in_every_format_that_has_them(form, frames):
    data = moving(form, frames)
    assert decode_image(data, name="x").size == (20, 16)
    assert is_animated(data) is (frames > 1)


@pytest.mark.parametrize(("form", "options"), [("JPEG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_other_files_stand(form, options):
    assert not is_animated(moving(form, 1, **options))


def test_a_comment_is_no_frame():
    assert not is_animated(moving("GIF", 1, comment=b"\x2c" * 300))
