"""Decoding of bytes into an upright 8-bit RGB image, or an ImageError."""

import io
from dataclasses import dataclass

# The plug-ins are imported so that Pillow never loads those of other formats in search of them.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from vision.decoding.colours import is_ready, strips_of, upright_rgb
from vision.decoding.header import read_header
from vision.decoding.jpeg import decode_whole
from vision.decoding.names import escaped, printable
from vision.decoding.parts import NOT_ALL, ImageFault, ImageHeader, SplicedFile
from vision.decoding.png import refuse_missing_rows

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "MPO")
COPIED_PIXELS = 2**22  # up to this size an image is copied if that lets go of its file and decoder
ROW_BYTES = 24  # that Pillow takes for each row beside its pixels


class ImageError(ValueError):
    """An image that cannot be used: `name` says which, `reason` is one stable snake_case word."""

    def __init__(self, name: str, reason: str, detail: str) -> None:
        super().__init__(name, reason, detail)
        self.name, self.reason, self.detail = name, reason, detail

    def __str__(self) -> str:
        return f"{printable(self.name)}: {escaped(self.detail)}"


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """Limits on the size of one image and the memory to decode it."""

    max_bytes: int = 64 * 2**20
    """Bytes of the compressed image."""
    max_pixels: int = 64_000_000
    """Width times height, taken from the header before anything is decoded."""
    max_memory_bytes: int = 300_000_000
    """Memory to decode and convert the image, estimated beforehand. Pillow takes 4 bytes a pixel for RGB, and as much
    again for what is not upright 8-bit RGB, grey or palette; progressive JPEG and WebP take more."""
    formats: tuple[str, ...] = FORMATS
    """Pillow's names of the formats that may be opened; an MPO is read as the JPEG with which it begins."""


DEFAULT_LIMITS = ImageLimits()


def decode_image(data: bytes, *, name: str, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """An 8-bit RGB image: upright, alpha laid on white, the first frame of an animation.

    Raises:
        ImageError: the bytes are no whole image of an allowed format, or cost more than `limits`.
    """
    try:
        header = _checked_header(data, limits)
        return upright_rgb(_load(header, limits), header)
    except ImageFault as fault:
        raise ImageError(name, fault.reason, fault.detail) from fault.__cause__


def _checked_header(data: bytes, limits: ImageLimits) -> ImageHeader:
    if len(data) > limits.max_bytes:
        raise ImageFault("too_large", f"over {limits.max_bytes:,} bytes, which is the limit; make it smaller")
    header = read_header(data)
    if header.format not in limits.formats and not (header.format == "JPEG" and "MPO" in limits.formats):
        raise ImageFault("format_not_allowed", f"{header.format} is not among the formats that are read")
    check_size(header.width, header.height, limits)
    if header.is_cut_off:
        raise ImageFault("truncated", f"fewer bytes than {header.width:,} x {header.height:,} pixels take")
    return header


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Raises ImageFault for an image without pixels, or with more than the limit."""
    size, pixels = f"{width:,} x {height:,} pixels", width * height
    if pixels <= 0:
        raise ImageFault("no_pixels", size)
    if pixels > limits.max_pixels:
        raise ImageFault("too_many_pixels", f"{size}, the limit is {limits.max_pixels:,}; make it smaller")


def _load(header: ImageHeader, limits: ImageLimits) -> list[Image.Image]:
    """The image in the file's own colours: whole if it is ready as it is, else in strips, so that memory can move."""
    try:
        image = Image.open(io.BufferedReader(SplicedFile(header.parts)), formats=(header.format,))
        if image.size != (header.width, header.height):
            raise ImageFault("corrupt", f"two sizes, {header.width} x {header.height} and {image.size}")
        _check_memory(image, header, limits)
        if header.has_huffman_codes:
            decode_whole(image, header.parts)  # pyrefly: ignore[bad-argument-type]
        image.load()
        if header.format == "PNG":
            refuse_missing_rows(image, header.parts)
        if not is_ready(image, header):
            return list(strips_of(image))
        holds_on = header.format != "JPEG" and image.width * image.height <= COPIED_PIXELS
        return [image.copy() if holds_on else image]
    except ImageFault:
        raise
    except UnidentifiedImageError as error:
        raise ImageFault("corrupt", f"no {header.format} that can be decoded") from error
    except MemoryError as error:
        raise ImageFault("too_much_memory", "not enough memory to decode it") from error
    except Exception as error:  # on hostile bytes decoders raise every type, and a stray one would end a training run
        if "truncated" in str(error).lower():
            raise ImageFault("truncated", NOT_ALL) from error
        raise ImageFault("corrupt", f"cannot be decoded ({error or type(error).__name__})") from error


def _check_memory(image: Image.Image, header: ImageHeader, limits: ImageLimits) -> None:
    """Raises ImageFault over the memory limit; conversion holds the old image, strip by strip, and the new."""
    stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    converted = 0 if is_ready(image, header) else 8 if stored == 4 else 4
    rows, pixels = header.height * ROW_BYTES + header.width * 16, header.width * header.height
    needed = max(pixels * stored + header.decoder_bytes + rows, pixels * converted + 2 * rows)
    needed += sum(map(len, header.parts))
    if needed > limits.max_memory_bytes:
        detail = f"{header.width:,} x {header.height:,} pixels of this kind take {needed:,} bytes to decode"
        raise ImageFault("too_much_memory", f"{detail}, the limit is {limits.max_memory_bytes:,}; make it smaller")
