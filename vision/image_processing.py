"""Pictures: bytes become an upright 8-bit RGB picture or a PictureError; an RGB picture becomes encoder input."""

import io
import math
from collections.abc import Mapping, Sequence
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

from vision.picture_colours import (
    ON_ITS_SIDE,
    STRIP_PIXELS,
    TURNED_LEFT,
    TURNED_UP,
    WHITE,
    is_ready,
    strips_of,
    upright_rgb,
)
from vision.picture_formats import read_header
from vision.picture_header import PictureFault, PictureHeader, SplicedFile

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "MPO")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
MAX_CANVAS_PIXELS = 64_000_000
MAX_GRID = 8  # rows, and columns, of tiles
JPEG_SCALES = (8, 4, 2)  # that libjpeg decodes at without decoding more, the smallest picture first
SCALED_MARGIN = 2  # a scaled picture is at least so many times as large on each side as what is made of it
COPIED_PIXELS = 2**22  # up to this size a picture is copied if that lets go of its file and decoder
ROW_BYTES = 24  # that Pillow takes for each row beside its pixels

Box = tuple[float, float, float, float]  # left, top, right, bottom, pixels


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
    return EncodedPicture(data, name=name, limits=limits).decode()


class EncodedPicture:
    """The bytes of a picture whose header is within the limits. Raises PictureError if it is not."""

    size: tuple[int, int]
    """Width and height of the upright picture, before it is decoded."""

    def __init__(self, data: bytes, *, name: str, limits: PictureLimits = DEFAULT_LIMITS) -> None:
        self.name, self.limits = name, limits
        try:
            self.header = _checked_header(data, limits)
        except PictureFault as fault:
            raise PictureError(name, fault.reason, fault.detail) from fault.__cause__
        width, height = self.header.width, self.header.height
        self.size = (height, width) if self.header.orientation in ON_ITS_SIDE else (width, height)

    def decode(self, *, scale: int = 1) -> Image.Image:
        """The upright RGB picture, at 1/2, 1/4 or 1/8 its size if `scale` is 2, 4 or 8 (see `scale_for`).

        Raises:
            PictureError: the bytes are no whole picture, or cost more than the limits, which do not know the scale.
        """
        try:
            return upright_rgb(*_load(self.header, self.limits, scale))
        except PictureFault as fault:
            raise PictureError(self.name, fault.reason, fault.detail) from fault.__cause__

    def scale_for(self, reduction: float) -> int:
        """The largest scale that makes the picture at most `reduction` times smaller; 1 for what is no JPEG."""
        scales = JPEG_SCALES if self.header.format == "JPEG" else ()
        return next((scale for scale in scales if scale <= min(reduction, *self.size)), 1)

    def extent(self, scale: int) -> Box:
        """Where the picture lies in what is decoded at a scale, whose last column and row reach over the picture."""
        width, height = (side / scale for side in self.size)
        left = math.ceil(width) - width if self.header.orientation in TURNED_LEFT else 0.0
        top = math.ceil(height) - height if self.header.orientation in TURNED_UP else 0.0
        return left, top, left + width, top + height


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
    if header.is_cut_off:
        raise PictureFault("truncated", f"fewer bytes than {size} take")
    return header


def _load(header: PictureHeader, limits: PictureLimits, scale: int) -> tuple[list[Image.Image], PictureHeader]:
    """The picture in the file's own colours: whole if it is ready as it is, else in strips, so that memory can move.

    The header comes back with the size that was decoded.
    """
    try:
        image = Image.open(io.BufferedReader(SplicedFile(header.parts)), formats=(header.format,))
        if image.size != (header.width, header.height):
            raise PictureFault("corrupt", f"two sizes, {header.width} x {header.height} and {image.size}")
        _check_memory(image, header, limits)
        if scale > 1:
            image.draft(None, (header.width // scale, header.height // scale))
            header = header._replace(width=image.width, height=image.height)
        image.load()
        if not is_ready(image, header):
            return list(strips_of(image)), header
        holds_on = header.format != "JPEG" and image.width * image.height <= COPIED_PIXELS
        return [image.copy() if holds_on else image], header
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
    """All that decides which tensor a picture becomes, and the tensor: padded to the encoder's aspect, resized and
    normalised; nothing of the picture is cut away. Tiles and native resolution are made by `vision.tiling` and
    `vision.native_resolution`.

    Args:
        data_config: timm's data config of the encoder. Its `crop_pct` and `crop_mode` do not apply here.
        max_tiles: Tiles that a picture may have beside its thumbnail; 1: the thumbnail alone.
        patch_size: Pixels of the side of a patch, for pictures in their native resolution.
        max_patches: Patches that a picture in its native resolution may have. None: all have `input_size`.
        scaled_decoding: `from_bytes` decodes large JPEGs at a fraction of their scale, at least at twice the size
            that is wanted. Faster, but a picture that comes as bytes is then not quite what it is as pixels, which is
            why it is not the default.
    """

    DATA_CONFIG = ("mean", "std", "input_size", "interpolation")
    OPTIONS = ("background", "max_tiles", "patch_size", "max_patches", "scaled_decoding")
    FIELDS = DATA_CONFIG + OPTIONS

    def __init__(
        self,
        data_config: Mapping[str, Any],
        *,
        background: Sequence[int] = WHITE,
        max_tiles: int = 1,
        patch_size: int | None = None,
        max_patches: int | None = None,
        scaled_decoding: bool = False,
    ) -> None:
        self.mean = tuple(float(value) for value in data_config["mean"])
        self.std = tuple(float(value) for value in data_config["std"])
        channels, height, width = data_config["input_size"]
        self.input_size = (int(channels), int(height), int(width))
        self.interpolation = str(data_config["interpolation"])
        self.background = tuple(int(value) for value in background)
        self.max_tiles, self.patch_size, self.max_patches = max_tiles, patch_size, max_patches
        self.scaled_decoding = scaled_decoding
        self._check()

    def _check(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")
        if self.input_size[0] != 3 or min(self.input_size) < 1:
            raise ValueError(f"input_size must be 3, height, width, got {self.input_size}")
        if not 1 <= self.max_tiles <= MAX_GRID**2:
            raise ValueError(f"max_tiles must be 1 to {MAX_GRID**2}, got {self.max_tiles}")
        if self.max_patches is None and self.patch_size is None:
            return
        if not (self.max_patches and self.patch_size and min(self.max_patches, self.patch_size) > 0):
            got = f"patch_size {self.patch_size} and max_patches {self.max_patches}"
            raise ValueError(f"native resolution needs a positive patch_size and max_patches, got {got}")
        if self.max_tiles > 1:
            raise ValueError("a picture has tiles or its native resolution; leave max_tiles or max_patches away")

    def __call__(self, picture: Image.Image) -> Float[Any, "3 height width"]:
        return self.normalise(self.fit(picture, *self.input_size[1:]))

    def from_bytes(
        self, data: bytes, *, name: str, limits: PictureLimits = DEFAULT_LIMITS
    ) -> Float[Any, "3 height width"]:
        """Decodes and transforms. Raises PictureError."""
        _, height, width = self.input_size
        encoded = EncodedPicture(data, name=name, limits=limits)
        picture, extent = self.decode(encoded, max(encoded.size[0] / width, encoded.size[1] / height))
        return self.normalise(self.fit(picture, height, width, extent=extent))

    def decode(self, encoded: EncodedPicture, reduction: float) -> tuple[Image.Image, Box | None]:
        """The picture, of which only so many times less is wanted; and, if it is scaled, where in the image it lies."""
        scale = encoded.scale_for(reduction / SCALED_MARGIN) if self.scaled_decoding else 1
        return encoded.decode(scale=scale), encoded.extent(scale) if scale > 1 else None

    def fit(self, picture: Image.Image, height: int, width: int, *, extent: Box | None = None) -> Image.Image:
        """The whole picture, padded to the aspect and resized."""
        if extent is not None:
            return self._fit_extent(picture, height, width, extent)
        scale = max(picture.width / width, picture.height / height)
        canvas_size = round(width * scale), round(height * scale)
        if canvas_size[0] * canvas_size[1] > MAX_CANVAS_PIXELS:  # a very long strip: shrink it before it is padded
            shrink = (MAX_CANVAS_PIXELS / (canvas_size[0] * canvas_size[1])) ** 0.5
            smaller = max(1, int(picture.width * shrink)), max(1, int(picture.height * shrink))
            return self.fit(picture.resize(smaller), height, width)
        narrow = self._narrow(picture, canvas_size[0], width)
        canvas = Image.new("RGB", (width, canvas_size[1]), self.background)
        canvas.paste(narrow, (0, (canvas.height - narrow.height) // 2))
        return self.resize(canvas, height, width)

    def _narrow(self, picture: Image.Image, canvas_width: int, width: int) -> Image.Image:
        """Padded left and right and resized across: what Pillow does first, row by row, when it resizes the padded
        picture, of which only a strip at a time takes memory. Rows of background alone stay what they are.
        """
        if canvas_width == picture.width:
            return self.resize(picture, picture.height, width)
        narrow, rows = Image.new("RGB", (width, picture.height)), max(1, STRIP_PIXELS // canvas_width)
        strip = Image.new("RGB", (canvas_width, min(rows, picture.height)), self.background)
        for top in range(0, picture.height, rows):
            strip.paste(picture, ((canvas_width - picture.width) // 2, -top))
            narrow.paste(self.resize(strip, strip.height, width), (0, top))
        return narrow

    def _fit_extent(self, picture: Image.Image, height: int, width: int, extent: Box) -> Image.Image:
        """To fractions of a pixel, which count for more in a picture that was decoded at a fraction of its scale."""
        left, top, right, bottom = extent
        scale = max((right - left) / width, (bottom - top) / height)
        left, top = (left + right - width * scale) / 2, (top + bottom - height * scale) / 2
        before = max(0, math.ceil(-left)), max(0, math.ceil(-top))
        box = left + before[0], top + before[1], left + before[0] + width * scale, top + before[1] + height * scale
        size = (before[0] + picture.width, math.ceil(box[2])), (before[1] + picture.height, math.ceil(box[3]))
        canvas = Image.new("RGB", (max(size[0]), max(size[1])), self.background)
        canvas.paste(picture, before)
        return self.resize(canvas, height, width, box=box)

    def resize(self, picture: Image.Image, height: int, width: int, *, box: Box | None = None) -> Image.Image:
        return picture.resize((width, height), Image.Resampling[self.interpolation.upper()], box)

    def normalise(self, picture: Image.Image) -> Float[Any, "3 height width"]:
        """In the operations of torchvision, which timm's transforms call, but in place."""
        import numpy
        import torch

        mean, std = self._mean_and_std
        values = torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).contiguous()
        return values.float().div_(255).sub_(mean).div_(std)

    @cached_property
    def _mean_and_std(self) -> tuple[Any, Any]:
        import torch

        return torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)

    def to_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.FIELDS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "PictureTransform":
        """The inverse of `to_dict`; an option that is missing has its default.

        Raises:
            ValueError: other keys than those that `to_dict` writes.
        """
        if wrong := sorted({*fields} - {*cls.FIELDS} | {*cls.DATA_CONFIG} - {*fields}):
            raise ValueError(f"a picture transform has {', '.join(cls.FIELDS)}; unknown or missing: {', '.join(wrong)}")
        options = {name: fields[name] for name in cls.OPTIONS if name in fields}
        return cls(fields, **options)


def transform_difference(was: PictureTransform, now: PictureTransform) -> str | None:
    """The first setting in which two transforms differ, with both values; None: they make the same of any picture."""
    for name in PictureTransform.FIELDS:
        before, after = getattr(was, name), getattr(now, name)
        if before != after:
            return f"{name} was {before} and is {after}"
    return None
