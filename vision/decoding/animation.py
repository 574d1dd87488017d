"""Detection of files with more than one frame by their blocks, without decoding any."""

from vision.decoding.parts import MAX_BLOCKS


def is_animated(data: bytes) -> bool:
    """True for a GIF, WebP or PNG that moves. `data` is one that `decode_image` has read, so its blocks are whole."""
    if data[:4] == b"GIF8":
        return _gif_frames(data) > 1
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X":
        return bool(data[20] & 0x02)
    return data[:4] == b"\x89PNG" and _png_frames(data) > 1


def _gif_frames(data: bytes) -> int:
    """Number of frames, counted up to two."""
    frames, position = 0, 13 + _colour_table(data[10])
    for _ in range(MAX_BLOCKS):
        code = data[position]
        if code == 0x2C:
            frames += 1
            position += 11 + _colour_table(data[position + 9])
        elif code == 0x21:
            position += 2
        if code not in (0x2C, 0x21) or frames == 2:
            break
        while size := data[position]:
            position += size + 1
        position += 1
    return frames


def _colour_table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _png_frames(data: bytes) -> int:
    """Number of frames in the acTL chunk in front of the pixels; 1 without that chunk."""
    position = 8
    while (kind := data[position + 4 : position + 8]) not in (b"IDAT", b"IEND", b""):
        if kind == b"acTL":
            return int.from_bytes(data[position + 8 : position + 12], "big")
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return 1
