"""Headers of images, read before any pixel is decoded, and the same image without all that pixels do not need.

Decoders are kept from metadata: text chunks, comments and later frames can cost minutes and gigabytes. What matters of
it, the EXIF orientation and the colour profile, is read here. On the way every container is checked to be whole.
"""

import re
import struct
from collections.abc import Callable

from vision.decoding.jpeg import read_jpeg
from vision.decoding.parts import MAX_BLOCKS, ImageFault, ImageHeader, Parts, exif_orientation, too_many, truncated
from vision.decoding.png import read_png
from vision.decoding.tiff import read_tiff

MAX_RLE = 8 * 2**20  # bytes and pixels of a run-length coded BMP, which is decoded slowly
WEBP_PIXEL_CHUNKS = frozenset({b"ANIM", b"ALPH", b"VP8 ", b"VP8L"})


def read_header(data: bytes) -> ImageHeader:
    """The header of a file. Raises ImageFault for no image, a foreign format, a cut or damage outside the pixels."""
    if not data:
        raise ImageFault("empty", "0 bytes")
    for magic, reader in READERS:
        if magic.match(data):
            return _read(reader, data)
    for magic, name in FOREIGN:
        if magic.match(data, 0, 4096):
            raise ImageFault("format_not_allowed", f"{name} is not among the formats that are read")
    raise ImageFault("not_an_image", "no image of a known format")


def is_image(data: bytes) -> bool:
    """True if the bytes begin like a file of a known format."""
    return any(magic.match(data) for magic, _ in READERS)


def _read(reader: Callable[[bytes], ImageHeader], data: bytes) -> ImageHeader:
    try:
        return reader(data)
    except (IndexError, struct.error):
        raise truncated(data, "the file") from None


def _read_gif(data: bytes) -> ImageHeader:
    """The canvas and the first frame; the blocks of the later frames are only followed to the end."""
    view, control, frame = memoryview(data), b"", None
    canvas, position = struct.unpack_from("<HH", data, 6), 13 + _colour_table(data[10])
    head = view[:position]
    for _ in range(MAX_BLOCKS):
        start, code = position, data[position]
        if code == 0x3B:
            break
        if code == 0x2C:
            table = _colour_table(data[start + 9])
            position = _after_blocks(data, start + 11 + table)
            frame = frame or (control, view[start:position], struct.unpack_from("<4H", data, start + 1))
        elif code == 0x21:
            position = _after_blocks(data, start + 2)
            if data[start + 1 : start + 3] == b"\xf9\x04":
                control = data[start : start + 7] + b"\0"
        else:
            raise ImageFault("corrupt", f"an unknown block at byte {start:,}")
    else:
        raise too_many("blocks")
    if frame is None:
        raise ImageFault("corrupt", "no image data")
    left, top, width, height = frame[2]
    if not width * height:
        raise ImageFault("no_pixels", f"{width:,} x {height:,} pixels")
    size = max(canvas[0], left + width), max(canvas[1], top + height)
    return ImageHeader("GIF", *size, [head, frame[0], frame[1], b";"])


def _colour_table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(data: bytes, position: int) -> int:
    while size := data[position]:
        position += size + 1
    return position + 1


def _read_webp(data: bytes) -> ImageHeader:
    kept: Parts = []
    view, size, exif, icc, frames, has_alpha = memoryview(data), None, b"", b"", 0, False
    position, end = 12, 8 + int.from_bytes(data[4:8], "little")
    for _ in range(MAX_BLOCKS):
        if position >= end:
            break
        start, kind = position, data[position : position + 4]
        position += 8 + int.from_bytes(data[start + 4 : start + 8], "little")
        if max(position, end) > len(data):
            raise truncated(data, "the image")
        body, frames = data[start + 8 : min(position, start + 38)], frames + (kind == b"ANMF")
        if kind == b"VP8X":
            kept.append(data[start : start + 8] + bytes([body[0] & 0x12]) + body[1:10])  # alpha, animation
            has_alpha = bool(body[0] & 0x10)
        elif kind == b"EXIF":
            exif = data[start + 8 : position]
        elif kind == b"ICCP":
            icc = data[start + 8 : position]
        elif kind in WEBP_PIXEL_CHUNKS or (kind == b"ANMF" and frames == 1):
            kept.append(view[start:position])
            kept.append(bytes(position % 2))
        has_alpha = has_alpha or (kind == b"VP8L" and bool(body[4] & 0x10))
        size, position = size or _webp_size(kind, body), position + position % 2
    else:
        raise too_many("chunks")
    if size is None:
        raise ImageFault("corrupt", "no image data")
    head = b"RIFF" + struct.pack("<I", 4 + sum(map(len, kept))) + b"WEBP"
    decoder_bytes = size[0] * size[1] * (14 if has_alpha else 12)  # two canvases and a copy
    return ImageHeader("WEBP", *size, [head, *kept], exif_orientation(exif), decoder_bytes, icc_profile=icc)


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int] | None:
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", body, 1)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None


def _read_bmp(data: bytes) -> ImageHeader:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes == 12:
        width, height, compression = *struct.unpack_from("<HH", data, 18), 0
    elif header_bytes in (40, 52, 56, 64, 108, 124):
        width, height, compression = *struct.unpack_from("<Ii", data, 18), struct.unpack_from("<I", data, 30)[0]
    else:
        raise ImageFault("not_an_image", "no image of a known format")
    height = abs(height)
    is_run_length_coded = compression in (1, 2)
    if is_run_length_coded and max(len(data), width * height) > MAX_RLE:
        raise ImageFault("too_large", f"{width:,} x {height:,} pixels, the limit of run-length coding is {MAX_RLE:,}")
    return ImageHeader("BMP", width, height, [data], decoder_bytes=4 * width * height * is_run_length_coded)


READERS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], ImageHeader]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), read_jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), read_png),
    (re.compile(rb"GIF8[79]a"), _read_gif),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _read_webp),
    (re.compile(rb"BM"), _read_bmp),
    (re.compile(rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]"), read_tiff),
)
FOREIGN = (
    (re.compile(rb"....ftyp(avif|avis|heic|heix|mif1|msf1)", re.DOTALL), "AVIF or HEIC"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL"),
    (re.compile(rb"8BPS"), "Photoshop's format"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "PostScript"),
    (re.compile(rb"%PDF"), "PDF"),
    (re.compile(rb"\0\0[\x01\x02]\0"), "a Windows icon"),
    (re.compile(rb"P[1-7fF]\s"), "a portable anymap"),
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE[^>]*>\s*)?<svg", re.DOTALL), "SVG"),
)
