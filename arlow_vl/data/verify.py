"""Verifying of sources: every sample is read as training reads it, and every image is decoded.

One process reads the sources and hands bunches of images to those that decode. Results come in any order, so
faults are kept by the number of their sample: what is found never depends on how many processes there are.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NamedTuple

from arlow_vl.data.bad_share import MAX_BAD_FRACTION
from arlow_vl.data.file_names import names_of
from arlow_vl.data.formats.detect import Source, open_source
from arlow_vl.data.formats.tally import Tally
from arlow_vl.data.formats.webdataset import read_shard
from arlow_vl.data.index.header import SHARDS
from arlow_vl.data.index.images import read_range
from arlow_vl.data.processes import in_processes
from arlow_vl.data.remote import is_address
from arlow_vl.data.samples import ImageRef, Sample
from arlow_vl.data.shard_faults import INDEX_NAME, ShardFault, faults_at_addresses, other_sha256
from arlow_vl.data.shard_samples import BadSample, FoundSample
from arlow_vl.data.shards import regular_shards
from arlow_vl.data.text_files import shown_source
from arlow_vl.errors import DataError
from arlow_vl.printing import visible

BUNCH_SAMPLES = 64
BUNCH_BYTES = 2**24
"""Most bytes of images in a bunch that are held in records, and so are sent to another process."""
FEW = 2
"""Number of bunches up to which no process is started."""

OTHER_SHA256 = f"SHA-256 differs from {INDEX_NAME}"

Image = ImageRef | bytes
Bunch = list[tuple[int, tuple[Image, ...]]]
"""Numbers of samples, with their images."""
Progress = Callable[[int, int, int], None]
"""Called with the samples decoded so far, the files read, and the number of files."""


class CheckedSample(NamedTuple):
    """A sample that was read."""

    name: str
    """`shard.tar:key`; without the shard where its format has none."""
    key: str
    members: int
    """Number of its members in a shard, or of its annotations."""
    texts: int
    questions: int
    """Number of its texts that are questions."""


@dataclass
class Verified:
    """Some sources, read to the end: the usable samples, and by source what was left out."""

    sources: dict[str, Tally]
    """The tally of each source."""
    samples: list[CheckedSample] = field(default_factory=list)
    """The usable samples of all sources in file order; none where the sources are text alone."""
    members: int = 0
    """Members of the shards that were read, folders included."""
    tally: Tally = field(init=False)
    """The tallies of all sources together."""

    def __post_init__(self) -> None:
        self.tally = Tally()
        for tally in self.sources.values():
            self.tally.unit = tally.unit
            self.tally.add(tally)

    @property
    def keys(self) -> list[str]:
        """Keys of the samples in file order; one that several shards or sources use is written `shard.tar:key`."""
        uses = Counter(sample.key for sample in self.samples)
        return [sample.key if uses[sample.key] == 1 else sample.name for sample in self.samples]

    def check(self, max_bad_fraction: float = MAX_BAD_FRACTION) -> None:
        """Raises DataError if a source holds nothing usable, or too large a share of what it holds is unusable."""
        for source, tally in self.sources.items():
            tally.check(shown_source(source), max_bad_fraction)


def verify_sources(
    paths: Sequence[str | Path],
    *,
    images: str | Path | None = None,
    format: str | None = None,
    workers: int = 1,
    progress: Progress = lambda samples, ready, files: None,
) -> Verified:
    """Reads every sample, decodes every image, and compares the SHA-256 of shards with `index.json`.

    It is no error if nothing is usable. `images` and `format` are those of `open_source`.

    Raises:
        DataError: a source is missing or of no known format, or a file is named twice.
    """
    with contextlib.ExitStack() as stack:
        sources = [open_source(path, images=images, format=format) for path in paths]
        for source in sources:
            stack.callback(source.close)
        reading = _Reading(list(zip(map(str, paths), sources, strict=True)))
        tasks = reading.tasks()
        first = list(islice(tasks, FEW + 1))
        faults: dict[int, tuple[str, str]] = {}
        decoded = 0
        for task, found in in_processes(_do, chain(first, tasks), workers if len(first) > FEW else 1):
            if isinstance(task, Path):
                if found:
                    reading.add_other_sha256(task)
                continue
            faults |= found
            decoded += len(task)
            progress(decoded, reading.ready, reading.files)
        return reading.finish(faults)


class _Reading:
    """Sources while they are read: collects all but the faults of images."""

    def __init__(self, sources: Sequence[tuple[str, Source]]) -> None:
        self.sources = sources
        shards = [(file, path) for path, source in sources if source.format == SHARDS for file in source.files]
        others = [path for path, source in sources if source.format != SHARDS]
        _refuse_twice([*(str(file) for file, _ in shards), *others])
        self.source_of_shard = dict(shards)
        self.names = names_of(regular_shards(self.source_of_shard) if shards else [])
        self.names |= names_of(map(shown_source, others))
        self.ready, self.files = 0, len(self.names)
        self.tallies = {path: Tally() for path, _ in sources}
        self.samples: dict[str, list[CheckedSample]] = {path: [] for path, _ in sources}
        self.members = 0

    def tasks(self) -> Iterator[Bunch | Path]:
        """Yields bunches of images to decode, then shards whose SHA-256 is to be compared."""
        bunch: Bunch = []
        held = 0
        for number, images in enumerate(self._images()):
            bunch.append((number, images))
            held += sum(len(image) for image in images if isinstance(image, bytes))
            if len(bunch) == BUNCH_SAMPLES or held > BUNCH_BYTES:
                yield bunch
                bunch, held = [], 0
        if bunch:
            yield bunch
        yield from (path for path in self.source_of_shard if path.with_name(INDEX_NAME).is_file())

    def _images(self) -> Iterator[tuple[Image, ...]]:
        """Yields the images of each sample, which is added to the usable ones."""
        for path, source in self.sources:
            if source.format == SHARDS:
                for shard in source.files:
                    yield from self._read_shard(path, shard)
                    self.ready += 1
            else:
                yield from self._read_source(path, source)
                self.ready += 1

    def _read_shard(self, source: str, path: Path) -> Iterator[tuple[Image, ...]]:
        found, members = read_shard(path, self.names[path], self.tallies[source])
        self.members += members
        for sample in found:
            self.samples[source].append(_of_shard(sample, f"{self.names[path]}:{sample.key}"))
            yield tuple(ImageRef(str(path), image.offset, image.size) for image in sample.images)

    def _read_source(self, path: str, source: Source) -> Iterator[tuple[Image, ...]]:
        prefix = f"{self.names[Path(shown_source(path))]}:" if len(self.sources) > 1 else ""
        for sample in source.iterate():
            self.samples[path].append(_of_source(sample, f"{prefix}{sample.key}"))
            yield sample.images
        self.tallies[path].add(source.tally, prefix)

    def add_other_sha256(self, shard: Path) -> None:
        """Adds to the fault of a shard, if it has one, that its SHA-256 is not the one in its index.json."""
        faults, fault = self.tallies[self.source_of_shard[shard]].faults, ShardFault(str(shard), OTHER_SHA256)
        for number, before in enumerate(faults):
            if before.shard == fault.shard:
                faults[number] = replace(before, reason=f"{before.reason}; {OTHER_SHA256}")
                return
        faults.append(fault)

    def finish(self, faults: dict[int, tuple[str, str]]) -> Verified:
        """Returns all that was found, once samples with a faulty image are bad ones."""
        samples, numbers = [], count()
        for source, tally in self.tallies.items():
            usable = []
            for sample, number in zip(self.samples[source], numbers, strict=False):
                if number in faults:
                    reason, detail = faults[number]
                    tally.bad.append(BadSample(sample.name, reason, sample.members, detail=detail))
                else:
                    usable.append(sample)
            tally.samples = len(usable)
            tally.texts = sum(sample.texts for sample in usable)
            tally.questions = sum(sample.questions for sample in usable)
            held = dict(self.sources)[source].held
            tally.faults = faults_at_addresses(tally.faults, held)
            samples += usable
        return Verified(self.tallies, samples, self.members)


def _of_shard(sample: FoundSample, name: str) -> CheckedSample:
    questions = len(sample.questions) + sum(text.task == "question" for text in sample.texts)
    texts = bool(sample.caption) + len(sample.questions) + len(sample.texts)
    return CheckedSample(name, sample.key, sample.members, texts, questions)


def _of_source(sample: Sample, name: str) -> CheckedSample:
    questions = sum(text.task == "question" for text in sample.texts)
    return CheckedSample(name, sample.key, len(sample.texts), len(sample.texts), questions)


def _refuse_twice(files: Sequence[str]) -> None:
    uses = Counter(file if is_address(file) else os.path.abspath(file) for file in files)
    if twice := [path for path, count in uses.items() if count > 1]:
        raise DataError(f"{visible(shown_source(twice[0]))} is named twice; name each source once")


def _do(task: Bunch | Path) -> Any:
    """Returns True if a shard has another SHA-256; for a bunch, the faults by the number of the sample."""
    if isinstance(task, Path):
        return other_sha256(task)
    return {number: fault for number, images in task if (fault := _image_fault(images))}


def _image_fault(images: tuple[Image, ...]) -> tuple[str, str] | None:
    """Returns reason and detail for the first image that cannot be used; None if all can."""
    from vision.decoding.image import ImageError, decode_image

    for number, image in enumerate(images):
        where = f": image {number}" if len(images) > 1 else ""
        if isinstance(image, ImageRef) and image.offset == 0:  # a file of its own, as no member of a tar is
            where += f": {image.path}"
        try:
            decode_image(image if isinstance(image, bytes) else read_range(image), name="")
        except DataError as error:
            return "image_unreadable", f"{where}: {error}"
        except ImageError as error:
            return f"image_{error.reason}", where
    return None
