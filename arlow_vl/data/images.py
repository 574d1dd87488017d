"""Images of samples as inputs of the model: decoded for every batch, or read from a cache of encoder features."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from arlow_vl.data.index.reading import IndexedSamples
from arlow_vl.data.sample_dataset import PlacedImage
from vision.decoding.image import ImageError
from vision.encoder import VisionEncoder
from vision.features import FeatureCache, encoder_fingerprint
from vision.forms.batches import pack_images, prepare_image
from vision.forms.tiling import Tiles
from vision.transform import ImageTransform


@runtime_checkable
class NamedImage(Protocol):
    """An image that says where it comes from, and reads its compressed bytes."""

    @property
    def name(self) -> str: ...

    def read_image(self) -> bytes: ...


class DecodedImages:
    """Pixels, decoded for every batch."""

    def __init__(self, transform: ImageTransform) -> None:
        self.transform = transform

    def prepare(self, image: NamedImage) -> Tensor | Tiles:
        """Decodes and transforms an image. Raises ImageError, which names it."""
        return prepare_image(self.transform, image.read_image(), name=image.name)

    def pack(self, prepared: Sequence[Any]) -> dict[str, Tensor]:
        """Returns the image inputs of the model."""
        return pack_images(self.transform, prepared)

    def __call__(self, images: Sequence[NamedImage]) -> dict[str, Tensor]:
        return self.pack([self.prepare(image) for image in images])


class CachedImages:
    """Features of a frozen encoder, read from a cache that has been filled."""

    def __init__(
        self, cache: FeatureCache, sha256_of: Callable[[Any], str], refused: Mapping[str, str] | None = None
    ) -> None:
        self.cache = cache
        self.sha256_of = sha256_of
        self.refused = refused or {}
        """Reasons of the unusable images, by SHA-256."""

    def prepare(self, image: NamedImage) -> str:
        """Returns the image's SHA-256, its key in the cache. Raises ImageError if it could not be encoded."""
        sha256 = self.sha256_of(image)
        if reason := self.refused.get(sha256):
            raise ImageError(image.name, reason, "cannot be used")
        return sha256

    def pack(self, prepared: Sequence[str]) -> dict[str, Tensor]:
        return self.cache.get(prepared)

    def __call__(self, images: Sequence[NamedImage]) -> dict[str, Tensor]:
        return self.pack([self.prepare(image) for image in images])

    def mean(self, images: Sequence[NamedImage]) -> Float[Tensor, "images features"]:
        """The mean of each image's patch tokens."""
        return self.cache.mean([self.prepare(image) for image in images])


def cache_sample_images(
    sources: Sequence[IndexedSamples],
    encoder: VisionEncoder,
    transform: ImageTransform,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float16,
    on_progress: Callable[[int, int], None] | None = None,
) -> CachedImages:
    """Encodes the images that the cache lacks; the others are neither read nor hashed. `refused` has the unusable."""
    cache = FeatureCache(folder, encoder_fingerprint(encoder, transform), dtype=dtype)
    missing = {placed.sha256: placed for placed in placed_images(sources) if placed.sha256 not in cache}
    read = ((sha256, placed.read_image()) for sha256, placed in missing.items())
    refused = cache.fill(read, encoder, transform, count=len(missing), on_progress=on_progress)
    return CachedImages(cache, _sha256_of_placed, refused)


def placed_images(sources: Sequence[IndexedSamples]) -> Iterator[PlacedImage]:
    for samples in sources:
        for number in range(len(samples)):
            sample = samples.sample(number)
            yield from (PlacedImage(image, sample.key) for image in sample.images)


def _sha256_of_placed(placed: PlacedImage) -> str:
    return placed.sha256
