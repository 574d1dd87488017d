"""What a page shows beside the predictions: images and prompts, out of the data that a task was run on."""

import base64
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from PIL import Image

from arlow_vl.data.sample_dataset import PlacedImage
from arlow_vl.data.samples import Sample
from arlow_vl.errors import DataError
from arlow_vl.evaluation.provenance import describe_sources
from arlow_vl.evaluation.tasks.items import Item, items_of, open_samples
from arlow_vl.evaluation.tasks.places import Place
from arlow_vl.evaluation.tasks.results import Results
from vision.decoding.image import ImageError
from vision.decoding.sources import read_image

LARGEST = 320
"""Pixels of an image's longer side on the page."""
MOST_IMAGES = 4
"""Of one sample."""


@dataclass(frozen=True)
class Material:
    """The items that a page shows, found again."""

    items: dict[str, Item] = field(default_factory=dict)
    """By id."""
    sources: list[dict[str, str]] = field(default_factory=list)
    """Where the data come from: {name, license, use}."""
    summary: str = ""
    missing: str = ""
    """A sentence where the data are no longer there, or are no longer those that were evaluated."""


def find_material(results: Results, ids: Collection[str]) -> Material:
    """Reads the data once through; `ids` are of the items that are shown."""
    if results.task.kind == "text":
        return Material()
    told = results.told["data"]
    place = Place(told["source"], told["images"], told["format"])
    try:
        samples = open_samples(results.task, place)
    except (DataError, OSError) as error:
        return Material(missing=f"Images are not shown, as the data cannot be read: {error}")
    if samples.fingerprint != told["sha256"]:
        return Material(missing=f"Images are not shown: {place.source} holds other data than were evaluated.")
    wanted, items = set(ids), {}

    def read() -> Iterator[Sample]:
        for position in range(len(samples)):
            sample = samples.sample(position)
            items.update((item.id, item) for item in items_of(results.task, sample) if item.id in wanted)
            yield sample

    sources, summary = describe_sources(read())
    return Material(items, sources, summary)


def image_uris(item: Item) -> tuple[list[str], str]:
    """The first images of an item as data URIs, and a sentence where one cannot be shown."""
    try:
        return [thumbnail(image) for image in item.images[:MOST_IMAGES]], ""
    except (DataError, ImageError, OSError) as error:
        return [], f"The image cannot be shown: {error}"


def thumbnail(image: PlacedImage) -> str:
    """The image, small, as PNG or JPEG, whichever is shorter. Raises what reading it raises."""
    small = read_image(image.read_image(), name=image.key)
    small.thumbnail((LARGEST, LARGEST))
    return shortest_uri(small)


def shortest_uri(image: Image.Image) -> str:
    files = {}
    for name, settings in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        file = io.BytesIO()
        image.save(file, name, **settings)
        files[name] = file.getvalue()
    name = min(files, key=lambda name: len(files[name]))
    return f"data:image/{name};base64,{base64.b64encode(files[name]).decode()}"
