"""TIFF: the header, checked, and a copy of the file whose directory holds only what pixels need."""

import struct

from vision.decoding.names import number_of
from vision.decoding.parts import (
    MAX_PROFILE_BYTES,
    ORIENTATION,
    TAG_BYTES,
    ImageFault,
    ImageHeader,
    Parts,
    Tag,
    TagDirectory,
)

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, ROWS_PER_STRIP = 256, 257, 258, 259, 262, 277, 278
PLANAR, TILE_WIDTH, TILE_LENGTH, SAMPLE_FORMAT, ICC_PROFILE = 284, 322, 323, 339, 34_675
UNCOMPRESSED, JPEG, YCBCR, SEPARATE_PLANES = 1, 7, 6, 2
OFFSETS, BYTE_COUNTS = (273, 324), (279, 325)  # of strips and of tiles
MAX_STRIPS, MAX_SAMPLES = 200_000, 6
MOST = {  # values of a tag; of the others one
    **dict.fromkeys((*OFFSETS, *BYTE_COUNTS), MAX_STRIPS),
    **dict.fromkeys((BITS, 338, SAMPLE_FORMAT, 519, 520, 521, 529, 530, 532), 64),
    320: 3 * 65_536,  # colour map
    347: 2**20,  # bytes of JPEG tables
}
PIXEL_TAGS = frozenset(
    int(code)
    for code in (
        "256 257 258 259 262 266 273 277 278 279 284 292 293 317 320 322 323 324 325 332 338 339 347 "
        "512 513 514 515 517 518 519 520 521 529 530 531 532"
    ).split()
)


def read_tiff(data: bytes) -> ImageHeader:
    try:
        directory = TagDirectory(data)
        return _read_directory(directory)
    except ImageFault:
        raise
    except ValueError as error:
        raise ImageFault("corrupt", str(error)) from None


def _read_directory(directory: TagDirectory) -> ImageHeader:
    width, height = directory.integers(WIDTH), directory.integers(LENGTH)
    if not width or not height:
        raise ImageFault("corrupt", "no width or height")
    kept = [tag for code, tag in sorted(directory.tags.items()) if code in PIXEL_TAGS]
    if sum(tag.count * TAG_BYTES.get(tag.type, 0) for tag in kept) > len(directory.data):
        raise ImageFault("corrupt", "tags that share their values")
    for tag in kept:
        if tag.count > MOST.get(tag.code, 1):
            raise ImageFault("corrupt", f"tag {tag.code} has {tag.count:,} values")
        directory.place(tag)
    _check_shared_strips(directory)
    orientation = (directory.integers(ORIENTATION) or [1])[0]
    bits = directory.integers(BITS, most=MOST[BITS]) or [1]
    samples = (directory.integers(SAMPLES) or [len(bits)])[0]
    if samples > MAX_SAMPLES:
        raise ImageFault("corrupt", f"{number_of(samples, 'sample')} a pixel")
    rows = min(height[0], (directory.integers(ROWS_PER_STRIP) or height)[0]) * width[0]
    tile = (directory.integers(TILE_WIDTH) or [0])[0] * (directory.integers(TILE_LENGTH) or [0])[0]
    compression = (directory.integers(COMPRESSION) or [UNCOMPRESSED])[0]
    if compression == UNCOMPRESSED:
        _check_raw_size(directory, width[0], height[0], samples * max(bits))
    if compression == JPEG:
        _check_jpeg_ends(directory)
    return ImageHeader(
        "TIFF",
        width[0],
        height[0],
        _without_other_tags(directory, kept),
        orientation if 1 <= orientation <= 8 else 1,
        len(directory.data) + (compression != UNCOMPRESSED) * max(rows, tile) * samples * max(bits) // 8,
        grey_levels=4096 if bits == [12] else 65_536,
        is_unsigned=directory.integers(SAMPLE_FORMAT, most=MOST[SAMPLE_FORMAT]) in ([], [1]),
        is_negative=directory.integers(PHOTOMETRIC) == [0],
        icc_profile=_profile(directory),
    )


def _profile(directory: TagDirectory) -> bytes:
    """The colour profile; none if it is too large or lies outside the file, as pixels do not need it."""
    tag = directory.tags.get(ICC_PROFILE)
    if tag is None or tag.count > MAX_PROFILE_BYTES or TAG_BYTES.get(tag.type) != 1:
        return b""
    try:
        data, offset = directory.place(tag)
    except ValueError:
        return b""
    return bytes(data[offset : offset + tag.count])


def _check_raw_size(directory: TagDirectory, width: int, height: int, bits_per_pixel: int) -> None:
    """Raises ImageFault if the byte counts of uncompressed strips are too small for the image.

    Pillow would read on behind them. A count of 0 says nothing: some programs write it for a single strip.
    """
    counts = directory.integers(BYTE_COUNTS[0], most=MAX_STRIPS)
    is_whole_pixels = directory.integers(PHOTOMETRIC) != [YCBCR] and directory.integers(PLANAR) != [SEPARATE_PLANES]
    needed = height * ((width * bits_per_pixel + 7) // 8)
    if counts and 0 < sum(counts) < needed and is_whole_pixels:
        raise ImageFault(
            "truncated", f"strips of {number_of(sum(counts), 'byte')}, of which the image takes {needed:,}"
        )


def _check_jpeg_ends(directory: TagDirectory) -> None:
    """Raises ImageFault if a strip or tile that is a JPEG has no end; libtiff would paint the rest grey."""
    for starts, counts in zip(OFFSETS, BYTE_COUNTS, strict=True):
        strips = (directory.integers(code, most=MAX_STRIPS) for code in (starts, counts))
        for number, (start, count) in enumerate(zip(*strips, strict=False)):
            if directory.data.rfind(b"\xff\xd9", start, start + count) < 0:
                raise ImageFault("truncated", f"strip or tile {number} is cut off")


def _check_shared_strips(directory: TagDirectory) -> None:
    """Raises ImageFault for strips that share bytes: a small file would be decoded again and again."""
    for code in BYTE_COUNTS:
        total = sum(directory.integers(code, most=MAX_STRIPS))
        if total > 4 * len(directory.data) + 4096:
            raise ImageFault("corrupt", f"strips of {number_of(total, 'byte')} in a file of {len(directory.data):,}")


def _without_other_tags(directory: TagDirectory, kept: list[Tag]) -> Parts:
    """The file with the other tags and later pages taken out of its directory, where the rest has room enough."""
    order, view = directory.order, memoryview(directory.data)
    head, tail = order + directory.count_format, order + directory.offset_format
    shorter = struct.pack(head, len(kept)) + b"".join(tag.entry for tag in kept) + struct.pack(tail, 0)
    if directory.start + len(shorter) > len(view):
        raise ImageFault("truncated", f"the tag directory is cut off after {number_of(len(view), 'byte')}")
    return [view[: directory.start], shorter, view[directory.start + len(shorter) :]]
