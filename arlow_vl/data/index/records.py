"""A sample as a line of JSON, and its row of fixed width.

    {"key": "17", "images": [["train-0.tar", 1536, 48211, "9f86d0..."]], "texts": [{"task": "caption", ...}]}

An image is its path, the offset and number of its bytes, and their SHA-256 in hexadecimal. A path is relative to the
folder of the source if the file lies in it, so that an index moves with its data; else it is absolute. The empty path
is the index's own file of images, which holds those that cannot be read in place.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from arlow_vl.data.samples import TASKS, ImageRef, Sample, Text, TextTask

COUNTED = ("image_bytes", "characters", "images", *TASKS)
ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
ROW = np.dtype(
    [("offset", "<u8"), ("image_bytes", "<u8"), ("characters", "<u4"), ("images", "<u4")]
    + [(task, "<u4") for task in TASKS]
)
"""Offset of a sample's record, bytes of its compressed images, characters of its texts, number of images, and
number of texts of each task."""


def written_record(sample: Sample, base: Path) -> bytes:
    """Returns a sample as one line of JSON. Every image must be an `ImageRef` with its SHA-256."""
    record: dict[str, Any] = {"key": sample.key}
    if sample.images:
        record["images"] = [[seen_from(base, image.path), *image[1:3], image.sha256.hex()] for image in refs(sample)]
    record["texts"] = [text_facts(text) for text in sample.texts]
    if sample.fields:
        record["fields"] = sample.fields
    return compact(record) + b"\n"


def read_record(line: bytes, base: Path, own_images: Path) -> Sample:
    record = json.loads(line)
    texts = tuple(map(_read_text, record["texts"]))
    return Sample(record["key"], tuple(_images_of(record, base, own_images)), texts, record.get("fields", {}))


def read_images(line: bytes, base: Path, own_images: Path) -> list[ImageRef]:
    """Returns only the images of a record, many times as fast: the texts, which follow them, are not parsed."""
    return _images_of(json.loads(line[: line.index(b',"texts":')] + b"}"), base, own_images)


def _images_of(record: dict[str, Any], base: Path, own_images: Path) -> list[ImageRef]:
    folder = str(base)
    return [
        ImageRef(os.path.join(folder, path) if path else str(own_images), offset, size, bytes.fromhex(sha256))
        for path, offset, size, sha256 in record.get("images", ())
    ]


def row_of(sample: Sample, offset: int) -> tuple[int, ...]:
    tasks = [text.task for text in sample.texts]
    image_bytes = sum(image.size for image in refs(sample))
    characters = sum(map(characters_of, sample.texts))
    return offset, image_bytes, characters, len(sample.images), *(tasks.count(task) for task in TASKS)


def refs(sample: Sample) -> list[ImageRef]:
    """Returns the images of an indexed sample, all of which are `ImageRef`s."""
    return [image for image in sample.images if isinstance(image, ImageRef)]


def characters_of(text: Text) -> int:
    """Returns the number of characters in all messages and the document of a text; images count as none."""
    parts: list[dict[str, str]] = list(text.document)
    for message in text.messages:
        content = message["content"]
        parts += content if isinstance(content, list) else [{"text": content}]
    return sum(len(part.get("text", "")) for part in parts)


def identity(sample: Sample) -> bytes:
    """Returns the SHA-256 of a sample's key, texts and image hashes, independent of where its images lie."""
    images = [image.sha256.hex() for image in refs(sample)]
    return hashlib.sha256(compact([sample.key, images, [text_facts(text) for text in sample.texts]])).digest()


def task_bits(tasks: Iterable[TextTask]) -> int:
    """Returns a set of tasks as a number, whose bit 0 is the first of TASKS."""
    return sum(1 << TASKS.index(task) for task in set(tasks))


def compact(value: Any) -> bytes:
    return ENCODER.encode(value).encode("utf-8", "surrogatepass")


def seen_from(base: Path, path: str) -> str:
    """Returns the path relative to `base` if the file lies in it, else the path itself."""
    folder = f"{base}{os.sep}"
    return path[len(folder) :] if path.startswith(folder) else path


def text_facts(text: Text) -> dict[str, Any]:
    written: dict[str, Any] = {"task": text.task}
    parts = {"messages": text.messages, "document": text.document, "references": text.references, "kind": text.kind}
    return written | {name: value for name, value in parts.items() if value}


def _read_text(written: dict[str, Any]) -> Text:
    return Text(
        task=written["task"],
        messages=tuple(written.get("messages", ())),
        document=tuple(written.get("document", ())),
        references=tuple(written.get("references", ())),
        kind=written.get("kind", ""),
    )
