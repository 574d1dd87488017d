"""Batches of images of any sizes, as the encoder takes them: `pixel_values` and the counts that tell them apart."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from vision.decoding.image import DEFAULT_LIMITS, ImageLimits
from vision.decoding.sources import read_image
from vision.forms.native_resolution import native_image, patchify
from vision.forms.tiling import Tiles, tile_image
from vision.transform import ImageTransform


def prepare_image(
    transform: ImageTransform, source: Any, *, name: str, limits: ImageLimits = DEFAULT_LIMITS
) -> Tensor | Tiles:
    """One image, of fixed size, in tiles or in its native resolution, as `transform` says.

    This is the only way from an image to numbers, for training, the feature cache, commands and processors alike, so
    that an image is the same tensor in whatever form it came (see `read_image`). Raises ImageError.
    """
    image = read_image(source, name=name, limits=limits)
    if transform.max_tiles > 1:
        return tile_image(transform, image)
    return transform(image) if transform.max_patches is None else native_image(transform, image)


def pack_images(transform: ImageTransform, images: Sequence[Tensor | Tiles]) -> dict[str, Tensor]:
    """Prepared images as the image inputs of the model, without padding.

    - one size: `pixel_values` (images, 3, height, width);
    - tiles: `pixel_values` (tiles, 3, height, width), `tile_ids` (tiles,) and `tiles_per_image` (images,);
    - native resolution: `pixel_values` (patches, values) and `image_grids` (images, 2).
    """
    if transform.max_tiles > 1:
        tiled = cast(Sequence[Tiles], images)
        return {
            "pixel_values": torch.cat([tiles.pixel_values for tiles in tiled]),
            "tile_ids": torch.cat([tiles.tile_ids for tiles in tiled]),
            "tiles_per_image": torch.tensor([len(tiles.tile_ids) for tiles in tiled]),
        }
    whole = cast(list[Tensor], list(images))
    if transform.max_patches is not None and transform.patch_size is not None:
        patches, grids = patchify(whole, transform.patch_size)
        return {"pixel_values": patches, "image_grids": grids}
    return {"pixel_values": torch.stack(whole)}
