"""Files and folders that are whole or absent, whatever happens while they are written, and the hash of a whole one."""

import contextlib
import errno
import glob
import hashlib
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

STALE_SECONDS = 3600
"""Age at which a half-written file counts as left by a killed process: a live one writes for seconds."""
UNSUPPORTED = (errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""Errors of a file system that cannot flush a folder."""


def write_whole(path: Path, content: str | bytes | Callable[[BinaryIO], Any]) -> None:
    """Writes a file under another name beside `path`, and renames it when its bytes are on disk.

    An error and a full disk leave `path` as it was and nothing beside it. A kill leaves `path` as it was too; what it
    leaves beside it goes when `path` is written again an hour later, or by `remove_remains`.

    Args:
        content: Text (UTF-8), bytes, or a function that writes into the open file.

    Raises:
        OSError: the file cannot be written; the error names `path`.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_remains(path.parent, path.name)
        with open(partial, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
        put_in_place(partial, path)
    except OSError as error:
        if error.filename2 is None:  # a rename's error names both
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # renamed, or the folder cannot be written either
            partial.unlink()


def put_in_place(partial: Path, final: Path) -> None:
    """Renames a file, or a folder with all that is in it, once its bytes are on disk.

    So a power cut cannot leave the name without them, unless a network file system flushes no folders. A file under the
    name is replaced; a folder there must be empty.
    """
    for path in sorted(partial.rglob("*")):
        _sync(path)
    _sync(partial)
    os.replace(partial, final)
    _sync(final.parent)


def remove_remains(folder: Path, name: str | None = None, *, seconds: int = STALE_SECONDS) -> None:
    """Removes what `write_whole` left of `name` (None: of any file) in processes killed at least `seconds` ago."""
    for path in folder.glob(f".{'*' if name is None else glob.escape(name)}.*.partial"):
        with contextlib.suppress(FileNotFoundError):  # it was renamed, or another process removed it
            if time.time() - path.stat().st_mtime >= seconds:
                path.unlink()


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
