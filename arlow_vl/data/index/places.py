"""Where the index of a source lies: beside its data, or in the user's cache where that folder cannot be written."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from arlow_vl.data.index.header import Header, base_of, outdated, read_header
from arlow_vl.data.index.reading import Index
from arlow_vl.errors import DataError
from arlow_vl.printing import visible

BESIDE = ".arlow-index"
WILD = re.compile(r"[*?\[]")


class Place(NamedTuple):
    """One file or folder that has an index of its own, and how it is read."""

    path: str
    """Absolute; may be a glob."""
    images: str | None = None
    """Folder that image paths start from; None: the format's own rule."""
    format: str | None = None
    """None: found out."""

    @property
    def base(self) -> Path:
        """The folder of the data: that of a file, a folder itself, and the one before the first wildcard."""
        if os.path.isdir(self.path):
            return Path(self.path)
        return Path(os.path.dirname(WILD.split(self.path)[0]))

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def folders(self) -> tuple[Path, Path]:
        """Beside the data, and in the cache."""
        read_as = [part for part in (self.images, self.format) if part]
        variant = f"-{_digest(*map(repr, read_as))}" if read_as else ""
        name = "folder" if os.path.isdir(self.path) else re.sub(r"[*?\[\]]", "_", self.name)
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arlow" / "index"
        return self.base / BESIDE / f"{name}{variant}", cache / f"{_digest(self.path)}-{name}{variant}"


def place_of(path: str | Path, images: str | Path | None = None, format: str | None = None) -> Place:
    root = None if images is None else os.path.abspath(images)
    return Place(os.path.abspath(path), root, format)


def find_index(place: Place, files: Iterable[str | Path] | None = None) -> tuple[Index | None, str]:
    """The index of a source if it fits its files, else None and why, to go on a sentence with.

    Args:
        files: That make the source now; None: those that made the index.
    """
    reason = "has no index"
    for folder in place.folders:
        header = read_header(folder)
        if header is None:
            continue
        difference = outdated(folder, header) or _other_files(folder, header, files)
        if difference is None:
            return Index(folder, header), ""
        reason = f"has an index that is older than the data ({difference})"
    return None, reason


def open_index(path: str | Path, *, images: str | Path | None = None, format: str | None = None) -> Index:
    """The index of one file or folder. Raises DataError where there is none, or one that is older than the data."""
    place = place_of(path, images, format)
    index, reason = find_index(place)
    if index is None:
        raise DataError(f"{visible(place.path)} {reason}; run `arlow data index {visible(str(path))}`")
    return index


def _other_files(folder: Path, header: Header, files: Iterable[str | Path] | None) -> str | None:
    if files is None:
        return None
    base = base_of(folder, header)
    surplus = {os.path.abspath(file) for file in files} - {os.path.join(base, file.name) for file in header.files}
    return f"{visible(min(surplus))} was added" if surplus else None


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:12]
