"""An image that has other bytes than when it was indexed makes its index older than the data, whatever its time."""

import os
import time
from pathlib import Path

import pytest

from arlow_vl.data.index import changed_images
from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.changed_images import changed_image
from arlow_vl.data.index.header import read_header
from arlow_vl.data.index.images import read_image
from tests.tiny_runs import SAMPLES


@pytest.fixture
def captions(tmp_path) -> Path:
    """Three images beside a csv of their captions."""
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(f"image {name}".encode())
    path = tmp_path / "captions.csv"
    path.write_text("image,caption\na.jpg,A fox.\nb.jpg,A cat.\nc.jpg,Snow.\n")
    return path


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The images that are read to be compared."""
    read: list[str] = []

    def noted(image):
        read.append(Path(image.path).name)
        return read_image(image)

    monkeypatch.setattr(changed_images, "read_image", noted)
    return read


def settle() -> None:
    """Until a change has another time than what was done before, by a coarse clock."""
    time.sleep(0.02)


def overwrite(path: Path, data: bytes) -> None:
    """Other bytes; of the same number and under the same time where `data` is as long as what was there."""
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_another_image_of_the_same_size_and_time_is_indexed_again_and_told(captions, capsys):
    (first,) = indexes_of(captions)
    overwrite(captions.with_name("b.jpg"), b"image B")
    (second,) = indexes_of(captions)
    assert [read_image(second.sample(n).images[0]) for n in range(3)] == [b"image a", b"image B", b"image c"]
    assert second.fingerprint != first.fingerprint
    told = f"{captions}: {captions.parent}/b.jpg has other bytes than when it was indexed; indexed again\n"
    assert capsys.readouterr().err == told
    (third,) = indexes_of(captions)
    assert third.fingerprint == second.fingerprint and capsys.readouterr().err == ""


def test_another_file_under_the_name_is_noticed_too(captions, tmp_path):
    (index,) = indexes_of(captions)
    captions.with_name("new.jpg").write_bytes(b"image n")
    captions.with_name("new.jpg").replace(captions.with_name("c.jpg"))
    assert changed_image(index) == str(tmp_path / "c.jpg")


def test_an_image_that_has_become_shorter_has_other_bytes(captions, tmp_path):
    (index,) = indexes_of(captions)
    (tmp_path / "a.jpg").write_bytes(b"ima")
    assert changed_image(index, threads=2) == str(tmp_path / "a.jpg")


def test_an_image_that_was_only_touched_is_read_once_and_no_other_is(captions, tmp_path, reads, monkeypatch):
    monkeypatch.setattr(changed_images, "TICK_NS", 0)
    (index,) = indexes_of(captions)
    settle()
    os.utime(tmp_path / "a.jpg", ns=(5, 5))
    settle()
    assert changed_image(index) is None
    assert reads == ["a.jpg"]
    (again,) = indexes_of(captions)
    assert reads == ["a.jpg"] and again.fingerprint == index.fingerprint


def test_images_that_are_gone_are_no_change(captions, tmp_path):
    (index,) = indexes_of(captions)
    (tmp_path / "c.jpg").unlink()
    assert changed_image(index) is None


def test_in_a_folder_of_others_they_are_read_at_every_start(captions, reads, monkeypatch):
    (index,) = indexes_of(captions)

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(changed_images, "write_header", refused)
    for count in (3, 6):
        assert changed_image(index) is None
        assert len(reads) == count
        index.header = read_header(index.folder)


def test_of_shards_and_images_inside_records_no_image_is_asked_for(tmp_path, reads):
    tar = tmp_path / "0.tar"
    tar.write_bytes(next((SAMPLES / "captions").glob("train-*.tar")).read_bytes())
    (index,) = indexes_of(tar)
    assert index.header.images_read_ns is None
    assert changed_image(index) is None and not reads


def test_a_table_of_the_same_size_and_time_has_other_bytes(captions):
    (first,) = indexes_of(captions)
    overwrite(captions, captions.read_bytes().replace(b"A cat.", b"A dog."))
    (second,) = indexes_of(captions)
    assert second.fingerprint != first.fingerprint
