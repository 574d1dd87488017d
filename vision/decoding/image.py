"""Bytes become an upright 8-bit RGB image, or an ImageError."""

import io
import math
from dataclasses import dataclass
from pathlib import Path

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

from vision.decoding.colours import (
    ON_ITS_SIDE,
    TURNED_LEFT,
    TURNED_UP,
    is_ready,
    strips_of,
    upright_rgb,
)
from vision.decoding.header import read_header
from vision.decoding.parts import ImageFault, ImageHeader, SplicedFile

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "MPO")
JPEG_SCALES = (8, 4, 2)  # that libjpeg decodes at without decoding more, the smallest image first
COPIED_PIXELS = 2**22  # up to this size an image is copied if that lets go of its file and decoder
ROW_BYTES = 24  # that Pillow takes for each row beside its pixels

Box = tuple[float, float, float, float]  # left, top, right, bottom, pixels


class ImageError(ValueError):
    """An image that cannot be used: `name` says which, `reason` is one stable snake_case word."""

    def __init__(self, name: str, reason: str, detail: str) -> None:
        super().__init__(name, reason, detail)
        self.name, self.reason, self.detail = name, reason, detail

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What one image may cost."""

    max_bytes: int = 64 * 2**20
    """Bytes of the compressed image."""
    max_pixels: int = 64_000_000
    """Width times height, taken from the header before anything is decoded."""
    max_memory_bytes: int = 300_000_000
    """Memory to decode and convert the image, estimated before. Pillow takes 4 bytes a pixel for RGB, and as much
    again for what is not upright 8-bit RGB, grey or palette; progressive JPEG and WebP take more."""
    formats: tuple[str, ...] = FORMATS
    """Pillow's names of the formats that may be opened; an MPO is read as the JPEG with which it begins."""


DEFAULT_LIMITS = ImageLimits()


def read_image(path: str | Path, *, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """The image of a file, as `decode_image` makes it. Raises ImageError, also for a file that is missing."""
    if not Path(path).is_file():
        what = "not a regular file" if Path(path).exists() else "no such file"
        raise ImageError(str(path), "missing", f"{what}; name an image file")
    with open(path, "rb") as file:
        data = file.read(limits.max_bytes + 1)  # one byte too many is enough to refuse it
    return decode_image(data, name=str(path), limits=limits)


def decode_image(data: bytes, *, name: str, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """An 8-bit RGB image: upright, alpha laid on white, the first frame of an animation.

    Raises:
        ImageError: the bytes are no whole image of an allowed format, or cost more than `limits`.
    """
    return ImageFile(data, name=name, limits=limits).decode()


class ImageFile:
    """The bytes of an image whose header is within the limits. Raises ImageError if it is not."""

    size: tuple[int, int]
    """Width and height of the upright image, before it is decoded."""

    def __init__(self, data: bytes, *, name: str, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self.name, self.limits = name, limits
        try:
            self.header = _checked_header(data, limits)
        except ImageFault as fault:
            raise ImageError(name, fault.reason, fault.detail) from fault.__cause__
        width, height = self.header.width, self.header.height
        self.size = (height, width) if self.header.orientation in ON_ITS_SIDE else (width, height)

    def decode(self, *, scale: int = 1) -> Image.Image:
        """The upright RGB image, at 1/2, 1/4 or 1/8 its size if `scale` is 2, 4 or 8 (see `scale_for`).

        Raises:
            ImageError: the bytes are no whole image, or cost more than the limits, which do not know the scale.
        """
        try:
            return upright_rgb(*_load(self.header, self.limits, scale))
        except ImageFault as fault:
            raise ImageError(self.name, fault.reason, fault.detail) from fault.__cause__

    def scale_for(self, reduction: float) -> int:
        """The largest scale that makes the image at most `reduction` times smaller; 1 for what is no JPEG."""
        scales = JPEG_SCALES if self.header.format == "JPEG" else ()
        return next((scale for scale in scales if scale <= min(reduction, *self.size)), 1)

    def extent(self, scale: int) -> Box:
        """Where the image lies in what is decoded at a scale, whose last column and row reach over the image."""
        width, height = (side / scale for side in self.size)
        left = math.ceil(width) - width if self.header.orientation in TURNED_LEFT else 0.0
        top = math.ceil(height) - height if self.header.orientation in TURNED_UP else 0.0
        return left, top, left + width, top + height


def _checked_header(data: bytes, limits: ImageLimits) -> ImageHeader:
    if len(data) > limits.max_bytes:
        raise ImageFault("too_large", f"over {limits.max_bytes:,} bytes, which is the limit (set max_bytes)")
    header = read_header(data)
    if header.format not in limits.formats and not (header.format == "JPEG" and "MPO" in limits.formats):
        raise ImageFault("format_not_allowed", f"{header.format} is not among the formats that are read")
    size, pixels = f"{header.width:,} x {header.height:,} pixels", header.width * header.height
    if pixels <= 0:
        raise ImageFault("no_pixels", size)
    if pixels > limits.max_pixels:
        raise ImageFault("too_many_pixels", f"{size}, the limit is {limits.max_pixels:,} (set max_pixels)")
    if header.is_cut_off:
        raise ImageFault("truncated", f"fewer bytes than {size} take")
    return header


def _load(header: ImageHeader, limits: ImageLimits, scale: int) -> tuple[list[Image.Image], ImageHeader]:
    """The image in the file's own colours: whole if it is ready as it is, else in strips, so that memory can move.

    The header comes back with the size that was decoded.
    """
    try:
        image = Image.open(io.BufferedReader(SplicedFile(header.parts)), formats=(header.format,))
        if image.size != (header.width, header.height):
            raise ImageFault("corrupt", f"two sizes, {header.width} x {header.height} and {image.size}")
        _check_memory(image, header, limits)
        if scale > 1:
            image.draft(None, (header.width // scale, header.height // scale))
            header = header._replace(width=image.width, height=image.height)
        image.load()
        if not is_ready(image, header):
            return list(strips_of(image)), header
        holds_on = header.format != "JPEG" and image.width * image.height <= COPIED_PIXELS
        return [image.copy() if holds_on else image], header
    except ImageFault:
        raise
    except UnidentifiedImageError as error:
        raise ImageFault("corrupt", f"no {header.format} that can be decoded") from error
    except MemoryError as error:
        raise ImageFault("too_much_memory", "not enough memory to decode it") from error
    except Exception as error:  # on hostile bytes decoders raise every type, and a stray one would end a training run
        reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise ImageFault(reason, f"cannot be decoded ({error or type(error).__name__})") from error


def _check_memory(image: Image.Image, header: ImageHeader, limits: ImageLimits) -> None:
    """Conversion holds the old and the new image, the old one strip by strip."""
    stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    converted = 0 if is_ready(image, header) else 8 if stored == 4 else 4
    rows, pixels = header.height * ROW_BYTES + header.width * 16, header.width * header.height
    needed = max(pixels * stored + header.decoder_bytes + rows, pixels * converted + 2 * rows)
    needed += sum(map(len, header.parts))
    if needed > limits.max_memory_bytes:
        detail = f"{header.width:,} x {header.height:,} pixels of this kind take {needed:,} bytes to decode"
        raise ImageFault(
            "too_much_memory", f"{detail}, the limit is {limits.max_memory_bytes:,} (set max_memory_bytes)"
        )
