"""Every sample of some sources, read as training reads it and every image decoded: what is usable, and what is not.

One process reads the sources and hands images in bunches to those that decode. The results come in any order, so faults
are sorted by the number of their sample in the end: what is found never depends on how many processes there are.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from arlow_vl.data.bad_share import MAX_BAD_FRACTION, refuse_bad_share
from arlow_vl.data.file_names import names_of
from arlow_vl.data.formats.detect import Source, open_source
from arlow_vl.data.index.header import SHARDS
from arlow_vl.data.index.images import read_range
from arlow_vl.data.processes import in_processes
from arlow_vl.data.samples import ImageRef, Sample
from arlow_vl.data.shard_faults import INDEX_NAME, ShardFault, other_sha256, shard_fault
from arlow_vl.data.shard_samples import BadSample, FoundSample
from arlow_vl.data.shards import Account, counted, examples_of, gather_shard, regular_shards
from arlow_vl.errors import DataError
from arlow_vl.printing import visible

ASK_QUESTIONS = ("vqa", "gqa", "textvqa", "vizwiz", "pope")
"""Formats whose texts are questions, all of them."""
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

    @property
    def questions(self) -> int:
        return sum(sample.questions for sample in self.samples)

    @property
    def texts(self) -> int:
        """Questions too."""
        return sum(sample.texts for sample in self.samples)

    def check(self, max_bad_fraction: float = MAX_BAD_FRACTION) -> None:
        """Raises DataError if too large a share of samples, of questions or of other texts is unusable."""
        skipped, examples = self.skipped, self.examples
        for fault in self.faults:
            if fault.missing:
                skipped["behind_a_shard_fault"] += fault.missing
                examples.setdefault("behind_a_shard_fault", f"{fault.shard}: {fault.reason}")
        refuse_bad_share("samples", len(self.samples), skipped, examples, max_bad_fraction)
        others = self.texts - self.questions
        for what, used, bad in (("questions", self.questions, self.bad_questions), ("texts", others, self.bad_texts)):
            refuse_bad_share(what, used, counted(bad), examples_of(bad), max_bad_fraction)


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
                reading.add_fault(ShardFault(str(task), f"SHA-256 differs from {INDEX_NAME}"))
            continue
        faults |= found
        decoded += len(task)
        progress(decoded, reading.ready, reading.files)
    return reading.finish(faults)


class _Reading:
    """The sources while they are read: all that is found but the faults of images."""

    def __init__(self, sources: Sequence[tuple[str, Source]]) -> None:
        self.sources = sources
        shards = [file for _, source in sources if source.format == SHARDS for file in source.files]
        others = [(path, source) for path, source in sources if source.format != SHARDS]
        _refuse_twice([*shards, *(Path(path) for path, _ in others)])
        self.shards, self.others = names_of(regular_shards(shards)) if shards else {}, others
        self.ready, self.files = 0, len(shards) + len(others)
        self.found = Verified()
        self._faults: dict[str, ShardFault] = {}

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
        yield from (path for path in self.shards if path.with_name(INDEX_NAME).is_file())

    def _images(self) -> Iterator[tuple[Image, ...]]:
        """Of each sample, which is added to the usable ones."""
        for path, name in self.shards.items():
            yield from self._read_shard(path, f"{name}:")
            self.ready += 1
        for path, source in self.others:
            yield from self._read_source(source, f"{Path(path).name}:" if len(self.sources) > 1 else "")
            self.ready += 1

    def _read_shard(self, path: Path, prefix: str) -> Iterator[tuple[Image, ...]]:
        shard, members, damage = gather_shard(path)
        self.found.members += members
        self.found.ignored.update(shard.ignored)
        self.found.bad += [bad._replace(name=f"{prefix}{bad.name}") for bad in shard.bad]
        if fault := shard_fault(path, damage, len(shard.samples), sum(bad.count for bad in shard.bad)):
            self.add_fault(fault)
        for sample in shard.samples:
            name = f"{prefix}{sample.key}"
            self.found.bad_questions += [
                BadSample(f"{name}, question {number}", reason) for number, reason in sample.bad_questions
            ]
            self.found.bad_texts += [
                BadSample(f"{name}, text {number}", str(fault), detail=fault.detail)
                for number, fault in sample.bad_texts
            ]
            self.found.samples.append(_of_shard(sample, name))
            yield tuple(ImageRef(str(path), image.offset, image.size) for image in sample.images)

    def _read_source(self, source: Source, prefix: str) -> Iterator[tuple[Image, ...]]:
        for sample in source.iterate():
            self.found.samples.append(_of_source(sample, f"{prefix}{sample.key}"))
            yield sample.images
        tally = source.tally
        self.found.ignored.update(tally.ignored)
        self.found.bad += [bad._replace(name=f"{prefix}{bad.name}") for bad in tally.bad]
        bad_texts = self.found.bad_questions if source.format in ASK_QUESTIONS else self.found.bad_texts
        bad_texts += [bad._replace(name=f"{prefix}{bad.name}") for bad in tally.bad_texts]
        for fault in tally.faults:
            self.add_fault(fault)

    def add_fault(self, fault: ShardFault) -> None:
        before = self._faults.get(fault.shard)
        if before is not None:
            fault = ShardFault(fault.shard, f"{before.reason}; {fault.reason}", before.missing + fault.missing)
        self._faults[fault.shard] = fault

    def finish(self, faults: dict[int, tuple[str, str]]) -> Verified:
        """Samples with a faulty image become bad ones."""
        found, usable = self.found, []
        for number, sample in enumerate(found.samples):
            if number in faults:
                reason, detail = faults[number]
                found.bad.append(BadSample(sample.name, reason, sample.members, detail=detail))
            else:
                usable.append(sample)
        found.samples = usable
        found.faults = [*self._faults.values()]
        return found


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
