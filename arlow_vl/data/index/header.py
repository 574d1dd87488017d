"""The header of an index: what it was made of, what is in it, what was left out. It alone is read to open one."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from arlow_vl.data.same_files import has_other_bytes
from arlow_vl.data.samples import Task
from arlow_vl.data.shard_faults import ShardFault
from arlow_vl.errors import DataError
from arlow_vl.printing import visible
from vision.whole_files import sha256_of_file, write_whole

VERSION = 2
HEADER_NAME = "header.json"
SHARDS = "webdataset"
"""The format whose files have an index each; another has one for all its files."""


class File(NamedTuple):
    """A file that an index was made of."""

    name: str
    """As seen from the folder of the source, or absolute."""
    size: int
    """Bytes."""
    mtime_ns: int
    """When it was written last, in nanoseconds."""
    sha256: str
    ctime_ns: int = 0
    """When it was changed last, times and permissions included: while all is the same its bytes are not read."""


class LeftOut(NamedTuple):
    count: int
    example: str
    """The first of them."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """Written last, so that an index is whole where it has a header."""

    version: int = VERSION
    source: str
    """The last part of its path."""
    format: str
    base: str
    """Folder from which the records' paths are seen; seen from the index's own folder, or absolute."""
    files: tuple[File, ...]
    samples: int
    tasks: dict[str, int]
    """Number of samples by the tasks that they have texts of, as bits (see `records.task_bits`)."""
    totals: dict[str, int]
    """Of images, of their bytes, of characters, and of texts of each task."""
    bad: dict[str, LeftOut]
    """Samples that were left out, by reason; the file of bad ones names each."""
    bad_texts: dict[Task, dict[str, LeftOut]]
    """By task, texts that were left out of samples that are used."""
    faults: tuple[ShardFault, ...]
    """Damage to a file as a whole; what was whole before it is used."""
    fingerprint: str
    """SHA-256 of the samples' keys, texts and images, the same wherever the data lie."""
    records_bytes: int
    images_read_ns: int | None
    """The time of the file system before images in files of their own were read and hashed; None: there are none."""
    content: str
    """SHA-256 of the records; it is in the names of the other files, so that no header ever meets another's files."""

    @property
    def records_name(self) -> str:
        return f"records-{self.content[:16]}.jsonl"

    @property
    def rows_name(self) -> str:
        return f"rows-{self.content[:16]}.npy"

    @property
    def images_name(self) -> str:
        """Of images that have no place of their own, one behind the other."""
        return f"images-{self.content[:16]}.bin"

    @property
    def bad_name(self) -> str:
        return f"bad-{self.content[:16]}.jsonl"


def write_header(folder: Path, header: Header) -> None:
    write_whole(folder / HEADER_NAME, json.dumps(asdict(header), ensure_ascii=True) + "\n")


def read_header(folder: Path) -> Header | None:
    """None where there is no index, or one that another version or a damaged disk has written: it is made again."""
    try:
        facts = json.loads((folder / HEADER_NAME).read_bytes())
        if facts["version"] != VERSION:
            return None
        facts["files"] = tuple(File(*file) for file in facts["files"])
        facts["faults"] = tuple(ShardFault(**fault) for fault in facts["faults"])
        facts["bad"] = _read_left_out(facts["bad"])
        facts["bad_texts"] = {task: _read_left_out(bad) for task, bad in facts["bad_texts"].items()}
        return Header(**facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _read_left_out(bad: dict[str, Any]) -> dict[str, LeftOut]:
    return {reason: LeftOut(*left_out) for reason, left_out in bad.items()}


def base_of(folder: Path, header: Header) -> Path:
    return Path(os.path.normpath(folder / header.base))


def outdated(folder: Path, header: Header) -> str | None:
    """The first difference from the files that it was made of, to go on a sentence with; None: there is none.

    A file that was touched and has its old bytes is no difference; its new time is noted, so that it is read once.
    """
    base, files = base_of(folder, header), []
    for file in header.files:
        path = base / file.name
        try:
            state = path.stat()
        except OSError:
            return f"{visible(str(path))} is gone"
        if state.st_size != file.size:
            return f"{visible(str(path))} had {file.size:,} bytes and has {state.st_size:,}"
        if has_other_bytes(path, state, file):
            return f"{visible(str(path))} has other bytes"
        files.append(file._replace(mtime_ns=state.st_mtime_ns, ctime_ns=state.st_ctime_ns))
    if tuple(files) != header.files:
        with contextlib.suppress(OSError):  # a folder of others: the bytes are compared again next time
            write_header(folder, replace(header, files=tuple(files)))
    return None


def file_of(path: Path, name: str) -> File:
    """Raises DataError if the file is written to meanwhile."""
    before = path.stat()
    sha256, after = sha256_of_file(path), path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(f"{visible(str(path))} is written to while it is indexed; index it when it is whole")
    return File(name, after.st_size, after.st_mtime_ns, sha256, after.st_ctime_ns)


def bad_samples(folder: Path, header: Header) -> Iterator[dict[str, Any]]:
    """All that was left out: `name`, `reason`, `members`, `count`, `detail`, and `what`, which is sample or text."""
    with open(folder / header.bad_name, encoding="utf-8") as file:
        yield from map(json.loads, file)
