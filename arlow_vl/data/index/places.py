"""Where the index of a source lies: beside its data, or in the user's cache where that folder cannot be written."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from arlow_vl.data.file_names import literal_start
from arlow_vl.data.index.header import SHARDS, Header, base_of, outdated, read_header
from arlow_vl.data.index.reading import Index
from arlow_vl.data.remote import folder_name, is_address, is_file_address, name_of, path_of_file_address, pinned, told
from arlow_vl.data.remote_cache import DataCache
from arlow_vl.errors import DataError
from arlow_vl.printing import visible

BESIDE = ".arlow-index"
WILD = re.compile(r"[*?\[{]")


class Place(NamedTuple):
    """One file or folder that has an index of its own, and how it is read."""

    path: str
    """Absolute, or an address; may be a glob or a range."""
    images: str | None = None
    """Folder that image paths start from; None: the format's own rule."""
    format: str | None = None
    """None: found out."""

    @property
    def is_remote(self) -> bool:
        return is_address(self.path)

    @property
    def base(self) -> Path:
        """The folder of the data: that of a file, a folder itself, and the one before the first wildcard."""
        if self.is_remote:
            return Path(self.images or DataCache.of_environment().folder / folder_name(self.path))
        if os.path.isdir(self.path):
            return Path(self.path)
        if not self.is_pattern:
            return Path(os.path.dirname(self.path))
        start = literal_start(self.path)
        return Path(os.path.dirname(start + WILD.split(self.path[len(start) :])[0]))

    @property
    def is_pattern(self) -> bool:
        """Whether it stands for files by a glob or a range; a file may have brackets in its name."""
        return not self.is_remote and WILD.search(self.path) is not None and not os.path.exists(self.path)

    @property
    def name(self) -> str:
        return name_of(self.path) if self.is_remote else os.path.basename(self.path)

    @property
    def told(self) -> str:
        """For messages."""
        return told(self.path) if self.is_remote else visible(self.path)

    @property
    def folders(self) -> tuple[Path, Path]:
        """Beside the data, and in the cache; only there if the data are remote."""
        # `train*/a.jsonl` and `val*/a.jsonl` have one last part and other files. As seen from the data, which may move.
        pattern = os.path.relpath(self.path, self.base) if self.is_pattern else None
        read_as = [part for part in (self.images, self.format, pattern) if part]
        variant = f"-{_digest(*map(repr, read_as))}" if read_as else ""
        name = "folder" if os.path.isdir(self.path) else re.sub(r"[*?\[\]{}]", "_", self.name)
        if self.is_remote:
            name = re.sub(r"[^\w.-]", "_", name)[:100]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arlow" / "index"
        in_cache = cache / f"{_digest(self.path)}-{name}{variant}"
        return in_cache if self.is_remote else self.base / BESIDE / f"{name}{variant}", in_cache

    def index_in(self, folder: Path, header: Header) -> Index:
        """The index in a folder. One of a remote shard gives the address of each image, and which bytes lie there."""
        is_shard = self.is_remote and header.format == SHARDS
        return Index(folder, header, pinned(self.path, header.files[0].sha256) if is_shard else None)


def place_of(path: str | Path, images: str | Path | None = None, format: str | None = None) -> Place:
    root = None if images is None else os.path.abspath(images)
    if is_file_address(path):
        path = path_of_file_address(str(path))
    if is_address(path):
        return Place(str(path), root, format)
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
        # Remote data are what they were when they were indexed: other bytes are refused when they come.
        difference = None if place.is_remote else outdated(folder, header) or _other_files(folder, header, files)
        if difference is None:
            return place.index_in(folder, header), ""
        reason = f"has an index that is older than the data ({difference})"
    return None, reason


def open_index(path: str | Path, *, images: str | Path | None = None, format: str | None = None) -> Index:
    """The index of one file or folder. Raises DataError where there is none, or one that is older than the data."""
    place = place_of(path, images, format)
    index, reason = find_index(place)
    if index is None:
        raise DataError(
            f"{place.told} {reason}; run `arlow data index {place.told if place.is_remote else visible(str(path))}`"
        )
    return index


def _other_files(folder: Path, header: Header, files: Iterable[str | Path] | None) -> str | None:
    if files is None:
        return None
    base = base_of(folder, header)
    now, then = {os.path.abspath(file) for file in files}, {os.path.join(base, file.name) for file in header.files}
    if surplus := now - then:
        return f"{visible(min(surplus))} was added"
    return f"{visible(min(then - now))} is not one of its files any more" if then - now else None


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:12]
