"""WebDataset and img2dataset tars: the members `key.jpg`, `key.txt`, `key.json`, by the rules of `shard_samples`.

A sample's texts are its caption, its questions and, from the .json, what docs/formats.md lists:

    "messages": [...]      one conversation          "texts": [{"messages" or "document", "task", "references", "kind"}]
    "document": [...]      one interleaved document
"""

import os
from collections.abc import Iterator
from pathlib import Path

from arlow_vl.data.file_names import names_of
from arlow_vl.data.formats.images import ImageRoot
from arlow_vl.data.formats.tally import Tally
from arlow_vl.data.questions import UNNAMED_KIND
from arlow_vl.data.samples import ImageRef, Sample, Text, about_images, caption_text, short_facts
from arlow_vl.data.shard_faults import shard_fault
from arlow_vl.data.shard_samples import FoundSample
from arlow_vl.data.shards import bad_texts_of, gather_shard, regular_shards


def read(files: list[Path], images: ImageRoot, tally: Tally) -> Iterator[Sample]:
    """The samples of each shard in file order, named `shard.tar:key`; one shard is in memory at a time."""
    for path, name in names_of(regular_shards(files)).items():
        yield from _read_shard(path, name, tally)


def _read_shard(path: Path, name: str, tally: Tally) -> Iterator[Sample]:
    found, _, damage = gather_shard(path)
    tally.bad += [sample._replace(name=f"{name}:{sample.name}") for sample in found.bad]
    tally.ignored.update(found.ignored)
    usable = len(found.samples)
    if fault := shard_fault(path, damage, usable, sum(bad.count for bad in found.bad)):
        tally.faults.append(fault)
    for sample in found.samples:
        tally.bad_texts += bad_texts_of(f"{name}:{sample.key}", sample)
        key, images = f"{name}:{sample.key}", _images_of(path, sample)
        yield tally.use(Sample(key, images, _texts_of(sample), short_facts(sample.fields)))


def _images_of(path: Path, sample: FoundSample) -> tuple[ImageRef, ...]:
    return tuple(ImageRef(os.path.abspath(path), image.offset, image.size) for image in sample.images)


def _texts_of(sample: FoundSample) -> tuple[Text, ...]:
    number = len(sample.images)
    captions = [caption_text(sample.caption, images=number)] if sample.caption else []
    questions = [
        Text(
            "question",
            about_images(number, question=entry.question, answer=entry.answer),
            kind="" if entry.kind == UNNAMED_KIND else entry.kind,
        )
        for entry in sample.questions
    ]
    return (*captions, *questions, *sample.texts)
