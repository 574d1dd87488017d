"""Finds the images and prompts that a page shows beside the predictions, in the data that a task was run on."""

import base64
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from PIL import Image

from arlow_vl.data.sample_dataset import PlacedImage
from arlow_vl.data.samples import Sample
from arlow_vl.data.text_files import shown_source
from arlow_vl.errors import DataError
from arlow_vl.evaluation.provenance import describe_sources
from arlow_vl.evaluation.tasks.items import Item, items_of, open_samples
from arlow_vl.evaluation.tasks.places import TaskData
from arlow_vl.evaluation.tasks.results import Results
from vision.decoding.image import ImageError
from vision.decoding.sources import read_image

LARGEST = 320
"""Longer side of an image on the page, in pixels."""
MOST_IMAGES = 4
"""Maximum number of images shown for a sample."""


@dataclass(frozen=True)
class Material:
    """The items that a page shows, read again from the data."""

    items: dict[str, Item] = field(default_factory=dict)
    """Items by id."""
    sources: list[dict[str, str]] = field(default_factory=list)
    """Sources of the data (`provenance.describe_sources`): {name, license, use}."""
    summary: str = ""
    """A sentence or two about the data; empty if they state none."""
    missing: str = ""
    """The reason why items cannot be shown: the data are gone or have changed; empty if they can."""


def find_material(results: Results, ids: Collection[str]) -> Material:
    """Reads the data once; `ids` are those of the items that are shown."""
    if results.task.kind == "text":
        return Material()
    data = results.metrics_json["data"]
    place = TaskData(data["source"], data["images"], data["format"])
    try:
        samples = open_samples(results.task, place)
    except (DataError, OSError) as error:
        return Material(missing=f"Images are not shown, as the data cannot be read: {error}")
    if samples.fingerprint != data["sha256"]:
        where = shown_source(place.source)
        return Material(missing=f"Images are not shown: {where} holds other data than were evaluated.")
    wanted, items = set(ids), {}

    def read() -> Iterator[Sample]:
        for position in range(len(samples)):
            sample = samples.sample(position)
            items.update((item.id, item) for item in items_of(results.task, sample) if item.id in wanted)
            yield sample

    sources, summary = describe_sources(read())
    return Material(items, sources, summary)


def image_uris(item: Item) -> tuple[list[str], str]:
    """Returns the first images of an item as data URIs, and a sentence if one cannot be shown."""
    try:
        return [thumbnail(image) for image in item.images[:MOST_IMAGES]], ""
    except (DataError, ImageError, OSError) as error:
        return [], f"The image cannot be shown: {error}"


def thumbnail(image: PlacedImage) -> str:
    """Returns a small version of an image as a data URI. Raises what reading it raises."""
    small = read_image(image.read_image(), name=image.key)
    small.thumbnail((LARGEST, LARGEST))
    return shortest_uri(small)


def shortest_uri(image: Image.Image) -> str:
    """Returns an image as a data URI, as PNG or JPEG, whichever is shorter."""
    files = {}
    for name, settings in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        file = io.BytesIO()
        image.save(file, name, **settings)
        files[name] = file.getvalue()
    name = min(files, key=lambda name: len(files[name]))
    return f"data:image/{name};base64,{base64.b64encode(files[name]).decode()}"
