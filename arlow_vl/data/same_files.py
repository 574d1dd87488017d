"""Whether a file still has the bytes that it had when they were read: asked at every start, so it costs little."""

import os
from pathlib import Path
from typing import Protocol, runtime_checkable

from vision.whole_files import sha256_of_file

HASHED_AT_MOST = 64 * 2**20
"""Bytes of a file that is hashed although its size and time are kept, because something was done to it: a hash of so
many takes a tenth of a second or so. A larger one is taken for what it was, so that a copy of a terabyte that keeps the
times is not read before every run."""


@runtime_checkable
class KnownFile(Protocol):
    """What was noted of a file."""

    @property
    def size(self) -> int: ...

    @property
    def mtime_ns(self) -> int: ...

    @property
    def ctime_ns(self) -> int:
        """When the system says that the file was changed last; no program can set it back. 0: not noted."""
        ...

    @property
    def sha256(self) -> str | None:
        """None: it was not read to its end."""
        ...


def has_other_bytes(path: Path, now: os.stat_result, known: KnownFile) -> bool:
    """Size and time decide where they differ from what was noted or nothing was done to the file; else SHA-256 does."""
    if now.st_size != known.size:
        return True
    if now.st_mtime_ns != known.mtime_ns:
        return sha256_of_file(path) != known.sha256
    is_untouched = known.ctime_ns in (0, now.st_ctime_ns)
    if is_untouched or known.sha256 is None or known.size > HASHED_AT_MOST:
        return False
    return sha256_of_file(path) != known.sha256
