"""Pictures together, whatever their sizes, as the encoder takes them: `pixel_values` and what tells them apart."""

from collections.abc import Sequence
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from vision.decoding.image import DEFAULT_LIMITS, PictureLimits
from vision.forms.native_resolution import native_from_bytes, native_picture, patchify
from vision.forms.tiling import Tiles, tile_picture, tiles_from_bytes
from vision.transform import PictureTransform


def prepare_picture(
    transform: PictureTransform, picture: Image.Image | bytes, *, name: str, limits: PictureLimits = DEFAULT_LIMITS
) -> Tensor | Tiles:
    """One picture, of fixed size, in tiles or in its native resolution, as `transform` says. Raises PictureError."""
    if isinstance(picture, bytes):
        if transform.max_tiles > 1:
            return tiles_from_bytes(transform, picture, name=name, limits=limits)
        if transform.max_patches is not None:
            return native_from_bytes(transform, picture, name=name, limits=limits)
        return transform.from_bytes(picture, name=name, limits=limits)
    if transform.max_tiles > 1:
        return tile_picture(transform, picture)
    return transform(picture) if transform.max_patches is None else native_picture(transform, picture)


def pack_pictures(transform: PictureTransform, pictures: Sequence[Tensor | Tiles]) -> dict[str, Tensor]:
    """Prepared pictures as the picture inputs of the model, without padding.

    - one size: `pixel_values` (pictures, 3, height, width);
    - tiles: `pixel_values` (tiles, 3, height, width), `tile_ids` (tiles,) and `tiles_per_image` (pictures,);
    - native resolution: `pixel_values` (patches, values) and `image_grids` (pictures, 2).
    """
    if transform.max_tiles > 1:
        tiled = cast(Sequence[Tiles], pictures)
        return {
            "pixel_values": torch.cat([tiles.pixel_values for tiles in tiled]),
            "tile_ids": torch.cat([tiles.tile_ids for tiles in tiled]),
            "tiles_per_image": torch.tensor([len(tiles.tile_ids) for tiles in tiled]),
        }
    whole = cast(list[Tensor], list(pictures))
    if transform.max_patches is not None and transform.patch_size is not None:
        patches, grids = patchify(whole, transform.patch_size)
        return {"pixel_values": patches, "image_grids": grids}
    return {"pixel_values": torch.stack(whole)}
