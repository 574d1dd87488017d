"""Images and shards as the outside sends them, whole and broken, built by hand where no library would write them."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

END_MARKER = bytes(1024)


def encoded(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def colourful(width: int = 12, height: int = 8) -> Image.Image:
    """An image in which every corner and every row differs."""
    across = Image.linear_gradient("L").rotate(90).resize((width, height))
    down = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (across, down, Image.eval(across, lambda value: 255 - value // 2)))


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, pixels: bytes = b"", *, depth: int = 8, colour: int = 0, extra: bytes = b"") -> bytes:
    """A PNG of `pixels` (rows without their filter bytes), with more chunks before the pixels."""
    row = len(pixels) // height if height else 0
    rows = b"".join(b"\0" + pixels[start : start + row] for start in range(0, len(pixels), row or 1))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def gif(width: int, height: int, *, frame: tuple[int, int, int, int] = (0, 0, 1, 1)) -> bytes:
    """A GIF with one frame (left, top, width, height) of a single white pixel's data."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\xff\xff\xff\0\0\0"
    return screen + b"," + struct.pack("<HHHHB", *frame, 0) + b"\x02\x02\x44\x01\0;"


def tiff(
    width: int, height: int, bits: int, pixels: bytes, tags: Iterable[tuple[int, int, int, int]] = (), white: int = 1
) -> bytes:
    """An uncompressed grey TIFF in one strip, with further (code, type, count, value) tags; pixels start at byte 8."""
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, white)]
    entries += [(273, 4, 1, 8), (278, 4, 1, height), (279, 4, 1, len(pixels)), *tags]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    pixels += bytes(len(pixels) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory + bytes(4)


def tar_header(name: str | bytes, size: int, kind: bytes = b"0", *, size_field: bytes | None = None) -> bytes:
    """A header block whose checksum holds, whatever nonsense it says."""
    name = name.encode() if isinstance(name, str) else name
    block = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2)
    block += (size_field or b"%011o\0" % size) + b"00000000000\0" + b" " * 8 + kind
    block = bytearray(bytes(block).ljust(257, b"\0") + b"ustar\x0000").ljust(512, b"\0")
    return with_checksum(block)


def tar_member(name: str | bytes, data: bytes, kind: bytes = b"0") -> bytes:
    return tar_header(name, len(data), kind) + data + bytes(-len(data) % 512)


def pax_header(key: str, value: bytes) -> bytes:
    """A member that says one thing about the next one."""
    record = f" {key}=".encode() + value + b"\n"
    length = next(n for n in range(len(record), len(record) + 9) if len(str(n)) + len(record) == n)
    return tar_member("pax", str(length).encode() + record, b"x")


def with_checksum(block: bytes | bytearray) -> bytes:
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def tar_of(*members: tuple[str, bytes]) -> bytes:
    return b"".join(tar_member(*member) for member in members) + END_MARKER


def written_by_tarfile(members: Iterable[tuple[str, bytes]], tar_format: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


JPEG = encoded(Image.new("RGB", (4, 4), (200, 30, 30)), "JPEG")


def samples(*keys: str) -> list[tuple[str, bytes]]:
    """Members of whole samples."""
    return [member for key in keys for member in ((f"{key}.jpg", JPEG), (f"{key}.txt", f"caption {key}".encode()))]


KEYS = ["0", "1", "2", "3"]
FOUR = samples(*KEYS)
WHOLE = tar_of(*FOUR)
"""A shard of four samples."""
BODY = WHOLE[: -len(END_MARKER)]


def write_index(folder: Path, **entry) -> None:
    (folder / "index.json").write_text(json.dumps({"a.tar": entry}))


ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
"""XYZ (D50) of the red, green and blue of Adobe RGB (1998)."""


def icc_profile(space: bytes = b"RGB ", gamma: float = 2.2, colorants=ADOBE_RGB, padding: int = 0) -> bytes:
    """An ICC profile of version 2, of `RGB ` or `GRAY`: a gamma and, for RGB, primaries."""
    curve = b"curv" + bytes(4) + struct.pack(">IHH", 1, round(gamma * 256), 0)
    tags = {
        b"wtpt": _xyz(0.9642, 1.0, 0.8249),
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 1) + bytes(80 + padding),
    }
    if space == b"RGB ":
        tags |= {name: _xyz(*xyz) for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colorants, strict=True)}
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    else:
        tags[b"kTRC"] = curve
    table, data, start = b"", b"", 132 + 12 * len(tags)
    for name, body in tags.items():
        body += bytes(-len(body) % 4)
        table += name + struct.pack(">II", start + len(data), len(body))
        data += body
    size = struct.pack(">I", start + len(data))
    head = size + bytes(4) + struct.pack(">I", 0x02100000) + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    return head + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D) + bytes(48) + struct.pack(">I", len(tags)) + table + data


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65_536) for value in values))
