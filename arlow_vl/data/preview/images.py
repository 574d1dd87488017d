"""An image as the encoder gets it: the tensor of the transform turned back into pixels, tiles in their places."""

import base64
import io
from dataclasses import dataclass
from typing import Any

from arlow_vl.data.index.images import read_image
from arlow_vl.data.samples import ImageRef
from arlow_vl.errors import DataError
from arlow_vl.printing import visible
from vision.decoding.header import read_header
from vision.decoding.image import ImageError
from vision.decoding.parts import ImageFault
from vision.forms.batches import prepare_image
from vision.forms.tiling import Tiles
from vision.transform import ImageTransform


@dataclass(frozen=True)
class ShownImage:
    source: str
    """File, and the offset of the image in it if it is not 0."""
    original: str
    """`640 × 480 JPEG, 48,211 bytes`; empty where the header cannot be read."""
    size: str
    """Size of what the encoder gets, in pixels and tiles or patches."""
    whole: str
    """The image, or its thumbnail where it has tiles, as a data URI; empty where it cannot be used."""
    tiles: list[list[str]]
    """Rows of tiles as data URIs; empty where there are none."""
    fault: str | None
    """Reason why it cannot be used; None: it can."""


def shown_image(transform: ImageTransform, image: ImageRef, key: str) -> ShownImage:
    source = visible(f"{image.path}{f', byte {image.offset:,}' if image.offset else ''}")
    original = ""
    try:
        data = read_image(image, key)
        header = read_header(data)
        original = f"{header.width:,} × {header.height:,} {header.format}, {len(data):,} bytes"
        prepared = prepare_image(transform, data, name=key)
    except (DataError, ImageError, ImageFault) as error:
        reason = f"{error.detail} ({error.reason})" if isinstance(error, ImageError | ImageFault) else str(error)
        return ShownImage(source, original, "", "", [], visible(reason))
    if not isinstance(prepared, Tiles):
        height, width = prepared.shape[1:]
        size = f"{width} × {height} pixels"
        if transform.max_patches and transform.patch_size:
            patch = transform.patch_size
            size += f", {height // patch} rows of {width // patch} patches"
        return ShownImage(source, original, size, _uri(transform, prepared), [], None)
    rows, columns = prepared.grid
    height, width = prepared.pixel_values.shape[2:]
    whole, *tiles = (_uri(transform, tile) for tile in prepared.pixel_values)
    size = f"{width} × {height} pixels"
    if tiles:
        size = f"a thumbnail and {rows} × {columns} tiles (rows × columns), each {size}"
    grid = [tiles[row * columns : (row + 1) * columns] for row in range(rows)] if tiles else []
    return ShownImage(source, original, size, whole, grid, None)


def _uri(transform: ImageTransform, values: Any) -> str:
    with io.BytesIO() as file:
        transform.image_of(values).save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
