"""Forward pass over a plain tar: the place of each member, and the first damage. Nothing is extracted or followed."""

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 512
ZEROS = bytes(BLOCK)
MAX_EXTENDED_BYTES = 2**20  # of a pax or GNU long-name header
MAX_PADDING_BYTES = 64 * 2**20  # zeros after the end marker
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
EXTENDED, DATALESS, REGULAR = b"xgLK", b"123456", b"0\0" + b"7"  # type flags; dataless: links, devices, folder, FIFO
PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=]{1,1024})=")


class TarDamage(ValueError):
    """Damage from which on the tar cannot be read; what was yielded before is whole."""


class TarMember(NamedTuple):
    """A member whose data lie completely inside the file."""

    name: str  # empty if it holds a NUL or is not UTF-8
    is_regular: bool
    is_folder: bool
    offset: int
    size: int


def tar_members(descriptor: int) -> Iterator[TarMember]:
    """Yields the members in file order and raises TarDamage where the file stops being a whole tar.

    Only headers are read, so a member costs the same whatever size it has or declares.
    """
    end = os.fstat(descriptor).st_size
    if end == 0:
        raise TarDamage("empty file")
    position, shared, own = 0, {}, {}
    while (block := _read_header(descriptor, position)) != ZEROS:
        kind = block[156:157]
        data = _after_sparse_map(descriptor, position) if kind == b"S" else position + BLOCK
        size = _data_size(block, kind, {**shared, **own}.get(b"size"), position)
        if data + size > end:
            raise TarDamage(f"member at byte {position:,} declares {size:,} bytes, {max(0, end - data):,} are there")
        if kind in EXTENDED:
            records = _read_extended(descriptor, kind, data, size)
            (shared if kind == b"g" else own).update(records)
        else:
            yield _member(block, {**shared, **own}, data, size)
            own = {}
        position = data + -(-size // BLOCK) * BLOCK
    if own:
        raise TarDamage(f"extended header without its member before byte {position:,}")
    _check_end_marker(descriptor, position, end)


def _read_header(descriptor: int, position: int) -> bytes:
    """Returns a block of 512 bytes whose checksum holds, or the zeros that begin the end marker."""
    block = os.pread(descriptor, BLOCK, position)
    if len(block) < BLOCK:
        raise TarDamage(f"ends {'inside a header' if block else 'without the end marker'} at byte {position:,}")
    if block != ZEROS and not _checksum_holds(block):
        foreign = [name for magic, name in COMPRESSED.items() if position == 0 and block.startswith(magic)]
        raise TarDamage(
            f"{foreign[0]}-compressed, not a plain tar" if foreign else f"header checksum at byte {position:,}"
        )
    return block


def _checksum_holds(block: bytes) -> bool:
    unsigned = sum(block.rstrip(b"\0")) - sum(block[148:156]) + 8 * ord(" ")
    declared = _number(block[148:156])
    if declared == unsigned:
        return True
    return declared == unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])  # old tars: signed bytes


def _number(field: bytes) -> int | None:
    """Reads an octal field, or GNU's base-256 form of a large one; None if it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    return int(digits or b"0", 8) if not digits.strip(b"01234567") else None


def _data_size(block: bytes, kind: bytes, pax_size: bytes | None, position: int) -> int:
    if kind in DATALESS:
        return 0
    if pax_size is None or kind in EXTENDED:
        size = _number(block[124:136])
    else:
        size = int(pax_size) if pax_size.isdigit() and len(pax_size) < 20 else None
    if size is None:
        raise TarDamage(f"member at byte {position:,} has no readable size")
    return size


def _after_sparse_map(descriptor: int, position: int) -> int:
    """Returns where the data of an old GNU sparse file begin: blocks of its map lie between its header and them."""
    continues, position = os.pread(descriptor, 1, position + 482), position + BLOCK
    while continues not in (b"", b"\0"):
        continues, position = os.pread(descriptor, 1, position + 504), position + BLOCK
    return position


def _read_extended(descriptor: int, kind: bytes, offset: int, size: int) -> dict[bytes, bytes]:
    """Returns what a pax header or a GNU long name says of the next member; a link's long target is not used."""
    if size > MAX_EXTENDED_BYTES:
        raise TarDamage(
            f"extended header at byte {offset - BLOCK:,} has {size:,} bytes, the limit is {MAX_EXTENDED_BYTES:,}"
        )
    payload = os.pread(descriptor, size, offset)
    if kind in b"LK":
        return {b"path": payload.rstrip(b"\0")} if kind == b"L" else {}
    records, position = {}, 0
    while position < size and payload[position]:
        match = PAX_RECORD.match(payload, position)
        stop = position + int(match[1]) if match else 0
        if not match or stop <= match.end() or stop > size or payload[stop - 1 : stop] != b"\n":
            raise TarDamage(f"unreadable pax header at byte {offset - BLOCK:,}")
        if match[2] in (b"path", b"size"):
            records[match[2]] = payload[match.end() : stop - 1]
        elif match[2].startswith(b"GNU.sparse."):
            records[b"sparse"] = b""
        position = stop
    return records


def _member(block: bytes, records: dict[bytes, bytes], offset: int, size: int) -> TarMember:
    name = records.get(b"path")
    if name is None:
        name = block[:100].rstrip(b"\0")
        if block[257:263] == b"ustar\0" and block[345] != 0:
            name = block[345:500].rstrip(b"\0") + b"/" + name
    kind = block[156:157]
    is_folder = kind == b"5" or (kind in REGULAR and name.endswith(b"/"))
    try:
        text = "" if b"\0" in name else name.decode()
    except UnicodeDecodeError:
        text = ""
    is_regular = kind in REGULAR and not is_folder and b"sparse" not in records
    return TarMember(text, is_regular, is_folder, offset, size)


def _check_end_marker(descriptor: int, position: int, end: int) -> None:
    if end - position < 2 * BLOCK:
        raise TarDamage(f"ends without a whole end marker at byte {end:,}")
    if end - position > MAX_PADDING_BYTES:
        raise TarDamage(f"{end - position:,} bytes after the end marker at byte {position:,}")
    for start in range(position, end, 2**20):
        if os.pread(descriptor, 2**20, start).strip(b"\0"):
            raise TarDamage(f"data after the end marker at byte {position:,}")
