"""Shards as their reader sees them, a tiny encoder, and tiny archives of the three kinds that packages come in."""

import io
import tarfile
import zipfile
from typing import NamedTuple

import pytest

from arlow_vl.data.formats.tally import Tally
from arlow_vl.data.formats.webdataset import read
from arlow_vl.data.samples import Sample, Text
from tests.tiny_runs import SAMPLES
from vision.encoder import VisionEncoder
from vision.transform import ImageTransform

SHARD = SAMPLES / "captions" / "train-000000.tar"


class Scan(NamedTuple):
    """All that was read of some shards."""

    samples: list[Sample]
    tally: Tally

    @property
    def keys(self) -> list[str]:
        """Keys within the shard."""
        return [sample.key.partition(":")[2] for sample in self.samples]

    @property
    def captions(self) -> list[str]:
        return [answer_of(text) for sample in self.samples for text in sample.texts if text.task == "caption"]

    @property
    def outcome(self) -> tuple[list[str], dict[str, int], int]:
        """Keys of the samples, bad samples by reason, and the number of faults."""
        return self.keys, dict(self.tally.skipped), len(self.tally.faults)


def answer_of(text: Text) -> str:
    return text.messages[-1]["content"]


def read_shards(*paths) -> Scan:
    tally = Tally()
    return Scan(list(read(paths, None, tally)), tally)


@pytest.fixture
def scan(tmp_path):
    """Reads the bytes of a shard, `a.tar`."""

    def scan_bytes(data: bytes) -> Scan:
        (tmp_path / "a.tar").write_bytes(data)
        return read_shards(tmp_path / "a.tar")

    return scan_bytes


@pytest.fixture(scope="module")
def encoder():
    return VisionEncoder("test_vit", image_size=32).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def transform(encoder):
    return ImageTransform(encoder.data_config)


def tar_bytes(members, mode):
    """Regular files; a str instead of bytes makes a symbolic link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def make_wheel(tmp_path):
    def make(name, members):
        with zipfile.ZipFile(tmp_path / name, "w") as wheel:
            for member, data in members.items():
                wheel.writestr(member, data)
        return tmp_path / name

    return make


@pytest.fixture
def make_tgz(tmp_path):
    def make(name, members):
        (tmp_path / name).write_bytes(tar_bytes(members, "w:gz"))
        return tmp_path / name

    return make


@pytest.fixture
def make_deb(tmp_path):
    """A Debian package by the letter of the format: `ar` with three members, the files in data.tar.xz."""

    def make(name, members):
        parts = {"debian-binary": b"2.0\n", "control.tar.xz": tar_bytes({"./control": b"?"}, "w:xz")}
        parts["data.tar.xz"] = tar_bytes({f"./{member}": data for member, data in members.items()}, "w:xz")
        archive = b"!<arch>\n"
        for member, data in parts.items():
            header = f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
            archive += header + data + b"\n" * (len(data) % 2)
        (tmp_path / name).write_bytes(archive)
        return tmp_path / name

    return make
