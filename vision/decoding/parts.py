"""Common to all image formats: a header, a reason to refuse, a file made of parts, TIFF tags, EXIF orientation."""

import io
import struct
from bisect import bisect_right
from itertools import accumulate
from typing import Any, NamedTuple

from vision.decoding.names import number_of

MAX_BLOCKS = 50_000  # chunks, segments or frames of one image
MAX_PROFILE_BYTES = 4 * 2**20  # of a colour profile; those of printing presses take up to 3 MB
MAX_TAGS = 4096
NOT_ALL = "not all of its pixels are there"
ORIENTATION = 274
TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # bytes by type
INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}


class ImageFault(ValueError):
    """The reason why an image cannot be used: one stable snake_case word, and what was seen."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def truncated(data: bytes, what: str) -> ImageFault:
    return ImageFault("truncated", f"{what} is cut off after {number_of(len(data), 'byte')}")


def too_many(what: str) -> ImageFault:
    return ImageFault("corrupt", f"more than {MAX_BLOCKS:,} {what}")


Parts = list[bytes | memoryview]


class ImageHeader(NamedTuple):
    """An image before any of its pixels is decoded."""

    format: str
    width: int
    height: int
    parts: Parts  # the image's file without metadata
    orientation: int = 1  # EXIF
    decoder_bytes: int = 0  # memory that decoding takes beside the pixels themselves
    grey_levels: int = 65_536  # of a 16-bit image
    is_cut_off: bool = False  # it has fewer bytes than its size takes
    is_unsigned: bool = False  # its integers of 32 bits
    is_negative: bool = False  # its greys of more than 8 bits go from white to black
    icc_profile: bytes = b""  # which colours its numbers mean; empty: those of sRGB
    has_huffman_codes: bool = False  # a JPEG whose compressed data can be checked while it is decoded


class SplicedFile(io.RawIOBase):
    """Parts of buffers, read as one file without a copy."""

    def __init__(self, parts: Parts) -> None:
        self._parts = [memoryview(part) for part in parts if len(part)]
        self._starts = [0, *accumulate(len(part) for part in self._parts)]
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._position, self._starts[-1])[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        index = bisect_right(self._starts, self._position) - 1
        if index >= len(self._parts):
            return 0
        begin = self._position - self._starts[index]
        piece = self._parts[index][begin : begin + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


class Tag(NamedTuple):
    """One entry of a TIFF directory, its values not read yet."""

    code: int
    type: int
    count: int
    entry: bytes  # as it stands in the file


class TagDirectory:
    """The first directory of a TIFF file or of an EXIF block, which has the same form."""

    def __init__(self, data: bytes) -> None:
        """Reads the directory. Raises ValueError if there is none."""
        order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
        version = int.from_bytes(data[2:4], "little" if order == "<" else "big")
        if order is None or version not in (42, 43):
            raise ValueError("no TIFF header")
        self.data, self.order, self.is_big = data, order, version == 43
        self.count_format, self.offset_format = ("Q", "Q") if self.is_big else ("H", "I")
        try:
            (self.start,) = struct.unpack_from(order + self.offset_format, data, 8 if self.is_big else 4)
            self.tags = self._read_tags(self.start)
        except (struct.error, OverflowError):
            raise ValueError("the tag directory is cut off") from None

    def _read_tags(self, start: int) -> dict[int, Tag]:
        entry_bytes = 20 if self.is_big else 12
        (count,) = struct.unpack_from(self.order + self.count_format, self.data, start)
        if count > MAX_TAGS:
            raise ValueError(f"{count:,} tags")
        start += struct.calcsize(self.order + self.count_format)
        tags = {}
        for position in range(start, start + count * entry_bytes, entry_bytes):
            entry = bytes(self.data[position : position + entry_bytes])
            if len(entry) < entry_bytes:
                raise ValueError("the tag directory is cut off")
            code, kind, values = struct.unpack_from(self.order + "HH" + self.offset_format, entry)
            tags.setdefault(code, Tag(code, kind, values, entry))
        return tags

    def place(self, tag: Tag) -> tuple[bytes, int]:
        """The buffer and offset of a tag's values: in its entry if they fit, else in the file."""
        inline = 8 if self.is_big else 4
        if tag.count * TAG_BYTES.get(tag.type, 0) <= inline:
            return tag.entry, len(tag.entry) - inline
        (offset,) = struct.unpack_from(self.order + self.offset_format, tag.entry, len(tag.entry) - inline)
        if offset + tag.count * TAG_BYTES[tag.type] > len(self.data):
            raise ValueError(f"tag {tag.code} lies outside the file")
        return self.data, offset

    def integers(self, code: int, *, most: int = 1) -> list[int]:
        """A tag's values, none without the tag. Raises ValueError if they are over `most` or no integers."""
        tag = self.tags.get(code)
        if tag is None:
            return []
        if tag.type not in INTEGERS or not 0 < tag.count <= most:
            raise ValueError(f"tag {code} has {tag.count:,} values of type {tag.type}")
        return list(struct.unpack_from(f"{self.order}{tag.count}{INTEGERS[tag.type]}", *self.place(tag)))


def exif_orientation(exif: bytes) -> int:
    """EXIF orientation, 1 to 8; 1 where the block has none or cannot be read."""
    try:
        values = TagDirectory(exif.removeprefix(b"Exif\0\0")).integers(ORIENTATION)
    except ValueError:
        return 1
    return values[0] if values and 1 <= values[0] <= 8 else 1
