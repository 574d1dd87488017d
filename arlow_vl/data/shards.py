"""WebDataset shards: plain tars whose members `key.jpg`, `key.txt`, `key.json` make one sample.

The reader is our own: webdataset's loses samples without a word, holds members of any size and can run code. One
forward pass finds every sample, keeps the texts, leaves the images where they lie, and counts by reason what is
unusable.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from arlow_vl.data.bad_share import MAX_BAD_FRACTION, refuse_bad_share, told_reasons
from arlow_vl.data.questions import Question
from arlow_vl.data.shard_faults import INDEX_NAME as INDEX_NAME  # prepare/write.py takes it from here
from arlow_vl.data.shard_faults import ShardFault, shard_fault
from arlow_vl.data.shard_samples import BadSample, FoundSample, Gathered, ReaderLimits, SampleGatherer, ShardOverflow
from arlow_vl.data.tar_members import TarDamage, tar_members
from arlow_vl.errors import DataError
from arlow_vl.printing import number_of, visible

FAULTS_TOLD = 5
DEFAULT_LIMITS = ReaderLimits()


@dataclass(frozen=True, slots=True)
class ShardSample:
    """One image and its text; the image stays in the shard until `read_image`."""

    key: str
    shard: Path
    image_name: str
    image_offset: int
    image_size: int
    text: str
    fields: dict[str, Any]
    questions: tuple[Question, ...] = ()
    members: int = 2

    @property
    def name(self) -> str:
        """`train-000017.tar:000413`, for messages and logs."""
        return f"{self.shard.name}:{self.key}"

    def read_image(self) -> bytes:
        """The compressed image. Raises DataError if the shard has changed since it was scanned."""
        try:
            with open(self.shard, "rb") as file:
                file.seek(self.image_offset)
                data = file.read(self.image_size)
        except OSError as error:
            raise DataError(f"{self.name}: {self.shard} cannot be read any more ({error.strerror})") from None
        if len(data) < self.image_size:
            raise DataError(f"{self.name}: the shard is shorter than when it was scanned; scan it again")
        return data


@dataclass
class Account:
    """Every sample that was read is in one place: usable, bad, or behind a fault of its file."""

    samples: list[Any] = field(default_factory=list)
    """The usable ones in file order, each with a `name` and a `key`."""
    bad: list[BadSample] = field(default_factory=list)
    """Samples that are skipped, named `shard.tar:key`."""
    bad_questions: list[BadSample] = field(default_factory=list)
    """Unusable questions of usable samples, named `shard.tar:key, question 2`."""
    bad_texts: list[BadSample] = field(default_factory=list)
    """Other unusable texts of such samples: a caption of five, a conversation."""
    faults: list[ShardFault] = field(default_factory=list)
    """Damage to whole files, at most one each."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Members that make no sample, by what they are; see `Gathered`."""
    members: int = 0
    """Members of shards that were read, folders too."""

    @property
    def skipped(self) -> Counter[str]:
        """Bad samples by reason."""
        return counted(self.bad)

    @property
    def examples(self) -> dict[str, str]:
        """For each reason in `skipped`, the first sample that it hit."""
        return examples_of(self.bad)

    @property
    def keys(self) -> list[str]:
        """The samples' keys in file order; one that several shards use is written `shard.tar:key`."""
        uses = Counter(sample.key for sample in self.samples)
        return [sample.key if uses[sample.key] == 1 else sample.name for sample in self.samples]

    def summary(self) -> str:
        """`9,871 samples can be used, 129 skipped (empty_text 60, image_truncated 41), 1 shard fault`, and so on."""
        skipped, faults = self.skipped, len(self.faults)
        parts = [
            f"{number_of(len(self.samples), 'sample')} can be used",
            f"{skipped.total():,} skipped{in_brackets(skipped)}",
        ]
        parts += [number_of(faults, "shard fault")] if faults else []
        for what, bad in (("question", self.bad_questions), ("text", self.bad_texts)):
            if counts := counted(bad):
                parts.append(f"{number_of(counts.total(), what)} skipped{in_brackets(counts)}")
        if self.ignored:
            parts.append(f"{number_of(self.ignored.total(), 'member')} ignored{in_brackets(self.ignored)}")
        return ", ".join(parts)

    def add(self, other: "Account") -> None:
        self.samples += other.samples
        self.bad += other.bad
        self.bad_questions += other.bad_questions
        self.bad_texts += other.bad_texts
        self.faults += other.faults
        self.ignored += other.ignored
        self.members += other.members


@dataclass
class ShardScan(Account):
    """What is usable in some shards, and by reason what is not; its samples are `ShardSample`s."""


def counted(bad: list[BadSample]) -> Counter[str]:
    """What was lost, by reason."""
    counts: Counter[str] = Counter()
    for sample in bad:
        counts[sample.reason] += sample.count
    return counts


def examples_of(bad: list[BadSample]) -> dict[str, str]:
    """For each reason, the first that it hit and how."""
    first: dict[str, str] = {}
    for sample in bad:
        first.setdefault(sample.reason, f"{sample.name}{sample.detail}")
    return first


def in_brackets(counts: Counter[str]) -> str:
    """` (empty_text 60, missing_text 2)`, or nothing."""
    listed = ", ".join(f"{what} {count:,}" for what, count in counts.most_common())
    return visible(f" ({listed})" if counts else "")


def scan_shard(path: str | Path, limits: ReaderLimits = DEFAULT_LIMITS) -> ShardScan:
    """Every usable sample of one shard, in a single pass that decodes no image and finds at most one fault."""
    (path,) = regular_shards([path])
    found, members, damage = gather_shard(path, limits, captions_only=True)
    scan = ShardScan(
        samples=[_shard_sample(path, sample) for sample in found.samples],
        bad=[sample._replace(name=f"{path.name}:{sample.name}") for sample in found.bad],
        bad_questions=[bad for sample in found.samples for bad in bad_texts_of(f"{path.name}:{sample.key}", sample)],
        ignored=found.ignored,
        members=members,
    )
    fault = shard_fault(path, damage, len(scan.samples), scan.skipped.total())
    scan.faults += [fault] if fault else []
    return scan


def gather_shard(
    path: Path, limits: ReaderLimits = DEFAULT_LIMITS, *, captions_only: bool = False
) -> tuple[Gathered, int, list[str]]:
    """What the members of a shard make, their number, and the damage that ended the reading, if any, in words."""
    gatherer, damage = SampleGatherer(limits, captions_only=captions_only), []
    with open(path, "rb") as file:
        try:
            for member in tar_members(file.fileno()):
                gatherer.add(member, partial(os.pread, file.fileno(), member.size, member.offset))
        except (TarDamage, ShardOverflow) as fault:
            damage.append(f"{fault} after sample {gatherer.last_key}" if gatherer.last_key else str(fault))
    return gatherer.finish(), gatherer.members, damage


def bad_texts_of(name: str, sample: FoundSample) -> list[BadSample]:
    """The questions and other texts of a sample, `shard.tar:key`, that cannot be used."""
    questions = [
        BadSample(f"{name}, question {number}", reason, task="question") for number, reason in sample.bad_questions
    ]
    return questions + [
        BadSample(f"{name}, text {number}", str(fault), detail=fault.detail, task=task)
        for number, fault, task in sample.bad_texts
    ]


def _shard_sample(path: Path, found: FoundSample) -> ShardSample:
    (image,) = found.images
    return ShardSample(
        key=found.key,
        shard=path,
        image_name=image.name,
        image_offset=image.offset,
        image_size=image.size,
        text=found.caption,
        fields=found.fields,
        questions=found.questions,
        members=found.members,
    )


def scan_shards(paths: Iterable[str | Path], limits: ReaderLimits = DEFAULT_LIMITS) -> ShardScan:
    """All the shards' samples in order. Raises DataError if a shard is missing or no shard has a usable sample.

    How much may be bad is for the caller to say, with `check_bad_share`.
    """
    scan, files = ShardScan(), regular_shards(paths)
    for path in files:
        scan.add(scan_shard(path, limits))
    if not scan.samples:
        raise DataError(f"no usable sample in {_named(files)}: {scan.summary()}{_told(scan)}")
    return scan


def _told(scan: ShardScan) -> str:
    """Examples of what was skipped and the first faults, to go on a sentence with."""
    skipped = {"skipped": scan.bad, "questions skipped": scan.bad_questions}
    examples = [f"; {what}: {told_reasons(counted(bad), examples_of(bad))}" for what, bad in skipped.items() if bad]
    faults = [f"; {visible(fault.shard)}: {visible(fault.reason)}" for fault in scan.faults[:FAULTS_TOLD]]
    more = len(scan.faults) - len(faults)
    return "".join([*examples, *faults, f"; {number_of(more, 'shard fault')} more" if more else ""])


def report_scan(where: str, scan: ShardScan) -> None:
    """Says on standard error all that will not be used, with examples; silent if nothing is left out."""
    if scan.bad or scan.bad_questions or scan.faults or scan.ignored:
        print(f"{where}: {scan.summary()}{_told(scan)}", file=sys.stderr)


def read_whole(paths: Iterable[str | Path]) -> list[ShardSample]:
    """The samples of shards that must not lack any, as those that are scored.

    Raises:
        DataError: a shard is missing or damaged, or a sample or question is unusable.
    """
    files = [Path(path) for path in paths]
    scan, where = scan_shards(files), _named(files)
    report_scan(where, scan)
    check_bad_share(scan, 0.0, where=f"{where}: ")
    check_questions(scan, 0.0, where=f"{where}: ")
    if scan.faults:
        raise DataError(f"{visible(scan.faults[0].shard)}: {visible(scan.faults[0].reason)}; fetch or write it again")
    return scan.samples


def check_bad_share(scan: ShardScan, max_bad_fraction: float = MAX_BAD_FRACTION, *, where: str = "") -> None:
    """Raises DataError if too large a share was skipped or is missing, with reasons and an example of each."""
    skipped, examples = scan.skipped, scan.examples
    for fault in scan.faults:
        if fault.missing:
            skipped["behind_a_shard_fault"] += fault.missing
            examples.setdefault("behind_a_shard_fault", f"{fault.shard}: {fault.reason}")
    refuse_bad_share("samples", len(scan.samples), skipped, examples, max_bad_fraction, where=where)


def check_questions(scan: ShardScan, max_bad_fraction: float = MAX_BAD_FRACTION, *, where: str = "") -> None:
    """Raises DataError if too large a share of the usable samples' questions is unusable."""
    used = sum(len(sample.questions) for sample in scan.samples)
    counts, examples = counted(scan.bad_questions), examples_of(scan.bad_questions)
    refuse_bad_share("questions", used, counts, examples, max_bad_fraction, where=where)


def regular_shards(paths: Iterable[str | Path]) -> list[Path]:
    """The paths, each of a regular file: no pipe, device, folder or address is ever opened."""
    files = [Path(path) for path in paths]
    missing = [str(path) for path in files if not path.exists()]
    if missing:
        more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
        raise DataError(f"no such shard: {', '.join(missing[:5])}{more}; `arlow data fetch` gets the real data")
    for path in files:
        if not path.is_file():
            raise DataError(f"{path} is not a regular file; name the .tar files themselves")
    if not files:
        raise DataError("no shard is named; `arlow data fetch` gets the real data")
    if twice := [str(path) for path, uses in Counter(files).items() if uses > 1]:
        raise DataError(f"{visible(twice[0])} is named twice; name each shard once")
    return files


def _named(files: list[Path]) -> str:
    return visible(f"{files[0]}{f' and {len(files) - 1:,} more' if len(files) > 1 else ''}")
