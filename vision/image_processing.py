"""Pictures: bytes become an upright 8-bit RGB picture or a PictureError; an RGB picture becomes encoder input."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float

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

from vision.picture_colours import WHITE, is_ready, strips_of, upright_rgb
from vision.picture_formats import read_header
from vision.picture_header import PictureFault, PictureHeader, SplicedFile

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "MPO")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
MAX_CANVAS_PIXELS = 64_000_000
COPIED_PIXELS = 2**22  # up to this size a picture is copied, which lets go of its file and decoder
ROW_BYTES = 24  # that Pillow takes for each row beside its pixels


class PictureError(ValueError):
    """A picture that cannot be used: `name` says which, `reason` is one stable snake_case word."""

    def __init__(self, name: str, reason: str, detail: str) -> None:
        super().__init__(name, reason, detail)
        self.name, self.reason, self.detail = name, reason, detail

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class PictureLimits:
    """What one picture may cost."""

    max_bytes: int = 64 * 2**20
    """Bytes of the compressed picture."""
    max_pixels: int = 64_000_000
    """Width times height, taken from the header before anything is decoded."""
    max_memory_bytes: int = 300_000_000
    """Memory to decode and convert the picture, estimated before. Pillow takes 4 bytes a pixel for RGB, and as much
    again for what is not upright 8-bit RGB, grey or palette; progressive JPEG and WebP take more."""
    formats: tuple[str, ...] = FORMATS
    """Pillow's names of the formats that may be opened; an MPO is read as the JPEG with which it begins."""


DEFAULT_LIMITS = PictureLimits()


def read_picture(path: str | Path, *, limits: PictureLimits = DEFAULT_LIMITS) -> Image.Image:
    """The picture of a file, as `decode_picture` makes it. Raises PictureError, also for a file that is missing."""
    if not Path(path).is_file():
        what = "not a regular file" if Path(path).exists() else "no such file"
        raise PictureError(str(path), "missing", f"{what}; name a picture file")
    with open(path, "rb") as file:
        data = file.read(limits.max_bytes + 1)  # one byte too many is enough to refuse it
    return decode_picture(data, name=str(path), limits=limits)


def decode_picture(data: bytes, *, name: str, limits: PictureLimits = DEFAULT_LIMITS) -> Image.Image:
    """An 8-bit RGB picture: upright, alpha laid on white, the first frame of an animation.

    Raises:
        PictureError: the bytes are no whole picture of an allowed format, or cost more than `limits`.
    """
    try:
        header = _checked_header(data, limits)
        return upright_rgb(_load(header, limits), header)
    except PictureFault as fault:
        raise PictureError(name, fault.reason, fault.detail) from fault.__cause__


def _checked_header(data: bytes, limits: PictureLimits) -> PictureHeader:
    if len(data) > limits.max_bytes:
        raise PictureFault("too_large", f"over {limits.max_bytes:,} bytes, which is the limit (set max_bytes)")
    header = read_header(data)
    if header.format not in limits.formats and not (header.format == "JPEG" and "MPO" in limits.formats):
        raise PictureFault("format_not_allowed", f"{header.format} is not among the formats that are read")
    size, pixels = f"{header.width:,} x {header.height:,} pixels", header.width * header.height
    if pixels <= 0:
        raise PictureFault("no_pixels", size)
    if pixels > limits.max_pixels:
        raise PictureFault("too_many_pixels", f"{size}, the limit is {limits.max_pixels:,} (set max_pixels)")
    return header


def _load(header: PictureHeader, limits: PictureLimits) -> list[Image.Image]:
    """The picture in the file's own colours: whole if it is ready as it is, else in strips, so that memory can move."""
    try:
        image = Image.open(io.BufferedReader(SplicedFile(header.parts)), formats=(header.format,))
        if image.size != (header.width, header.height):
            raise PictureFault("corrupt", f"two sizes, {header.width} x {header.height} and {image.size}")
        _check_memory(image, header, limits)
        image.load()
        if not is_ready(image, header):
            return list(strips_of(image))
        return [image if header.width * header.height > COPIED_PIXELS else image.copy()]
    except PictureFault:
        raise
    except UnidentifiedImageError as error:
        raise PictureFault("corrupt", f"no {header.format} that can be decoded") from error
    except MemoryError as error:
        raise PictureFault("too_much_memory", "not enough memory to decode it") from error
    except Exception as error:  # on hostile bytes decoders raise every type, and a stray one would end a training run
        reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise PictureFault(reason, f"cannot be decoded ({error or type(error).__name__})") from error


def _check_memory(image: Image.Image, header: PictureHeader, limits: PictureLimits) -> None:
    """Conversion holds the old and the new picture, the old one strip by strip."""
    stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    converted = 0 if is_ready(image, header) else 8 if stored == 4 else 4
    rows, pixels = header.height * ROW_BYTES + header.width * 16, header.width * header.height
    needed = max(pixels * stored + header.decoder_bytes + rows, pixels * converted + 2 * rows)
    needed += sum(map(len, header.parts))
    if needed > limits.max_memory_bytes:
        detail = f"{header.width:,} x {header.height:,} pixels of this kind take {needed:,} bytes to decode"
        raise PictureFault(
            "too_much_memory", f"{detail}, the limit is {limits.max_memory_bytes:,} (set max_memory_bytes)"
        )


class PictureTransform:
    """Pads a picture to the encoder's aspect, resizes and normalises it; nothing of the picture is cut away.

    The first argument is timm's data config of the encoder. Its `crop_pct` and `crop_mode` do not apply here.
    """

    FIELDS = ("mean", "std", "input_size", "interpolation", "background")

    def __init__(self, data_config: Mapping[str, Any], *, background: tuple[int, int, int] = WHITE) -> None:
        self.mean = tuple(float(value) for value in data_config["mean"])
        self.std = tuple(float(value) for value in data_config["std"])
        channels, height, width = data_config["input_size"]
        self.input_size = (int(channels), int(height), int(width))
        self.interpolation = str(data_config["interpolation"])
        self.background = tuple(int(value) for value in background)
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")
        if self.input_size[0] != 3 or min(self.input_size) < 1:
            raise ValueError(f"input_size must be 3, height, width, got {self.input_size}")

    def __call__(self, picture: Image.Image) -> Float[Any, "3 height width"]:
        return self._transform(self._pad(picture))

    @cached_property
    def _transform(self) -> Any:
        from timm.data import create_transform

        return create_transform(
            self.input_size,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=1.0,
            crop_mode="squash",  # the padded picture has the aspect already
        )

    def _pad(self, picture: Image.Image) -> Image.Image:
        _, height, width = self.input_size
        scale = max(picture.width / width, picture.height / height)
        canvas_size = round(width * scale), round(height * scale)
        if canvas_size[0] * canvas_size[1] > MAX_CANVAS_PIXELS:  # a very long strip: shrink it before it is padded
            shrink = (MAX_CANVAS_PIXELS / (canvas_size[0] * canvas_size[1])) ** 0.5
            picture = picture.resize((max(1, int(picture.width * shrink)), max(1, int(picture.height * shrink))))
            return self._pad(picture)
        canvas = Image.new("RGB", canvas_size, self.background)
        canvas.paste(picture, ((canvas.width - picture.width) // 2, (canvas.height - picture.height) // 2))
        return canvas

    def to_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.FIELDS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "PictureTransform":
        """The inverse of `to_dict`. Raises ValueError for other keys than those that `to_dict` writes."""
        if wrong := sorted(set(fields) ^ set(cls.FIELDS)):
            raise ValueError(f"a picture transform has {', '.join(cls.FIELDS)}; unknown or missing: {', '.join(wrong)}")
        return cls(fields, background=tuple(fields["background"]))
