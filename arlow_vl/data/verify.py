"""Every sample of some sources, read as training reads it and every image decoded: what is usable, and what is not.

One process reads the sources and hands images in bunches to those that decode. The results come in any order, so faults
are sorted by the number of their sample in the end: what is found never depends on how many processes there are.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NamedTuple

from arlow_vl.data.bad_share import MAX_BAD_FRACTION, BadTexts, refuse_bad_share, refuse_bad_texts
from arlow_vl.data.file_names import names_of
from arlow_vl.data.formats.detect import Source, open_source
from arlow_vl.data.index.header import SHARDS
from arlow_vl.data.index.images import read_range
from arlow_vl.data.processes import in_processes
from arlow_vl.data.remote_cache import told_damage
from arlow_vl.data.samples import ImageRef, Sample
from arlow_vl.data.shard_faults import INDEX_NAME, ShardFault, other_sha256, shard_fault
from arlow_vl.data.shard_samples import BadSample, FoundSample
from arlow_vl.data.shards import Account, bad_texts_of, gather_shard, regular_shards
from arlow_vl.errors import DataError
from arlow_vl.printing import visible

BUNCH_SAMPLES = 64
BUNCH_BYTES = 2**24
"""Of images that lie in records and so go to another process themselves."""
FEW = 2
"""Bunches for which no process is started."""

Image = ImageRef | bytes
Bunch = list[tuple[int, tuple[Image, ...]]]
"""Numbers of samples, with their images."""
Progress = Callable[[int, int, int], None]
"""Told samples decoded so far, files read, and files in all."""


class CheckedSample(NamedTuple):
    """A sample that was read."""

    name: str
    """`shard.tar:key`; without the shard where its format has none."""
    key: str
    members: int
    """Members of its shard; annotations elsewhere."""
    texts: int
    questions: int
    """Of its texts."""


@dataclass
class Verified(Account):
    """Some sources of any format; its samples are `CheckedSample`s."""

    sources: dict[str, "Verified"] = field(default_factory=dict)
    """Of several sources together, what each holds."""

    @property
    def questions(self) -> int:
        return sum(sample.questions for sample in self.samples)

    @property
    def texts(self) -> int:
        """Questions too."""
        return sum(sample.texts for sample in self.samples)

    def add_bad_texts(self, bad: Sequence[BadSample]) -> None:
        self.bad_questions += [text for text in bad if text.task == "question"]
        self.bad_texts += [text for text in bad if text.task != "question"]

    def check(self, max_bad_fraction: float = MAX_BAD_FRACTION) -> None:
        """Raises DataError if too large a share of the samples, questions or other texts of a source is unusable."""
        for source, found in self.sources.items():
            found._check(visible(source), max_bad_fraction)

    def _check(self, source: str, max_bad_fraction: float) -> None:
        where = f"{source}: "
        skipped, examples = self.skipped, self.examples
        for fault in self.faults:
            if fault.missing:
                skipped["behind_a_shard_fault"] += fault.missing
                examples.setdefault("behind_a_shard_fault", f"{fault.shard}: {fault.reason}")
        refuse_bad_share("samples", len(self.samples), skipped, examples, max_bad_fraction, where=where)
        bad = map(BadTexts.of, self.bad_questions + self.bad_texts)
        refuse_bad_texts(self.questions, self.texts - self.questions, bad, max_bad_fraction, where=where)
        if not self.samples:
            raise DataError(f"{where}nothing there can be used; name other data")


def verify_sources(
    paths: Sequence[str | Path],
    *,
    images: str | Path | None = None,
    format: str | None = None,
    workers: int = 1,
    progress: Progress = lambda samples, ready, files: None,
) -> Verified:
    """Reads every sample, decodes every image, and compares the SHA-256 of shards with `index.json`.

    That nothing is usable is a result, not an error. `images` and `format` are those of `open_source`.

    Raises:
        DataError: nothing is there, or nothing that is known; or one file is named twice.
    """
    reading = _Reading([(str(path), open_source(path, images=images, format=format)) for path in paths])
    tasks = reading.tasks()
    first = list(islice(tasks, FEW + 1))
    faults: dict[int, tuple[str, str]] = {}
    decoded = 0
    for task, found in in_processes(_do, chain(first, tasks), workers if len(first) > FEW else 1):
        if isinstance(task, Path):
            if found:
                fault = ShardFault(str(task), f"SHA-256 differs from {INDEX_NAME}")
                reading.add_fault(reading.source_of_shard[task], fault)
            continue
        faults |= found
        decoded += len(task)
        progress(decoded, reading.ready, reading.files)
    return reading.finish(faults)


class _Reading:
    """The sources while they are read: all that is found but the faults of images."""

    def __init__(self, sources: Sequence[tuple[str, Source]]) -> None:
        self.sources = sources
        shards = [(file, path) for path, source in sources if source.format == SHARDS for file in source.files]
        others = [Path(path) for path, source in sources if source.format != SHARDS]
        _refuse_twice([*(file for file, _ in shards), *others])
        self.source_of_shard = dict(shards)
        self.names = names_of(regular_shards(self.source_of_shard) if shards else []) | names_of(others)
        self.ready, self.files = 0, len(self.names)
        self.found = {path: Verified() for path, _ in sources}
        self._faults: dict[str, dict[str, ShardFault]] = {path: {} for path, _ in sources}

    def tasks(self) -> Iterator[Bunch | Path]:
        """Bunches of images to decode, and shards whose SHA-256 is to be compared."""
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
        """Of each sample, which is added to the usable ones."""
        for path, source in self.sources:
            if source.format == SHARDS:
                for shard in source.files:
                    yield from self._read_shard(path, shard)
                    self.ready += 1
            else:
                yield from self._read_source(path, source)
                self.ready += 1

    def _read_shard(self, source: str, path: Path) -> Iterator[tuple[Image, ...]]:
        found, prefix = self.found[source], f"{self.names[path]}:"
        shard, members, damage = gather_shard(path)
        found.members += members
        found.ignored.update(shard.ignored)
        found.bad += [bad._replace(name=f"{prefix}{bad.name}") for bad in shard.bad]
        if fault := shard_fault(path, damage, len(shard.samples), sum(bad.count for bad in shard.bad)):
            self.add_fault(source, fault)
        for sample in shard.samples:
            name = f"{prefix}{sample.key}"
            found.add_bad_texts(bad_texts_of(name, sample))
            found.samples.append(_of_shard(sample, name))
            yield tuple(ImageRef(str(path), image.offset, image.size) for image in sample.images)

    def _read_source(self, path: str, source: Source) -> Iterator[tuple[Image, ...]]:
        found, prefix = self.found[path], f"{self.names[Path(path)]}:" if len(self.sources) > 1 else ""
        for sample in source.iterate():
            found.samples.append(_of_source(sample, f"{prefix}{sample.key}"))
            yield sample.images
        tally = source.tally
        found.ignored.update(tally.ignored)
        found.bad += [bad._replace(name=f"{prefix}{bad.name}") for bad in tally.bad]
        found.add_bad_texts([bad._replace(name=f"{prefix}{bad.name}") for bad in tally.bad_texts])
        for fault in tally.faults:
            self.add_fault(path, fault)

    def add_fault(self, source: str, fault: ShardFault) -> None:
        before = self._faults[source].get(fault.shard)
        if before is not None:
            fault = ShardFault(fault.shard, f"{before.reason}; {fault.reason}", before.missing + fault.missing)
        self._faults[source][fault.shard] = fault

    def finish(self, faults: dict[int, tuple[str, str]]) -> Verified:
        """Samples with a faulty image become bad ones."""
        total, numbers = Verified(sources=self.found), count()
        for source, found in self.found.items():
            usable = []
            for sample, number in zip(found.samples, numbers, strict=False):
                if number in faults:
                    reason, detail = faults[number]
                    found.bad.append(BadSample(sample.name, reason, sample.members, detail=detail))
                else:
                    usable.append(sample)
            found.samples = usable
            held = dict(self.sources)[source].held
            found.faults = [replace(one, shard=told_damage(one.shard, held)) for one in self._faults[source].values()]
            total.add(found)
        return total


def _of_shard(sample: FoundSample, name: str) -> CheckedSample:
    questions = len(sample.questions) + sum(text.task == "question" for text in sample.texts)
    texts = bool(sample.caption) + len(sample.questions) + len(sample.texts)
    return CheckedSample(name, sample.key, sample.members, texts, questions)


def _of_source(sample: Sample, name: str) -> CheckedSample:
    questions = sum(text.task == "question" for text in sample.texts)
    return CheckedSample(name, sample.key, len(sample.texts), len(sample.texts), questions)


def _refuse_twice(files: Sequence[Path]) -> None:
    uses = Counter(map(os.path.abspath, files))
    if twice := [path for path, count in uses.items() if count > 1]:
        raise DataError(f"{visible(twice[0])} is named twice; name each source once")


def _do(task: Bunch | Path) -> Any:
    """Whether the SHA-256 of a shard is another; of a bunch the faults, by the number of the sample."""
    if isinstance(task, Path):
        return other_sha256(task)
    return {number: fault for number, images in task if (fault := _image_fault(images))}


def _image_fault(images: tuple[Image, ...]) -> tuple[str, str] | None:
    """Reason and detail of the first image that cannot be used."""
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
