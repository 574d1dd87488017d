"""Package archives (wheel, npm tarball, Debian package) read in place: nothing is unpacked to disk, nothing is run."""

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from arlow_vl.errors import DataError

MAX_MEMBER_BYTES = 256 * 2**20


def read_members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yields names (without "./") and contents of the regular files that `wanted` accepts, in the archive's order.

    Links are never followed. The caller has checked the archive's SHA-256.

    Raises:
        DataError: a wanted member has an unsafe name or is over 256 MiB.
    """
    members = _zip_members(archive) if archive.suffix == ".whl" else _tar_members(archive)
    for name, size, read in members:
        name = name.removeprefix("./")
        if not wanted(name):
            continue
        if not is_safe_name(name) or size > MAX_MEMBER_BYTES:
            raise DataError(f"{archive}: member {name!r} ({size} bytes) has an unsafe name or is too large to read")
        yield name, read()


def is_safe_name(name: str) -> bool:
    """Returns True if a member name stays inside its archive."""
    path = PurePosixPath(name)
    return not (path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or ":" in path.parts[0])


def _zip_members(archive: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with zipfile.ZipFile(archive) as wheel:
        for info in wheel.infolist():
            if not info.is_dir():
                yield info.filename, info.file_size, lambda info=info: wheel.read(info)


def _tar_members(archive: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with open(archive, "rb") as file:
        if archive.suffix == ".deb":
            _seek_to_debian_data(file, archive)
        with tarfile.open(fileobj=file, mode="r|*") as tar:
            for info in tar:
                if info.isreg():
                    yield info.name, info.size, lambda info=info: _read_tar(tar, info)


def _read_tar(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    assert file is not None, "only regular files are read"
    return file.read()


def _seek_to_debian_data(file: BinaryIO, archive: Path) -> None:
    """Finds data.tar.* in a .deb, which is an `ar` archive: a magic line, then members with a header of 60 bytes."""
    if file.read(8) == b"!<arch>\n":
        while len(header := file.read(60)) == 60:
            if header[:16].startswith(b"data.tar"):
                return
            size = int(header[48:58])
            file.seek(size + size % 2, 1)
    raise DataError(f"{archive} is not a Debian package; delete it and run `arlow data fetch` again")
