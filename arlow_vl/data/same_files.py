"""Check that a file still has the bytes that were read before: made at every start, so it costs little."""

import os
from pathlib import Path
from typing import Protocol, runtime_checkable

from vision.whole_files import sha256_of_file

HASHED_AT_MOST = 64 * 2**20
"""Size in bytes up to which a file is hashed if only its ctime has changed: that takes a tenth of a second or so. A
larger file is taken to be unchanged, so that a copy of a terabyte that kept its times is not read before every run."""


@runtime_checkable
class KnownFile(Protocol):
    """Facts about a file that were noted when it was read."""

    @property
    def size(self) -> int: ...

    @property
    def mtime_ns(self) -> int: ...

    @property
    def ctime_ns(self) -> int:
        """Time of the last change by the system's clock, which no program can set back. 0: not noted."""
        ...

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the file; None: it was not read to its end."""
        ...


def has_other_bytes(path: Path, now: os.stat_result, known: KnownFile) -> bool:
    """Returns True if the file has changed: by its size or, where a time differs, SHA-256 (see `HASHED_AT_MOST`)."""
    if now.st_size != known.size:
        return True
    if now.st_mtime_ns != known.mtime_ns:
        return sha256_of_file(path) != known.sha256
    is_untouched = known.ctime_ns in (0, now.st_ctime_ns)
    if is_untouched or known.sha256 is None or known.size > HASHED_AT_MOST:
        return False
    return sha256_of_file(path) != known.sha256
