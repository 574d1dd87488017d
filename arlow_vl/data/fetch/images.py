"""Drawing of source images as small stored images, with a hash that finds near-duplicates."""

import io
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from jaxtyping import Bool, Int16
from PIL import Image, ImageChops

from arlow_vl.cores import cores
from arlow_vl.data.processes import in_processes
from vision.decoding.image import ImageError, decode_image

LONGEST_SIDE = 256
SHORTEST_LONG_SIDE = 16
JPEG_QUALITY = 92
HASH_SIDE = 16
NEAR_BITS = 12  # two images whose hashes differ in no more bits are near-duplicates
WORKERS = min(8, cores())
DRAWN = 16
"""Images that a process draws at once."""


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """An image as its package holds it, with what the package says about it."""

    key: str
    """Key in the shards: unique, without a dot."""
    source: str
    license: str
    style: str
    caption: str
    names: tuple[str, ...]
    """Names of the thing shown. Images that share a name stay in one split; the first name is the image's own."""
    kind: str | None = None
    """Kind of the thing in a word or two; None where the package does not say."""
    flag_of: str | None = None
    on_page: bool = False
    """True: the image lies on a white page, whose margins are cut."""
    data: bytes
    """PNG, WebP or SVG."""


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image as the shards will hold it."""

    origin: SourceImage
    """Source image, without its data."""
    jpeg: bytes
    bits: Bool[np.ndarray, "256"]
    """Difference hash of the decoded `jpeg`."""


def draw_all(images: Iterable[SourceImage], progress: Callable[[int], None]) -> tuple[list[StoredImage], Counter]:
    """Draws every image, in several processes; returns the stored images in order and counts the others by reason.

    Processes, not threads: the SVG renderer holds the GIL.
    """
    coming = iter(images)
    batches = enumerate(iter(lambda: list(islice(coming, DRAWN)), []))
    drawn: dict[int, list[StoredImage | str]] = {}
    done = 0
    for (number, _), results in in_processes(_draw_batch, batches, WORKERS):
        drawn[number] = results
        for _ in range(sum(isinstance(result, StoredImage) for result in results)):
            progress(done := done + 1)
    in_order = [result for number in sorted(drawn) for result in drawn[number]]
    stored = [result for result in in_order if isinstance(result, StoredImage)]
    return stored, Counter(result for result in in_order if isinstance(result, str))


def _draw_batch(batch: tuple[int, list[SourceImage]]) -> list[StoredImage | str]:
    return [draw(image) for image in batch[1]]


def draw(source: SourceImage) -> StoredImage | str:
    """Returns the image on white as JPEG, at most 256 pixels long, or the reason why it cannot be used."""
    try:
        data = rasterise(source.data) if is_svg(source.data) else source.data
        image = decode_image(data, name=source.key)
    except ImageError as error:
        return error.reason
    except ValueError:
        return "bad_svg"
    box = content_box(image)
    if box is None:
        return "blank"
    if source.on_page:
        image = image.crop(box)
    if max(image.size) < SHORTEST_LONG_SIDE:
        return "tiny"
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    jpeg = buffer.getvalue()
    return StoredImage(origin=replace(source, data=b""), jpeg=jpeg, bits=difference_hash(jpeg, name=source.key))


def is_svg(data: bytes) -> bool:
    """Returns True for markup, which no binary image format begins like."""
    return data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<"


def rasterise(svg: bytes) -> bytes:
    """Renders an SVG as PNG, 256 pixels wide. Fonts are left out: text would look different on every machine.

    Raises:
        ValueError: it is no SVG that can be drawn.
    """
    import resvg_py

    text = svg.decode("utf-8", errors="replace")
    return bytes(resvg_py.svg_to_bytes(svg_string=text, width=LONGEST_SIDE, dpi=96.0, skip_system_fonts=True))


def content_box(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Returns the smallest box around everything that is not white, with a margin of 1/32; None for a white image."""
    box = ImageChops.invert(image.convert("L")).point(lambda darkness: 255 * (darkness > 8)).getbbox()
    if box is None:
        return None
    margin = max(box[2] - box[0], box[3] - box[1]) // 32
    left, top, right, bottom = box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin
    return max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)


def difference_hash(data: bytes, *, name: str) -> Bool[np.ndarray, "256"]:
    """Returns 256 bits: True where a cell of a 17 x 16 grey image is brighter than its right neighbour."""
    grey = decode_image(data, name=name).convert("L")
    small = np.asarray(grey.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.LANCZOS), dtype=np.int16)
    return (small[:, :-1] > small[:, 1:]).ravel()


def hash_distances(
    left: Bool[np.ndarray, "left bits"], right: Bool[np.ndarray, "right bits"]
) -> Int16[np.ndarray, "left right"]:
    """Counts the differing bits of every pair."""
    signs_left, signs_right = (np.where(bits, 1, -1).astype(np.float32) for bits in (left, right))
    return ((left.shape[-1] - signs_left @ signs_right.T) / 2).astype(np.int16)
