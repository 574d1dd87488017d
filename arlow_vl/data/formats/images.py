"""Images that records name: files under one root folder, or bytes inside the record."""

import base64
import binascii
import os
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from arlow_vl.data.samples import ImageRef
from arlow_vl.data.text import Unusable

MAX_IMAGE_BYTES = 64 * 2**20
Image = ImageRef | bytes


class ImageRoot:
    """Folder that image paths start from and never leave. No file is opened, no address followed.

    Args:
        beside: Each annotation file under `root` has its images beside it (see `of`).
    """

    def __init__(self, root: str | Path, *, beside: bool = False) -> None:
        self.root = os.path.abspath(root)
        self.beside = beside

    def of(self, file: Path) -> "ImageRoot":
        """Returns the root of the paths in an annotation file."""
        return ImageRoot(file.parent) if self.beside else self

    def find(self, source: Any) -> Image:
        """Finds the image behind a path, a file: or data: URL, bytes, or a {"bytes", "path"} of Hugging Face datasets.

        Raises:
            Unusable: there is no such file, it is empty or over 64 MiB, it lies outside the root, or `source` is no
                image at all.
        """
        if isinstance(source, dict):
            data = source.get("bytes")
            source = source.get("path") if data is None else data
        if isinstance(source, bytes):
            return _checked(source)
        if not isinstance(source, str):
            raise Unusable("missing_image" if source is None else "image_not_a_path", f": {type(source).__name__}")
        scheme = source[:5].lower()
        if scheme == "data:":
            return _checked(_data_of_url(source))
        if scheme == "file:":
            source = _path_of_url(source)
        elif "://" in source[:32] or scheme == "pipe:":
            raise Unusable("image_url_not_fetched", f": {source[:80]}; get the images first and name their paths")
        return self._file(source)

    def _file(self, name: str) -> ImageRef:
        path = os.path.normpath(os.path.join(self.root, name))
        if not name.strip():
            raise Unusable("missing_image", ": an empty path")
        if "\0" in name or not path.startswith(os.path.join(self.root, "")):
            raise Unusable("unsafe_image_path", f": {name[:80]!r} lies outside {self.root}")
        path, status = _spelled(path)
        if status is None:
            raise Unusable("missing_image_file", f": no file {path}", [path])
        if not stat.S_ISREG(status.st_mode):
            raise Unusable("missing_image_file", f": {path} is not a regular file", [path])
        _check_size(status.st_size, path, [path])
        return ImageRef(path, 0, status.st_size)


def is_usable_file(path: str) -> bool:
    """Returns True if a file that an `ImageRoot` could not use is usable now."""
    path, status = _spelled(path)
    if status is None or not stat.S_ISREG(status.st_mode):
        return False
    return 0 < status.st_size <= MAX_IMAGE_BYTES and os.access(path, os.R_OK)


def _spelled(path: str) -> tuple[str, os.stat_result | None]:
    """Returns the path, or the one with the same letters in Unicode's other form (macOS keeps accents apart, others in
    the letters), and its status; None: there is neither."""
    forms = [] if path.isascii() else [unicodedata.normalize(form, path) for form in ("NFC", "NFD")]
    for name in (path, *forms):
        try:
            return name, os.stat(name)
        except (OSError, ValueError):  # ValueError: characters that no file name has
            continue
    return path, None


def _checked(data: bytes) -> bytes:
    _check_size(len(data), "the bytes in the record")
    return data


def _check_size(size: int, what: str, image_files: Sequence[str] = ()) -> None:
    if size == 0:
        raise Unusable("image_empty", f": {what}", image_files)
    if size > MAX_IMAGE_BYTES:
        detail = f": {what}, {size:,} bytes, the limit is {MAX_IMAGE_BYTES:,}"
        raise Unusable("image_too_large", detail, image_files)


def _path_of_url(url: str) -> str:
    try:
        return unquote(urlsplit(url).path)
    except ValueError as error:  # brackets where a machine's name would be
        raise Unusable("image_url_not_fetched", f": {url[:80]} ({error}); write file:///path") from None


def _data_of_url(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise Unusable("broken_data_url", ": no comma; write data:image/png;base64,...")
    try:
        data = unquote_to_bytes(body)
        return base64.b64decode(data, validate=True) if head.lower().endswith(";base64") else data
    except (binascii.Error, UnicodeEncodeError) as error:
        raise Unusable("broken_data_url", f": {error}") from None
