"""PNG: its chunks, and a check that all compressed pixels are there."""

import math
import struct
import zlib

from PIL import Image

from vision.decoding.parts import (
    MAX_BLOCKS,
    MAX_PROFILE_BYTES,
    NOT_ALL,
    ImageFault,
    ImageHeader,
    Parts,
    exif_orientation,
    too_many,
    truncated,
)

PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
WHOLE = ((0, 0, 1, 1),)
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row of each pass over an interlaced image, and the steps to the next."""
PIECE = 2**18  # bytes that are unpacked at a time


def read_png(data: bytes) -> ImageHeader:
    parts: Parts = [data[:8]]
    view, position, exif, icc, ihdr = memoryview(data), 8, b"", b"", b""
    for _ in range(MAX_BLOCKS):
        kind = data[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if end > len(data) or len(kind) < 4:
            raise truncated(data, "the image")
        body = view[position + 8 : end - 4]
        if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(data[end - 4 : end], "big"):
            raise ImageFault("corrupt", f"checksum of a chunk at byte {position:,}")
        if kind == b"IHDR" and (ihdr or len(body) != 13):
            raise ImageFault("corrupt", "its image header")
        ihdr, exif = bytes(body) if kind == b"IHDR" else ihdr, bytes(body) if kind == b"eXIf" else exif
        icc = _profile(bytes(body)) if kind == b"iCCP" and not icc else icc
        if kind in PIXEL_CHUNKS:
            parts.append(view[position:end])
        elif kind == b"tRNS":
            parts.append(_transparency(bytes(body), ihdr))
        position = end
        if kind == b"IEND":
            break
    else:
        raise too_many("chunks")
    if not ihdr:
        raise ImageFault("corrupt", "no image header")
    width, height = struct.unpack(">II", ihdr[:8])
    return ImageHeader("PNG", width, height, parts, exif_orientation(exif), icc_profile=icc)


def _profile(body: bytes) -> bytes:
    """The profile in an iCCP chunk; empty if it is damaged or over the limit, at which unpacking stops."""
    _, _, packed = body.partition(b"\0")
    try:
        profile = zlib.decompressobj().decompress(packed[1:], MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return b""
    return profile if len(profile) <= MAX_PROFILE_BYTES else b""


def _transparency(colour: bytes, ihdr: bytes) -> bytes:
    """The tRNS chunk in the scale of Pillow's pixels, which have 8 bits where the file's have 2, 4 or 3 times 16."""
    depth, colour_type = ihdr[8:10] or (0, 0)
    factor = {(2, 0): 85, (4, 0): 17, (16, 2): 1 / 256}.get((depth, colour_type))
    if factor is not None:
        values = [int(value * factor) & 0xFFFF for (value,) in struct.iter_unpack(">H", colour[: len(colour) & ~1])]
        colour = struct.pack(f">{len(values)}H", *values)
    chunk = b"tRNS" + colour
    return struct.pack(">I", len(colour)) + chunk + struct.pack(">I", zlib.crc32(chunk))


def refuse_missing_rows(image: Image.Image, parts: Parts) -> None:
    """Raises ImageFault where a whole zlib stream ends before the last row, for which Pillow leaves black.

    Only where the last row is nothing but zeros, or rows do not come in order, are the pixels unpacked to be counted.
    """
    chunks = [memoryview(part) for part in parts[1:]]
    width, height, depth, colour_type, _, _, is_interlaced = struct.unpack(
        ">IIBBBBB", next(chunk for chunk in chunks if chunk[4:8] == b"IHDR")[8:21]
    )
    if not is_interlaced and any(image.crop((0, height - 1, width, height)).tobytes()):
        return
    bits, expected = CHANNELS.get(colour_type, 4) * depth, 0
    for left, top, right, down in ADAM7 if is_interlaced else WHOLE:
        columns, rows = math.ceil((width - left) / right), math.ceil((height - top) / down)
        expected += rows * (1 + math.ceil(columns * bits / 8)) if columns > 0 and rows > 0 else 0
    if _unpacked_bytes([chunk[8:-4] for chunk in chunks if chunk[4:8] == b"IDAT"], expected) < expected:
        raise ImageFault("truncated", NOT_ALL)


def _unpacked_bytes(pieces: list[memoryview], most: int) -> int:
    """Number of bytes that a zlib stream holds, counted up to `most`."""
    unpacking, count = zlib.decompressobj(), 0
    for piece in pieces:
        packed: bytes | memoryview = piece
        while packed and count < most and not unpacking.eof:
            count += len(unpacking.decompress(packed, PIECE))
            packed = unpacking.unconsumed_tail
    return count
