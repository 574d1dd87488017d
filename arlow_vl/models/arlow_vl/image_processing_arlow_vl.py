# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""The image processor: images in any form become the image inputs of the model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

from transformers import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs

from arlow_vl.models.arlow.spelling import closest, did_you_mean
from arlow_vl.models.arlow_vl.configuration_arlow_vl import ArlowVLConfig, NeedsPackage
from vision.decoding.colours import WHITE
from vision.forms.batches import pack_images, prepare_image
from vision.transform import ImageTransform

OF_TRANSFORMERS = ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map")
"""Keys of a folder's settings that are not the image processor's."""


class ArlowImagesKwargs(TypedDict, total=False):
    return_tensors: str | None


class ArlowImageProcessor(NeedsPackage, BaseImageProcessor):
    """Turns images in any form into the image inputs of the model (see `vision.forms.batches`), float32.

    An image is a path, a file:// URL, a data: URL, base64 of a file, the bytes of a file, a PIL image, or an array or
    tensor (uint8, uint16, or floats within 0 to 1; a grid, channels last or channels first): see
    `vision.decoding.sources.read_image`. Nothing is fetched from a network.

    Args:
        data_config: timm's data config of the encoder.
        settings: The options of `ImageTransform`: background, max_tiles, patch_size and max_patches.

    Raises:
        ValueError: an option that is none of these, or an unusable value.
    """

    model_input_names = ["pixel_values", "tile_ids", "tiles_per_image", "image_grids"]
    valid_kwargs = ArlowImagesKwargs

    def __init__(self, data_config: Mapping[str, Any], background: Sequence[int] = WHITE, **settings: Any) -> None:
        own = {key: settings.pop(key) for key in ImageTransform.OPTIONS if key in settings}
        for key, value in settings.items():
            if key not in OF_TRANSFORMERS and not key.startswith("_") and (key, value) != ImageTransform.RETIRED:
                raise ValueError(f"the image processor has no {key!r}; {did_you_mean(key, ImageTransform.OPTIONS)}")
        super().__init__(**settings)
        self.transform = ImageTransform(data_config, background=background, **own)

    @classmethod
    def of_model(cls, config: ArlowVLConfig) -> "ArlowImageProcessor":
        """The image processor with the preprocessing that a model's configuration holds."""
        if config.vision_config.transform is None:
            raise ValueError("this model's vision_config has no transform; give ArlowImageProcessor the data config")
        return cls(**_as_settings(ImageTransform.from_dict(config.vision_config.transform)))

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds it as transformers does, for `from_pretrained` too: options in `kwargs` override the folder's.

        Other keywords are a tokenizer's or a download's. Options of other image processors, and misspelt ones, go to
        the constructor, which refuses them.
        """
        given = {key: kwargs.pop(key) for key in [*kwargs] if _is_of_images(key)}
        return super().from_dict({**image_processor_dict, **given}, **kwargs)

    def preprocess(self, images: Any, return_tensors: str | None = None, **others: Any) -> BatchFeature:
        """`images` is one image or lists of them, nested as deep as you like; they come out in order, unnested.

        Raises:
            ImageError: naming the file, or the place of the image, that cannot be used.
            ValueError: an option beside `return_tensors`, or no image.
        """
        if others:
            raise ValueError(
                f"a call of the image processor takes images and return_tensors, not {next(iter(others))}; how images "
                f"are prepared is set when it is built ({', '.join(ImageTransform.OPTIONS)}), as the model was trained"
            )
        flat = enumerate(flat_images(images))
        prepared = [prepare_image(self.transform, image, name=f"image {place}") for place, image in flat]
        if not prepared:
            raise ValueError("there is no image in images; leave out images where the text has none")
        return BatchFeature(pack_images(self.transform, prepared), tensor_type=return_tensors)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        return image_url_or_urls

    def to_dict(self) -> dict[str, Any]:
        return {"image_processor_type": type(self).__name__, **_as_settings(self.transform)}


def _is_of_images(key: str) -> bool:
    """True for an option of images, also a misspelt one; with 0.8, `max_length` is not taken for `max_tiles`."""
    known = (*ImageTransform.OPTIONS, "data_config")
    return key in ImagesKwargs.__annotations__ or closest(key, known, cutoff=0.8) is not None


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
