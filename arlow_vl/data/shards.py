"""WebDataset shards: plain tars whose members `key.jpg`, `key.txt`, `key.json` make one sample.

The reader is our own: webdataset's loses samples without a word, holds members of any size and can run code. One
forward pass finds every sample, keeps the texts, leaves the images where they lie, and counts by reason what is
unusable.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from arlow_vl.data.shard_samples import ReaderLimits, SampleGatherer, ShardOverflow
from arlow_vl.data.tar_members import TarDamage, tar_members
from arlow_vl.data.text import Unusable, parse_object
from arlow_vl.errors import DataError

INDEX_NAME = "index.json"
MAX_INDEX_BYTES = 16 * 2**20
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

    @property
    def name(self) -> str:
        """`train-000017.tar:000413`, for messages and logs."""
        return f"{self.shard.name}:{self.key}"

    def read_image(self) -> bytes:
        """The compressed image. Raises DataError if the shard has changed since it was scanned."""
        with open(self.shard, "rb") as file:
            file.seek(self.image_offset)
            data = file.read(self.image_size)
        if len(data) < self.image_size:
            raise DataError(f"{self.name}: the shard is shorter than when it was scanned; scan it again")
        return data


@dataclass(frozen=True)
class ShardFault:
    """Damage to a shard as a whole: what was whole before it is used."""

    shard: str
    reason: str


@dataclass
class ShardScan:
    """What is usable in some shards, and by reason what is not."""

    samples: list[ShardSample] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    faults: list[ShardFault] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)
    """For each reason in `skipped`, one sample that it hit."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Faults of .json members whose samples are used all the same, without fields, as their text is a .txt member."""

    @property
    def keys(self) -> list[str]:
        """The samples' keys in file order; one that several shards use is written `shard.tar:key`."""
        uses = Counter(sample.key for sample in self.samples)
        return [sample.key if uses[sample.key] == 1 else sample.name for sample in self.samples]

    def skip(self, reason: str, example: str, count: int = 1) -> None:
        self.skipped[reason] += count
        self.examples.setdefault(reason, example)

    def add(self, other: "ShardScan") -> None:
        self.samples += other.samples
        self.skipped += other.skipped
        self.faults += other.faults
        self.examples = {**other.examples, **self.examples}
        self.ignored += other.ignored

    def summary(self) -> str:
        """`9,871 used, 129 skipped (empty_text 60, image_truncated 41), 1 shard fault`."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.skipped.most_common())
        skipped = f"{self.skipped.total():,} skipped{f' ({reasons})' if reasons else ''}"
        faults = f"{len(self.faults):,} shard fault{'' if len(self.faults) == 1 else 's'}"
        return f"{len(self.samples):,} used, {skipped}, {faults}"


def scan_shard(path: str | Path, limits: ReaderLimits = DEFAULT_LIMITS) -> ShardScan:
    """Every usable sample of one shard, in a single pass that decodes no image and finds at most one fault."""
    (path,) = _regular_files([path])
    scan, gatherer, damage = ShardScan(), SampleGatherer(limits), []
    with open(path, "rb") as file:
        try:
            for member in tar_members(file.fileno()):
                gatherer.add(member, partial(os.pread, file.fileno(), member.size, member.offset))
        except (TarDamage, ShardOverflow) as fault:
            damage.append(f"{fault} after sample {gatherer.last_key}" if gatherer.last_key else str(fault))

    def skip(reason: str, key: str, count: int = 1) -> None:
        scan.skip(reason, f"{path.name}:{key}", count)

    for found in gatherer.finish(skip, scan.ignored):
        image = found.image
        scan.samples.append(
            ShardSample(found.key, path, image.name, image.offset, image.size, found.text, found.fields)
        )
    damage += _differences_from_index(path, len(scan.samples))
    scan.faults += [ShardFault(str(path), "; ".join(damage))] if damage else []
    return scan


def scan_shards(paths: Iterable[str | Path], limits: ReaderLimits = DEFAULT_LIMITS) -> ShardScan:
    """All the shards' samples in order. Raises DataError if a shard is missing or no shard has a usable sample."""
    scan, files = ShardScan(), _regular_files(paths)
    for path in files:
        scan.add(scan_shard(path, limits))
    if not scan.samples:
        where = f"{files[0]}{f' and {len(files) - 1:,} more' if len(files) > 1 else ''}"
        faults = "".join(f"; {fault.shard}: {fault.reason}" for fault in scan.faults[:5])
        raise DataError(f"no usable sample in {where}: {scan.summary()}{faults}")
    return scan


def verify_shards(paths: Iterable[str | Path], limits: ReaderLimits = DEFAULT_LIMITS) -> ShardScan:
    """As `scan_shards`, but decodes every image and compares every SHA-256 with `index.json`.

    That nothing is usable is a result, not an error. Raises DataError if a shard is missing.
    """
    from vision.decoding.image import ImageError, ImageLimits, decode_image

    image_limits = ImageLimits(max_bytes=limits.max_member_bytes, max_pixels=limits.max_pixels)
    total = ShardScan()
    for path in _regular_files(paths):
        scan = scan_shard(path, limits)
        samples, scan.samples = scan.samples, []
        for sample in samples:
            try:
                decode_image(sample.read_image(), name=sample.name, limits=image_limits)
                scan.samples.append(sample)
            except ImageError as error:
                scan.skip(f"image_{error.reason}", sample.name)
        _compare_sha256(path, scan)
        total.add(scan)
    return total


def check_bad_share(scan: ShardScan, max_bad_fraction: float = 0.1) -> None:
    """Raises DataError if too large a share was skipped, with the commonest reasons and an example of each."""
    bad, seen = scan.skipped.total(), scan.skipped.total() + len(scan.samples)
    if bad > max_bad_fraction * seen:
        reasons = ", ".join(f"{why} {n:,} (as {scan.examples[why]})" for why, n in scan.skipped.most_common(5))
        raise DataError(
            f"{bad:,} of {seen:,} samples are unusable, the limit is {max_bad_fraction:.0%}: {reasons}; "
            "mend the shards or raise max_bad_fraction"
        )


def _regular_files(paths: Iterable[str | Path]) -> list[Path]:
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
    return files


def _index_entry(path: Path) -> dict[str, Any]:
    """What the index.json beside a shard says of it, if anything. Raises ValueError if it is unreadable."""
    index = path.with_name(INDEX_NAME)
    if not index.is_file():
        return {}
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise Unusable("too_large")
        entry = parse_object(index.read_bytes()).get(path.name, {})
    except Unusable as fault:
        raise ValueError(f"the {INDEX_NAME} beside it is unreadable ({fault})") from None
    types = {"samples": int, "bytes": int, "sha256": str}
    if not isinstance(entry, dict) or any(not isinstance(entry.get(key, kind()), kind) for key, kind in types.items()):
        raise ValueError(f"the {INDEX_NAME} beside it has no readable entry for it")
    return entry


def _differences_from_index(path: Path, samples: int) -> list[str]:
    try:
        entry = _index_entry(path)
    except ValueError as error:
        return [str(error)]
    found, differences = {"samples": samples, "bytes": path.stat().st_size}, []
    for what, count in found.items():
        if entry.get(what, count) != count:
            differences.append(f"{INDEX_NAME} says {entry[what]:,} {what}, read {count:,}")
    return differences


def _compare_sha256(path: Path, scan: ShardScan) -> None:
    try:
        expected = _index_entry(path).get("sha256")
    except ValueError:
        return  # scan_shard has named it
    if expected is None:
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        reason = f"SHA-256 differs from {INDEX_NAME}"
        earlier = [fault.reason for fault in scan.faults]
        scan.faults = [ShardFault(str(path), "; ".join([*earlier, reason]))]
