"""An image's bytes are those that were indexed, or one sentence says whose are not."""

import os

import pytest

from arlow_vl.data.index.images import read_image
from arlow_vl.data.samples import ImageRef
from arlow_vl.errors import DataError
from tests.data.index.made_sources import hashed, laid


@pytest.fixture
def second(tmp_path):
    return hashed(laid(tmp_path, b"first", b"second")[1], b"second")


def test_an_image_is_its_range_of_bytes(second):
    assert read_image(second) == b"second"
    assert read_image(b"inside a record") == b"inside a record"


def test_other_bytes_are_refused_by_shard_and_key(second, tmp_path):
    laid(tmp_path, b"first", b"sEcond")
    with pytest.raises(DataError) as fault:
        read_image(second, "17\x1b")
    assert str(fault.value) == (
        f"{tmp_path}/images.bin, sample 17\\x1b, image at byte 5: other bytes are there than when it was indexed; "
        "run `arlow data index`"
    )


def test_a_file_that_is_gone_or_shorter_is_named(second, tmp_path):
    (tmp_path / "images.bin").write_bytes(b"firstsec")
    with pytest.raises(DataError, match=r"images\.bin, sample 17, image at byte 5: the file is shorter than when"):
        read_image(second, "17")
    (tmp_path / "images.bin").unlink()
    with pytest.raises(DataError, match=r"images\.bin, .*: the file cannot be read \(No such file or directory\)"):
        read_image(second)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="shorter"):
        read_image(ImageRef(str(tmp_path / "pipe"), 0, 3))
    with pytest.raises(DataError, match="cannot be read"):
        read_image(ImageRef("no\0name", 0, 3))


def test_no_range_over_the_limit_is_read(tmp_path):
    with pytest.raises(DataError, match="the limit for an image is 67,108,864"):
        read_image(ImageRef(str(tmp_path), 0, 2**40))
