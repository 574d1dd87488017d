# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Images, however they come, become the image inputs of the model."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import BaseImageProcessor, BatchFeature

from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVLConfig, NeedsPackage
from vision.decoding.colours import WHITE
from vision.decoding.image import ImageError, decode_image, read_image
from vision.forms.batches import pack_images, prepare_image
from vision.transform import ImageTransform

CHANNELS = (1, 3, 4)
NOT_IN_PNG = ("CMYK", "YCbCr", "LAB", "RGBX", "PA", "I", "F")


class ArlowImagesKwargs(TypedDict, total=False):
    return_tensors: str | None


class ArlowImageProcessor(NeedsPackage, BaseImageProcessor):
    """Images, however they come, as the image inputs of the model (see `vision.forms.batches`), float32.

    An image is a path, a file:// URL, the bytes of a file, a PIL image, or an array or tensor (uint8, or float within
    0 to 1; a grid, channels last or channels first). Nothing is fetched from a network.

    Args:
        data_config: timm's data config of the encoder.
        settings: The options of `ImageTransform`: background, max_tiles, patch_size and max_patches,
            scaled_decoding.
    """

    model_input_names = ["pixel_values", "tile_ids", "tiles_per_image", "image_grids"]
    valid_kwargs = ArlowImagesKwargs

    def __init__(self, data_config: Mapping[str, Any], background: Sequence[int] = WHITE, **settings: Any) -> None:
        own = {key: settings.pop(key) for key in ImageTransform.OPTIONS if key in settings}
        super().__init__(**settings)
        self.transform = ImageTransform(data_config, background=background, **own)

    @classmethod
    def of_model(cls, config: ArlowVLConfig) -> "ArlowImageProcessor":
        """The one whose preprocessing is stored with a model."""
        if config.vision_config.transform is None:
            raise ValueError("this model's vision_config has no transform; give ArlowImageProcessor the data config")
        return cls(**_as_settings(ImageTransform.from_dict(config.vision_config.transform)))

    def preprocess(self, images: Any, return_tensors: str | None = None) -> BatchFeature:
        """`images` is one image or lists of them, nested as deep as you like; they come out in order, unnested.

        Raises:
            ImageError: naming the file, or the place of the image, that cannot be used.
        """
        prepared = [self._prepare(image, f"image {place}") for place, image in enumerate(flat_images(images))]
        if not prepared:
            raise ValueError("there is no image in images; leave images away where the text has none")
        return BatchFeature(pack_images(self.transform, prepared), tensor_type=return_tensors)

    def _prepare(self, image: Any, name: str) -> Any:
        return prepare_image(self.transform, image if isinstance(image, bytes) else as_image(image, name), name=name)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        return image_url_or_urls

    def to_dict(self) -> dict[str, Any]:
        return {"image_processor_type": type(self).__name__, **_as_settings(self.transform)}


def _as_settings(transform: ImageTransform) -> dict[str, Any]:
    fields = transform.to_dict()
    return {"data_config": {key: fields.pop(key) for key in ImageTransform.DATA_CONFIG}, **fields}


def flat_images(images: Any) -> Iterator[Any]:
    """The images in nested lists, and those along the first axis of an array with four axes."""
    if isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4:
        for item in images:
            yield from flat_images(item)
    else:
        yield images


def as_image(image: Any, name: str) -> Image.Image:
    """An upright RGB image, read by `vision` where bytes are to be read. Raises ImageError with `name`."""
    if isinstance(image, str | Path):
        is_url = isinstance(image, str) and image.startswith("file://")
        return read_image(url2pathname(urlsplit(image).path) if is_url else image)
    if isinstance(image, bytes):
        return decode_image(image, name=name)
    if isinstance(image, np.ndarray | torch.Tensor):
        image = image_of_array(image, name)
    if not isinstance(image, Image.Image):
        kinds = "a path, the bytes of a file, a PIL image, an array or a tensor"
        raise ImageError(name, "unknown_type", f"expected {kinds}, got {type(image).__name__}")
    buffer = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "RGB" and not upright.has_transparency_data:
            upright.load()
            return upright
        upright.save(buffer, "TIFF" if upright.mode in NOT_IN_PNG else "PNG")
    except OSError as error:
        raise ImageError(name, "corrupt", f"a PIL image that cannot be read ({error})") from error
    return decode_image(buffer.getvalue(), name=name)  # vision's rules for alpha, palettes and deep pixels


def image_of_array(array: np.ndarray | torch.Tensor, name: str) -> Image.Image:
    """Of two axes that could be the channels a tensor has the first, an array the last."""
    first_means_channels = isinstance(array, torch.Tensor)
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if array.ndim == 3 and array.shape[0] in CHANNELS and (first_means_channels or array.shape[-1] not in CHANNELS):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if np.issubdtype(array.dtype, np.floating) and array.size and array.min() >= 0 and array.max() <= 1:
        array = (array * 255).round().astype(np.uint8)
    is_grid = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in CHANNELS)
    if array.dtype != np.uint8 or not is_grid or not array.size:
        expected = "uint8 or floats within 0 to 1, two axes or three with 1, 3 or 4 channels"
        raise ImageError(name, "unknown_array", f"expected {expected}; got {array.dtype} of shape {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array))
