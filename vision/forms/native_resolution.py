"""Images in their own aspect ratio and, as far as a budget of patches allows, in their own resolution."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vision.transform import ImageTransform

SCALE_PRECISION = 1e-9  # fine enough for a strip of one pixel by 64 million


def native_size(width: int, height: int, patch: int, max_patches: int) -> tuple[int, int]:
    """Height and width, multiples of `patch`, within the budget; each side less than a patch over the true aspect.

    An image is enlarged only to whole patches.
    """
    from timm.data.naflex_transforms import get_image_size_for_seq

    return get_image_size_for_seq((height, width), patch, max_patches, max_ratio=1.0, eps=SCALE_PRECISION)[1]


def native_image(transform: ImageTransform, image: Image.Image) -> Float[Tensor, "3 height width"]:
    """One image, resized to its `native_size` and normalised."""
    return transform.normalise(transform.resize(image, *_size(transform, *image.size)))


def _size(transform: ImageTransform, width: int, height: int) -> tuple[int, int]:
    if transform.patch_size is None or transform.max_patches is None:
        raise ValueError("the transform has one size for all images; give it patch_size and max_patches")
    return native_size(width, height, transform.patch_size, transform.max_patches)


def patchify(
    images: Sequence[Float[Tensor, "3 _ _"]], patch: int
) -> tuple[Float[Tensor, "patches values"], Int[Tensor, "images 2"]]:
    """The patches of all the images, row by row, without padding, and the grid (rows, columns) of each.

    A patch is flattened by row, column, channel, which is what timm's NaFlexViT takes.
    """
    grids = [(image.shape[1] // patch, image.shape[2] // patch) for image in images]
    patches = [
        image.reshape(3, rows, patch, columns, patch).permute(1, 3, 2, 4, 0).reshape(-1, 3 * patch * patch)
        for image, (rows, columns) in zip(images, grids, strict=True)
    ]
    return torch.cat(patches), torch.tensor(grids)


def unpatchify(
    patches: Float[Tensor, "patches values"], grids: Int[Tensor, "images 2"]
) -> list[Float[Tensor, "3 _ _"]]:
    """The images that `patchify` cut into these patches, bit for bit."""
    patch = int((patches.shape[1] // 3) ** 0.5)
    shapes = grids.tolist()
    pieces = patches.split([rows * columns for rows, columns in shapes])
    return [
        piece.view(rows, columns, patch, patch, 3).permute(4, 0, 2, 1, 3).reshape(3, rows * patch, columns * patch)
        for piece, (rows, columns) in zip(pieces, shapes, strict=True)
    ]
