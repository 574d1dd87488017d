"""Preprocessing of an image into a tensor: padded to the encoder's aspect ratio, resized and normalised."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from jaxtyping import Float
from PIL import Image

from vision.decoding.colours import STRIP_PIXELS, WHITE

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
MAX_CANVAS_PIXELS = 64_000_000
MAX_GRID = 8  # rows, and columns, of tiles


class ImageTransform:
    """Preprocessing of images into tensors, and all of its settings.

    An image is padded to the encoder's aspect ratio, resized and normalised; nothing is cropped. Tiles and native
    resolution are made by `vision.forms.tiling` and `vision.forms.native_resolution`.

    Args:
        data_config: timm's data config of the encoder. Its `crop_pct` and `crop_mode` do not apply here.
        max_tiles: Tiles that an image may have beside its thumbnail; 1: the thumbnail alone.
        patch_size: Pixels of the side of a patch, for images in their native resolution.
        max_patches: Patches that an image in its native resolution may have. None: all have `input_size`.
    """

    DATA_CONFIG = ("mean", "std", "input_size", "interpolation")
    OPTIONS = ("background", "max_tiles", "patch_size", "max_patches")
    FIELDS = DATA_CONFIG + OPTIONS
    RETIRED = ("scaled_decoding", False)
    """An option of older folders, and its only value that still means what it did."""

    def __init__(
        self,
        data_config: Mapping[str, Any],
        *,
        background: Sequence[int] = WHITE,
        max_tiles: int = 1,
        patch_size: int | None = None,
        max_patches: int | None = None,
    ) -> None:
        self.mean, self.std = (three(name, data_config[name]) for name in ("mean", "std"))
        channels, height, width = data_config["input_size"]
        self.input_size = (int(channels), int(height), int(width))
        self.interpolation = str(data_config["interpolation"])
        self.background = colour(background)
        self.max_tiles, self.patch_size, self.max_patches = max_tiles, patch_size, max_patches
        self._check()

    def _check(self) -> None:
        if min(self.std) <= 0:
            raise ValueError(f"std must be three numbers over 0, got {list(self.std)}")
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
            raise ValueError("an image has tiles or its native resolution; leave out max_tiles or max_patches")

    def __call__(self, image: Image.Image) -> Float[Any, "3 height width"]:
        return self.normalise(self.fit(image, *self.input_size[1:]))

    def fit(self, image: Image.Image, height: int, width: int) -> Image.Image:
        """The whole image, padded to the aspect ratio of (height, width) and resized."""
        scale = max(image.width / width, image.height / height)
        canvas_size = round(width * scale), round(height * scale)
        if canvas_size[0] * canvas_size[1] > MAX_CANVAS_PIXELS:  # a very long strip: shrink it before it is padded
            shrink = (MAX_CANVAS_PIXELS / (canvas_size[0] * canvas_size[1])) ** 0.5
            smaller = max(1, int(image.width * shrink)), max(1, int(image.height * shrink))
            return self.fit(image.resize(smaller), height, width)
        narrow = self._narrow(image, canvas_size[0], width)
        canvas = Image.new("RGB", (width, canvas_size[1]), self.background)
        canvas.paste(narrow, (0, (canvas.height - narrow.height) // 2))
        return self.resize(canvas, height, width)

    def _narrow(self, image: Image.Image, canvas_width: int, width: int) -> Image.Image:
        """The image, padded left and right and resized across, a strip at a time to save memory.

        Pillow, too, resizes the padded image across first, row by row. Rows of background
        alone stay the same.
        """
        if canvas_width == image.width:
            return self.resize(image, image.height, width)
        narrow, rows = Image.new("RGB", (width, image.height)), max(1, STRIP_PIXELS // canvas_width)
        strip = Image.new("RGB", (canvas_width, min(rows, image.height)), self.background)
        for top in range(0, image.height, rows):
            strip.paste(image, ((canvas_width - image.width) // 2, -top))
            narrow.paste(self.resize(strip, strip.height, width), (0, top))
        return narrow

    def resize(self, image: Image.Image, height: int, width: int) -> Image.Image:
        return image.resize((width, height), Image.Resampling[self.interpolation.upper()])

    def normalise(self, image: Image.Image) -> Float[Any, "3 height width"]:
        """Normalised values, by the operations of torchvision that timm's transforms call, but in place."""
        import numpy
        import torch

        mean, std = self._mean_and_std
        values = torch.from_numpy(numpy.array(image)).permute(2, 0, 1).contiguous()
        return values.float().div_(255).sub_(mean).div_(std)

    def image_of(self, values: Float[Any, "3 height width"]) -> Image.Image:
        """The image whose normalised values these are, in 8 bits."""
        mean, std = self._mean_and_std
        pixels = (values * std + mean).mul(255).round().clamp(0, 255).byte()
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

    @cached_property
    def _mean_and_std(self) -> tuple[Any, Any]:
        import torch

        return torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)

    def to_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.FIELDS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ImageTransform":
        """The inverse of `to_dict`; an option that is missing has its default.

        Raises:
            ValueError: other keys than those that `to_dict` writes.
        """
        fields = {name: value for name, value in fields.items() if (name, value) != cls.RETIRED}
        if wrong := sorted({*fields} - {*cls.FIELDS} | {*cls.DATA_CONFIG} - {*fields}):
            raise ValueError(f"an image transform has {', '.join(cls.FIELDS)}; unknown or missing: {', '.join(wrong)}")
        options = {name: fields[name] for name in cls.OPTIONS if name in fields}
        return cls(fields, **options)


def three(name: str, values: Any) -> tuple[float, float, float]:
    """Three finite numbers, one for each colour. Raises ValueError for anything else."""
    try:
        found = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        found = ()
    if len(found) != 3 or not all(map(math.isfinite, found)):
        raise ValueError(f"{name} must be three numbers, got {values!r}")
    return found


def colour(values: Any) -> tuple[int, int, int]:
    """Red, green and blue of the background. Raises ValueError for what is no colour."""
    red, green, blue = found = three("background", values)
    if not all(value.is_integer() and 0 <= value <= 255 for value in found):
        raise ValueError(f"background must be three whole numbers from 0 to 255, got {values!r}")
    return int(red), int(green), int(blue)


def transform_difference(was: ImageTransform, now: ImageTransform) -> str | None:
    """The first setting in which two transforms differ, with both values; None: there is none."""
    for name in ImageTransform.FIELDS:
        before, after = getattr(was, name), getattr(now, name)
        if before != after:
            return f"{name} was {before} and is {after}"
    return None
