"""A checkpoint in one file: the bytes of `torch.save`, a mark, and the SHA-256 of those bytes.

The mark and hash are 40 bytes, which `torch.load` ignores. A file is whole or absent, as it gets its name when it is
complete.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch

from arlow_vl.errors import ResourceError
from vision.whole_files import write_whole

MARK = b"ARLOWSHA"
TRAILER_BYTES = len(MARK) + 32


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint file, whole or not at all.

    Raises:
        ResourceError: it cannot be written; `path` then holds what it held before, or nothing.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    payload = buffer.getbuffer()

    def write(file: BinaryIO) -> None:
        file.write(payload)
        file.write(MARK + hashlib.sha256(payload).digest())

    try:
        write_whole(path, write)
    except OSError as error:
        raise ResourceError(_cannot_save(path, len(payload) + TRAILER_BYTES, error)) from error


def find_file_damage(path: Path) -> str | None:
    """Returns a description of the damage to a checkpoint file; None if its SHA-256 is right."""
    try:
        size = path.stat().st_size
        if size <= TRAILER_BYTES:
            return f"{size:,} bytes are too few"
        with open(path, "rb") as file:
            digest = _sha256_of_next(file, size - TRAILER_BYTES)
            trailer = file.read()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not trailer.startswith(MARK):
        return f"no checksum at the end of its {size:,} bytes: cut short or not a checkpoint of `arlow fit`"
    return None if trailer == MARK + digest else f"SHA-256 differs, {size:,} bytes"


def _sha256_of_next(file: io.BufferedReader, count: int) -> bytes:
    digest = hashlib.sha256()
    while count and (chunk := file.read(min(count, 2**20))):
        digest.update(chunk)
        count -= len(chunk)
    return digest.digest()


def _cannot_save(path: Path, needed: int, error: OSError) -> str:
    return (
        f"cannot save {path}: {error.strerror} (needs {needed:,} bytes, {_free_bytes(path.parent):,} free); "
        "checkpoints saved before are whole"
    )


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, at most 300 characters; its class name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
