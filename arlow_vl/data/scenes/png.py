"""PNG files whose bytes depend on the pixels alone, not on the version of a compressor.

The rows are written as DEFLATE (RFC 1951) with its fixed codes. A run of bytes that repeats the row above or the pixel
to the left becomes a match, every other byte a literal: backgrounds nearly vanish, and drawings keep their size.
"""

import struct
import zlib

import numpy as np
from jaxtyping import Bool, Int64, UInt8

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SHORTEST, LONGEST = 8, 258
"""Bytes of a match. Shorter ones save next to nothing, and DEFLATE has no longer ones."""
PIXEL = 3
"""Bytes of a pixel."""
END = 256
BLOCK_HEAD = (0b011, 3)
"""Code and number of bits of a block's head: the last block, with fixed codes."""


def png_bytes(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Returns the image as an 8-bit RGB PNG."""
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + PIXEL * width), np.uint8)  # each row begins with its filter, 0: none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x78\x01" + deflated(rows.ravel(), rows.shape[1]) + struct.pack(">I", zlib.adler32(rows.tobytes()))
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def deflated(data: UInt8[np.ndarray, " bytes"], row: int) -> bytes:
    """Returns one block of fixed codes, whose matches reach back a row or a pixel.

    Args:
        row: Bytes of a row, at most 32768.
    """
    above, is_above = _matches(_repeats(data, row))
    beside, is_beside = _matches(_repeats(data, PIXEL) & ~is_above)
    places = np.flatnonzero(~(is_above | is_beside))
    literals = SYMBOLS[data[places]]
    coded = [literals, _coded(above, row), _coded(beside, PIXEL)]
    order = np.argsort(np.concatenate([places, above[:, 0], beside[:, 0]]))
    return _packed(np.concatenate([[BLOCK_HEAD], np.concatenate(coded)[order], SYMBOLS[[END]]]))


def _repeats(data: UInt8[np.ndarray, " bytes"], distance: int) -> Bool[np.ndarray, " bytes"]:
    """Returns True where a byte equals the one `distance` bytes before."""
    repeats = np.zeros(len(data), bool)
    repeats[distance:] = data[distance:] == data[:-distance]
    return repeats


def _matches(repeats: Bool[np.ndarray, " bytes"]) -> tuple[Int64[np.ndarray, "matches 2"], Bool[np.ndarray, " bytes"]]:
    """Returns start and length of each match, and True for the bytes that are in one."""
    edges = np.flatnonzero(np.diff(repeats, prepend=False, append=False)).astype(np.int64)
    starts, ends = edges[::2], edges[1::2]
    is_long = ends - starts >= SHORTEST
    starts, lengths = starts[is_long], (ends - starts)[is_long]
    covered = np.zeros(len(repeats) + 1, np.int64)
    covered[starts], covered[starts + lengths] = 1, -1
    pieces = -(-lengths // LONGEST)  # of about one length, so that none is too short
    run = np.repeat(np.arange(len(starts)), pieces)
    number = np.arange(len(run)) - np.repeat(pieces.cumsum() - pieces, pieces)
    begin = number * lengths[run] // pieces[run]
    end = (number + 1) * lengths[run] // pieces[run]
    return np.stack([starts[run] + begin, end - begin], axis=1), covered[:-1].cumsum() > 0


def _coded(matches: Int64[np.ndarray, "matches 2"], distance: int) -> Int64[np.ndarray, "matches 2"]:
    """Returns code and number of bits of each match."""
    lengths, (value, bits) = LENGTHS[matches[:, 1]], _distance_code(distance)
    return np.stack([lengths[:, 0] | value << lengths[:, 1], lengths[:, 1] + bits], axis=1)


def _packed(codes: Int64[np.ndarray, "codes 2"]) -> bytes:
    """Returns the codes one after another, each from its lowest bit."""
    values, sizes = codes[:, 0].astype(np.uint32), codes[:, 1]  # a code has at most 31 bits
    starts = (sizes.cumsum() - sizes).astype(np.uint32)
    bits = np.repeat(values, sizes) >> np.arange(sizes.sum(), dtype=np.uint32) - np.repeat(starts, sizes) & 1
    return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()


def _symbol(symbol: int) -> tuple[int, int]:
    """Returns code and number of bits of a literal, the end or a length (RFC 1951, section 3.2.6), first bit lowest."""
    first, base, bits = next(
        row for row in ((280, 0xC0, 8), (256, 0, 7), (144, 0x190, 9), (0, 0x30, 8)) if symbol >= row[0]
    )
    return _turned(base + symbol - first, bits), bits


def _length(length: int) -> tuple[int, int]:
    """Returns code and number of bits of a match's length, with its extra bits."""
    if length == LONGEST:
        return _symbol(285)
    extra = max(0, (length - 3).bit_length() - 3)
    code, bits = _symbol(257 + 4 * extra + (length - 3 >> extra))
    return code | ((length - 3) & ((1 << extra) - 1)) << bits, bits + extra


def _distance_code(distance: int) -> tuple[int, int]:
    """Returns code and number of bits of a match's distance, with its extra bits."""
    extra = max(0, (distance - 1).bit_length() - 2)
    code = 2 * extra + (distance - 1 >> extra)
    return _turned(code, 5) | ((distance - 1) & ((1 << extra) - 1)) << 5, 5 + extra


def _turned(code: int, bits: int) -> int:
    return int(f"{code:0{bits}b}"[::-1], 2)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


SYMBOLS = np.array([_symbol(symbol) for symbol in range(END + 1)], np.int64)
"""Code and number of bits of each literal, and of the end."""
LENGTHS = np.array([(0, 0)] * 3 + [_length(length) for length in range(3, LONGEST + 1)], np.int64)
"""Code and number of bits by length."""
