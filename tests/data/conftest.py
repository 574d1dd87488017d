"""Tiny archives of the three kinds that packages come in."""

import io
import tarfile
import zipfile

import pytest


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
