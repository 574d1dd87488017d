"""WebDataset and img2dataset tars: the members `key.jpg`, `key.txt`, `key.json`, by the rules of `shard_samples`.

A sample's texts are its caption, its questions and, from the .json, what docs/formats.md lists:

    "messages": [...]      one conversation          "texts": [{"messages" or "document", "task", "references", "kind"}]
    "document": [...]      one interleaved document
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from arlow_vl.data.file_names import names_of
from arlow_vl.data.formats.images import ImageRoot
from arlow_vl.data.formats.tally import Tally
from arlow_vl.data.questions import UNNAMED_KIND
from arlow_vl.data.samples import ImageRef, Sample, Text, about_images, caption_text, short_facts
from arlow_vl.data.shard_faults import shard_fault
from arlow_vl.data.shard_samples import FoundSample
from arlow_vl.data.shards import bad_texts_of, gather_shard, regular_shards
from arlow_vl.errors import DataError
from arlow_vl.printing import visible


def read(files: Iterable[str | Path], images: ImageRoot | None, tally: Tally) -> Iterator[Sample]:
    """Yields the samples of each shard in file order, named `shard.tar:key`; one shard is in memory at a time."""
    for path, name in names_of(regular_shards(files)).items():
        found, _ = read_shard(path, name, tally)
        for sample in found:
            where = [ImageRef(os.path.abspath(path), image.offset, image.size) for image in sample.images]
            key = f"{name}:{sample.key}"
            yield tally.use(Sample(key, tuple(where), _texts_of(sample), short_facts(sample.fields)))


def read_shard(path: Path, name: str, tally: Tally) -> tuple[list[FoundSample], int]:
    """Returns the usable samples of one shard, called `name`, and its number of members; counts all else in `tally`."""
    found, members, damage = gather_shard(path)
    tally.bad += [sample._replace(name=f"{name}:{sample.name}") for sample in found.bad]
    tally.ignored.update(found.ignored)
    if fault := shard_fault(path, damage, len(found.samples), sum(bad.count for bad in found.bad)):
        tally.faults.append(fault)
    for sample in found.samples:
        tally.bad_texts += bad_texts_of(f"{name}:{sample.key}", sample)
    return found.samples, members


def read_whole(paths: Iterable[str | Path]) -> list[Sample]:
    """Returns the samples of shards that must not lack any, as those that are scored.

    Raises:
        DataError: a shard is missing or damaged, or a sample or one of its texts is unusable.
    """
    files, tally = regular_shards(paths), Tally()
    samples = list(read(files, None, tally))
    if tally.faults:
        raise DataError(f"{visible(tally.faults[0].shard)}: {visible(tally.faults[0].reason)}; fetch or write it again")
    tally.check(f"{files[0]}{f' and {len(files) - 1:,} more' if len(files) > 1 else ''}", 0.0)
    return samples


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
