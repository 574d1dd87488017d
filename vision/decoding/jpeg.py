"""JPEG: the header, checked, and a decoding that notices when the compressed data ends too early.

libjpeg paints what is missing grey and only warns, which Pillow does not pass on. So here the file is fed to Pillow's
decoder piece by piece, a piece for each run of entropy-coded data: up to a restart marker, or up to the end of a scan.
Behind each run go eight bytes of padding that no decoder needs but to look ahead. Two things can happen:

- The run was whole. Its last block is complete, and the decoder looks for the next marker: it skips the padding, and
  two bytes more when they are offered.
- The run was cut. The decoder takes the padding for the missing bits, and then waits in the middle of a block for seven
  bytes, the size of its buffer: offered two, it takes none.
"""

import re
import struct
from collections.abc import Iterator
from itertools import cycle
from math import ceil
from typing import Any, NamedTuple

from PIL import Image
from PIL.ImageFile import ImageFile

from vision.decoding.parts import MAX_BLOCKS, ImageFault, ImageHeader, Parts, exif_orientation, truncated

MAX_SCANS = 100  # each costs a pass over all pixels
MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # all but stuffing, fill bytes and restarts
RESTART = re.compile(rb"\xff([\xd0-\xd7])")
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
HUFFMAN_FRAMES, PROGRESSIVE_FRAMES = (0xC0, 0xC1, 0xC2), (0xC2, 0xC6, 0xCA, 0xCE)
START_OF_SCAN, END_OF_IMAGE = 0xDA, b"\xff\xd9"
STUFFED = b"\xff\x00"  # how entropy-coded data writes the byte FF; eight ones are the start of no Huffman code
PADDING = 8 * STUFFED
COEFFICIENTS = 64
ICC = b"ICC_PROFILE\0"
"""Start of a piece of a colour profile; its number, from 1, and the number of pieces follow."""


class Component(NamedTuple):
    """Brightness or a colour, as a frame header describes it."""

    number: int
    across: int  # sampling factors: how many of its blocks an MCU holds
    down: int


class Scan(NamedTuple):
    """One pass over the image, or over some of its components or coefficients."""

    header: bytes
    restart_interval: int  # MCUs; 0: none
    data: memoryview


def read_jpeg(data: bytes) -> ImageHeader:
    """The header of a file. Raises ImageFault, also if whole scans or restart intervals are missing."""
    parts: Parts = [b"\xff\xd8"]
    view, position, frame, exif, icc, interval = memoryview(data), 2, None, b"", {}, 0
    scans: list[Scan] = []
    for _ in range(MAX_BLOCKS):
        marker = _next_marker(data, position)
        code, start = marker[1][0], marker.end()
        if code == END_OF_IMAGE[1]:
            header = _header([*parts, END_OF_IMAGE], frame, scans)
            icc_profile = b"".join(icc[number] for number in sorted(icc))
            return header._replace(orientation=exif_orientation(exif), icc_profile=icc_profile)
        if code in (0x01, 0xD8):
            position = start
            continue
        position = start + int.from_bytes(data[start : start + 2], "big")
        if position < start + 2 or position > len(data):
            raise truncated(data, "a segment")
        body = bytes(view[start + 2 : position])
        if code == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body
        elif code == 0xE2 and body.startswith(ICC):
            icc.setdefault(body[len(ICC) : len(ICC) + 1], body[len(ICC) + 2 :])
        elif code in FRAMES and frame is not None:
            raise ImageFault("corrupt", "more than one frame header")
        elif code in FRAMES:
            frame = (code, body)
        elif code == 0xDD:
            interval = int.from_bytes(body[:2], "big")
        elif code == START_OF_SCAN:
            begin, position = position, _next_marker(data, position).start()
            scans.append(Scan(body, interval, view[begin:position]))
        if not (0xE0 <= code <= 0xEF or code == 0xFE) or body.startswith((b"JFIF\0", b"Adobe")):
            parts.append(view[start - 2 : position])
    raise ImageFault("corrupt", f"more than {MAX_BLOCKS:,} segments")


def _next_marker(data: bytes, position: int) -> re.Match[bytes]:
    marker = MARKER.search(data, position)
    if marker is None:
        raise truncated(data, "the image")
    return marker


def _header(parts: Parts, frame: tuple[int, bytes] | None, scans: list[Scan]) -> ImageHeader:
    if frame is None or len(frame[1]) < 9 or not scans:
        raise ImageFault("corrupt", "no image data")
    if len(scans) > MAX_SCANS:
        raise ImageFault("corrupt", f"{len(scans):,} scans, the limit is {MAX_SCANS}")
    code, body = frame
    height, width = struct.unpack_from(">HH", body, 1)
    components = [Component(body[at], body[at + 1] >> 4, body[at + 1] & 15) for at in range(6, len(body) - 2, 3)]
    largest = max(c.across for c in components) * max(c.down for c in components)
    if largest == 0:
        raise ImageFault("corrupt", "a sampling factor of 0")
    holds_coefficients = len(scans) > 1 or code in PROGRESSIVE_FRAMES  # two bytes each
    coefficients = width * height * sum(c.across * c.down for c in components) // largest
    header = ImageHeader("JPEG", width, height, parts, decoder_bytes=2 * coefficients * holds_coefficients)
    # At least a bit for the mean of each block of 8 x 8, and where no later scan tells them one for its details.
    # Without them libjpeg would make up the rest of an image of any size. Arithmetic coding may take less.
    least_bits = width * height // 64 * {0xC0: 2, 0xC1: 2, 0xC2: 1}.get(code, 0)
    if 8 * sum(len(scan.data) for scan in scans) < least_bits:
        return header._replace(is_cut_off=True)
    if code in HUFFMAN_FRAMES:
        _check_coefficients(components, scans, is_progressive=code in PROGRESSIVE_FRAMES)
        for scan in scans:
            _check_restarts(scan, components, width, height)
    return header._replace(has_huffman_codes=code in HUFFMAN_FRAMES)


def _check_coefficients(components: list[Component], scans: list[Scan], *, is_progressive: bool) -> None:
    """Raises ImageFault unless the scans together tell every coefficient of every component to its last bit.

    A progressive file that was cut between two scans, or in the first of them, looks whole but is blurred.
    """
    missing = {component.number: [COEFFICIENTS] * COEFFICIENTS for component in components}  # bits, at most
    for scan in scans:
        count, tail = scan.header[0] if scan.header else 0, scan.header[-3:]
        if len(scan.header) != 4 + 2 * count or not set(scan.header[1:-3:2]) <= missing.keys():
            raise ImageFault("corrupt", "a scan of components that the image does not have")
        first, last, low = (tail[0], tail[1], tail[2] & 15) if is_progressive else (0, COEFFICIENTS - 1, 0)
        for number in scan.header[1:-3:2]:
            missing[number][first : last + 1] = [low] * (min(last, COEFFICIENTS - 1) + 1 - first)
    if any(any(bits) for bits in missing.values()):
        raise ImageFault("truncated", f"the details are cut off after {len(scans)} scans")


def _check_restarts(scan: Scan, components: list[Component], width: int, height: int) -> None:
    """Raises ImageFault if a scan has fewer restart markers than it needs, or not in their order."""
    if not scan.restart_interval:
        return
    mcus = count_mcus(scan, components, width, height)
    expected = ceil(mcus / scan.restart_interval) - 1
    found = [marker[1][0] for marker in RESTART.finditer(scan.data)][:expected]
    if len(found) < expected:
        raise ImageFault("truncated", f"{len(found):,} of {expected:,} restart markers in a scan")
    if any(code != right for code, right in zip(found, cycle(range(0xD0, 0xD8)), strict=False)):
        raise ImageFault("corrupt", "restart markers out of order")


def count_mcus(scan: Scan, components: list[Component], width: int, height: int) -> int:
    """Units that a scan is coded in: of several components an MCU holds all their blocks, of one it is one block."""
    across, down = max(c.across for c in components), max(c.down for c in components)
    chosen = [c for c in components if c.number in scan.header[1:-3:2]]
    if len(chosen) > 1:
        return ceil(width / (8 * across)) * ceil(height / (8 * down))
    (one,) = chosen
    return ceil(ceil(width * one.across / across) / 8) * ceil(ceil(height * one.down / down) / 8)


def decode_whole(image: ImageFile, parts: Parts) -> None:
    """Loads the pixels of an image that was opened from these parts. Raises ImageFault if a run of data is cut.

    A run that lacks only its last bytes, at most three blocks, is not noticed: the padding can stand for them.
    """
    image.load_prepare()
    ((codec, box, _, arguments),) = image.tile
    decoder = Image._getdecoder(image.mode, codec, arguments, image.decoderconfig)
    try:
        decoder.setimage(image.im, box)
        error = _feed(decoder, parts)
    finally:
        decoder.cleanup()
    if error < 0:
        raise ImageFault("corrupt", f"cannot be decoded (decoder error {error})")
    image.tile = []


def _feed(decoder: Any, parts: Parts) -> int:
    """Returns the decoder's error, or 0, when it says that it has all rows or that it gave up."""
    rest = b""
    for piece in _pieces(parts):
        taken, error = decoder.decode(rest + piece)
        rest = (rest + piece)[taken:]
        if taken >= 0 and piece.endswith(PADDING):
            if rest:
                break
            taken, error = decoder.decode(STUFFED)
            if 0 <= taken < len(STUFFED):
                break
        if taken < 0:
            return error
    raise ImageFault("truncated", "its compressed data ends before the image does")


def _pieces(parts: Parts) -> Iterator[bytes]:
    """The file again, cut behind each run of entropy-coded data, which ends in padding."""
    before: Parts = []
    for part in parts:
        if bytes(part[:2]) != bytes([0xFF, START_OF_SCAN]):
            before.append(part)
            continue
        begin = 0
        for restart in RESTART.finditer(part):
            yield b"".join([*before, part[begin : restart.start()], PADDING])
            before, begin = [], restart.start()
        yield b"".join([*before, part[begin:], PADDING])
        before = []
    yield b"".join(before)
