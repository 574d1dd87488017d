"""Location of a source's index: beside its data, or in the user's cache where that folder is not writable."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from arlow_vl.data.file_names import literal_start
from arlow_vl.data.index.header import SHARDS, Header, base_of, outdated, read_header
from arlow_vl.data.index.reading import Index
from arlow_vl.data.remote import (
    folder_name,
    is_address,
    is_file_address,
    name_of,
    path_of_file_address,
    pinned,
    without_secrets,
)
from arlow_vl.data.remote_cache import DataCache
from arlow_vl.printing import visible

BESIDE = ".arlow-index"
WILD = re.compile(r"[*?\[{]")


class SourceLocation(NamedTuple):
    """One file or folder that has an index of its own, and how it is read."""

    path: str
    """Absolute path or address; may be a glob or a range."""
    images: str | None = None
    """Folder that image paths start from; None: the format's own rule."""
    format: str | None = None
    """None: detected."""

    @property
    def is_remote(self) -> bool:
        return is_address(self.path)

    @property
    def base(self) -> Path:
        """Folder of the data: a file's folder, a folder itself, or the folder before the first wildcard."""
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
        """True for a glob or a range, but not for a file that has brackets in its name."""
        return not self.is_remote and WILD.search(self.path) is not None and not os.path.exists(self.path)

    @property
    def name(self) -> str:
        return name_of(self.path) if self.is_remote else os.path.basename(self.path)

    @property
    def shown(self) -> str:
        """Path or address as messages show it."""
        return without_secrets(self.path) if self.is_remote else visible(self.path)

    @property
    def folders(self) -> tuple[Path, Path]:
        """Folders for the index, in order: beside the data, and in the cache; both in the cache for remote data."""
        # `train*/a.jsonl` and `val*/a.jsonl` have the same last part. Relative to the data, which may move.
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
        """Returns the index in a folder. Images of a remote shard are byte ranges of its address."""
        is_shard = self.is_remote and header.format == SHARDS
        return Index(folder, header, pinned(self.path, header.files[0].sha256) if is_shard else None)


def place_of(path: str | Path, images: str | Path | None = None, format: str | None = None) -> SourceLocation:
    root = None if images is None else os.path.abspath(images)
    if is_file_address(path):
        path = path_of_file_address(str(path))
    if is_address(path):
        return SourceLocation(str(path), root, format)
    return SourceLocation(os.path.abspath(path), root, format)


def find_index(place: SourceLocation, files: Iterable[str | Path] | None = None) -> tuple[Index | None, str]:
    """Returns the index of a source if it fits its files, else None and the reason, as a clause for messages.

    Args:
        files: Files of the source now; None: those that the index was made of.
    """
    reason = "has no index"
    for folder in place.folders:
        header = read_header(folder)
        if header is None:
            continue
        # Remote data are not compared here: bytes that have changed are refused when they are fetched.
        difference = None if place.is_remote else outdated(folder, header) or _other_files(folder, header, files)
        if difference is None:
            return place.index_in(folder, header), ""
        reason = f"has an index that is older than the data ({difference})"
    return None, reason


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
