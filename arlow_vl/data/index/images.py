"""Compressed bytes of an image, read from its file and compared with the hash in the index."""

import hashlib
import os
import stat
from pathlib import Path

from arlow_vl.data.remote import hold, is_address, without_secrets
from arlow_vl.data.samples import ImageRef
from arlow_vl.errors import DataError, ResourceError
from arlow_vl.printing import visible

MAX_BYTES = 64 * 2**20
"""Largest size of a compressed image."""


def read_image(image: ImageRef | bytes, key: str = "") -> bytes:
    """Returns the compressed bytes of an image; `key` names its sample in an error.

    Raises:
        DataError: its file is missing, shorter or changed since it was indexed, or is remote and cannot be fetched.
    """
    if isinstance(image, bytes):
        return image
    data = read_range(image, key)
    if image.sha256 and hashlib.sha256(data).digest() != image.sha256:
        raise DataError(f"{_named(image, key)}: other bytes are there than when it was indexed; run `arlow data index`")
    return data


def read_range(image: ImageRef, key: str = "") -> bytes:
    """Returns the same as `read_image`, without comparing the hash."""
    if image.size > MAX_BYTES:
        raise DataError(f"{_named(image, key)}: {image.size:,} bytes, the limit for an image is {MAX_BYTES:,}")
    try:
        if is_address(image.path):
            with hold(image.path) as held:
                data = _range_of(held.path, image)
        else:
            data = _range_of(image.path, image)
    except ResourceError:
        raise
    except (OSError, ValueError) as error:  # a ValueError: the name holds a NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{_named(image, key)}: the file cannot be read ({reason})") from None
    if len(data) < image.size:
        raise DataError(f"{_named(image, key)}: the file is shorter than when it was indexed; run `arlow data index`")
    return data


def _range_of(path: str | Path, image: ImageRef) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe does not block
    try:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return os.pread(descriptor, image.size, image.offset) if is_file else b""
    finally:
        os.close(descriptor)


def _named(image: ImageRef, key: str) -> str:
    path = without_secrets(image.path) if is_address(image.path) else image.path
    return visible(f"{path}{f', sample {key}' if key else ''}, image at byte {image.offset:,}")
