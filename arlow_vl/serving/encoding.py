"""Encoder tokens of the images in requests, cached for later questions."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from arlow_vl.serving.assistant import Assistant, PreparedImage
from arlow_vl.serving.result_cache import ResultCache
from arlow_vl.serving.rows import States

IMAGES_AT_ONCE = 8  # through the encoder
IMAGE_MEMORY = 256 * 2**20  # bytes; the size of each cache, of prepared images and of encoder tokens


class ImageEncoder:
    """Encodes images with one model and caches their encoder tokens. Not thread-safe."""

    def __init__(self, assistant: Assistant) -> None:
        self._assistant, self._model = assistant, assistant.model
        self._states: ResultCache[PreparedImage, Tensor] = ResultCache(IMAGE_MEMORY)

    def encode(self, images: Sequence[PreparedImage]) -> States:
        """Returns the encoder tokens of images, cached or encoded now."""
        states = {image: found for image in images if (found := self._states.get(image)) is not None}
        missing = [image for image in dict.fromkeys(images) if image not in states]
        for start in range(0, len(missing), IMAGES_AT_ONCE):
            some = missing[start : start + IMAGES_AT_ONCE]
            for image, tokens in zip(some, of_images(self._model.model.encode_images(**self.pack(some))), strict=True):
                states[image] = tokens.clone()  # a copy, as a cached view would keep the whole batch in memory
                self._states.put(image, states[image], states[image].nbytes + image_bytes(image))
        return states

    def pack(self, images: Sequence[PreparedImage]) -> dict[str, Tensor]:
        """Returns the model's image inputs, on its device."""
        return {name: x.to(self._model.device) for name, x in self._assistant.pack(images).items()}


def image_bytes(image: PreparedImage) -> int:
    """Returns the size of a prepared image in bytes."""
    return (image.pixels if isinstance(image.pixels, Tensor) else image.pixels.pixel_values).nbytes


def of_images(encoded: Any) -> Sequence[Tensor]:
    """Returns the (P, D) encoder tokens of each image."""
    return encoded.states if encoded.lengths is None else encoded.states.split(encoded.lengths.tolist())
