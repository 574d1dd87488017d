"""COCO captions: one JSON with "images" (id, file_name) and "annotations" (image_id, caption).

All captions of an image are texts of one sample, whose key is the image's id.
"""

import mmap
import os
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from arlow_vl.data.file_names import names_of
from arlow_vl.data.formats.images import ImageRoot
from arlow_vl.data.formats.json_files import entries_under, id_of, load_json, objects_by_id
from arlow_vl.data.formats.messages import clean_string
from arlow_vl.data.formats.tally import Tally
from arlow_vl.data.samples import Sample, Text, caption_text
from arlow_vl.data.text import Unusable, open_regular
from arlow_vl.errors import DataError
from arlow_vl.printing import visible


def read(files: list[Path], images: ImageRoot, tally: Tally) -> Iterator[Sample]:
    """Yields a sample for each image with a caption, in the order of "images"; an id is one image in all the files."""
    used: set[str] = set()
    for path in files:
        _refuse_boxes(path)
    for path, called in names_of(files).items():
        value, start = load_json(path), images.of(path)
        lose = partial(tally.leave_out, members=0)
        entries = objects_by_id(entries_under(path, value, "images"), "id", f"{called}: image number", lose)
        captions = _captions(called, entries_under(path, value, "annotations"), entries, tally)
        del value  # the annotations, which take the most memory
        for key, entry in entries.items():
            texts = captions.pop(key, [])
            try:
                if key in used:
                    raise Unusable("duplicate_id", f": image {key[:40]} is in two files")
                image = start.find(entry.get("file_name"))
                if not texts:
                    raise Unusable("missing_text", ": no usable caption")
            except Unusable as fault:
                tally.leave_out(f"{called}: image {key}", fault, members=len(texts))
                continue
            used.add(key)
            yield tally.use(Sample(key, (image,), tuple(texts), {"file_name": entry["file_name"]}))


def _refuse_boxes(path: Path) -> None:
    """Raises DataError for COCO's instances or keypoints, which lie beside its captions, before a file is parsed."""
    with open_regular(path) as file:
        if not os.fstat(file.fileno()).st_size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b'"caption"') < 0 <= content.find(b'"bbox"'):
                what = "annotations of boxes, no captions; name captions_*.json, or another file with captions"
                raise DataError(f"{visible(str(path))}: {what}")


def _captions(where: str, annotations: list[Any], entries: dict[str, Any], tally: Tally) -> dict[str, list[Text]]:
    """Returns the usable captions by image, in the order of the file."""
    captions: dict[str, list[Text]] = defaultdict(list)
    seen: set[str] = set()
    for number, entry in enumerate(annotations, start=1):
        try:
            if not isinstance(entry, dict):
                raise Unusable("entry_not_an_object", f": {type(entry).__name__}")
            image = id_of(entry, "image_id")
            if image not in entries:
                raise Unusable("unknown_image_id", f": no image has the id {image[:40]}")
            if entry.get("id") is not None and id_of(entry, "id") in seen:
                raise Unusable("duplicate_id", f": id {entry['id']!r:.40} comes twice")
            seen.add(str(entry.get("id")))
            captions[image].append(caption_text(clean_string(entry.get("caption"), "caption")))
        except Unusable as fault:
            tally.leave_out_text(f"{where}: annotation {number:,}", fault, "caption")
    return captions
