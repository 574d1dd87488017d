"""The encoder tokens of images that are asked about, kept for questions to come."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from arlow_vl.serving.assistant import Assistant, PreparedImage
from arlow_vl.serving.remembered import Remembered
from arlow_vl.serving.rows import States

IMAGES_AT_ONCE = 8  # through the encoder
IMAGE_MEMORY = 256 * 2**20  # bytes of images and encoder tokens that are kept for questions to come


class ImageEncoder:
    """Encodes images of one model. For the thread that owns it."""

    def __init__(self, assistant: Assistant) -> None:
        self._assistant, self._model = assistant, assistant.model
        self._states: Remembered[PreparedImage, Tensor] = Remembered(IMAGE_MEMORY)

    def encode(self, images: Sequence[PreparedImage]) -> States:
        """The images' encoder tokens, those that are remembered and those that are not."""
        states = {image: found for image in images if (found := self._states.get(image)) is not None}
        missing = [image for image in dict.fromkeys(images) if image not in states]
        for start in range(0, len(missing), IMAGES_AT_ONCE):
            some = missing[start : start + IMAGES_AT_ONCE]
            for image, tokens in zip(some, of_images(self._model.model.encode_images(**self.pack(some))), strict=True):
                states[image] = tokens.clone()  # of its own, else one that is kept would keep all of them
                self._states.put(image, states[image], states[image].nbytes + image_bytes(image))
        return states

    def pack(self, images: Sequence[PreparedImage]) -> dict[str, Tensor]:
        """The image inputs of the model, where it is."""
        return {name: x.to(self._model.device) for name, x in self._assistant.pack(images).items()}


def image_bytes(image: PreparedImage) -> int:
    """What a prepared image takes."""
    return (image.pixels if isinstance(image.pixels, Tensor) else image.pixels.pixel_values).nbytes


def of_images(encoded: Any) -> Sequence[Tensor]:
    """(P, D) of each image."""
    return encoded.states if encoded.lengths is None else encoded.states.split(encoded.lengths.tolist())
