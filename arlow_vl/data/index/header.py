"""The header of an index: its files, its counts and what was left out. Opening an index reads only its header."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from arlow_vl.data.same_files import has_other_bytes
from arlow_vl.data.samples import TextTask
from arlow_vl.data.shard_faults import ShardFault
from arlow_vl.errors import DataError
from arlow_vl.printing import visible
from vision.whole_files import sha256_of_file, write_whole

VERSION = 2
HEADER_NAME = "header.json"
SHARDS = "webdataset"
"""The format whose files have an index each; any other has one index for all its files."""


class File(NamedTuple):
    """A file that an index was made of."""

    name: str
    """Path relative to the folder of the source, or absolute."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last write, in nanoseconds."""
    sha256: str
    ctime_ns: int = 0
    """Time of the last change, also of its times and permissions, in nanoseconds; while size and times are the same,
    its bytes are not read again. 0: not noted."""


class LeftOut(NamedTuple):
    count: int
    example: str
    """The first one, with details."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """Facts of an index. They are written last, so an index that has a header is complete."""

    version: int = VERSION
    source: str
    """Last part of the source's path."""
    format: str
    base: str
    """Folder that the records' paths are relative to; itself relative to the index's folder, or absolute."""
    files: tuple[File, ...]
    samples: int
    tasks: dict[str, int]
    """Number of samples by the set of tasks that they have texts of, as bits (see `records.task_bits`)."""
    totals: dict[str, int]
    """Numbers of images, of their bytes, of characters, and of texts of each task."""
    bad: dict[str, LeftOut]
    """Samples that were left out, by reason; the file `bad_name` names each."""
    bad_texts: dict[TextTask, dict[str, LeftOut]]
    """Texts that were left out of samples that are used, by task and reason."""
    faults: tuple[ShardFault, ...]
    """Damage to files as a whole; samples before the damage are used."""
    fingerprint: str
    """SHA-256 of the samples' keys, texts and images, independent of where the data lie."""
    records_bytes: int
    images_read_ns: int | None
    """Time of the file system, in nanoseconds, before image files were read and hashed; None: there are none."""
    content: str
    """SHA-256 of the records. It is in the names of the other files, so a header never opens those of another one."""

    @property
    def records_name(self) -> str:
        return f"records-{self.content[:16]}.jsonl"

    @property
    def rows_name(self) -> str:
        return f"rows-{self.content[:16]}.npy"

    @property
    def images_name(self) -> str:
        """Name of the file with images that cannot be read in place, one after another."""
        return f"images-{self.content[:16]}.bin"

    @property
    def bad_name(self) -> str:
        return f"bad-{self.content[:16]}.jsonl"


def write_header(folder: Path, header: Header) -> None:
    write_whole(folder / HEADER_NAME, json.dumps(asdict(header), ensure_ascii=True) + "\n")


def read_header(folder: Path) -> Header | None:
    """Returns None where there is no index, or one of another version or a damaged one, which is to be built again."""
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
    """Returns the first difference from the files that it was made of, as a clause for messages; None: no difference.

    A file that was touched but has the same bytes does not differ; its new time is noted, so that it is hashed once.
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
        with contextlib.suppress(OSError):  # a read-only folder: the bytes are compared again next time
            write_header(folder, replace(header, files=tuple(files)))
    return None


def file_of(path: Path, name: str) -> File:
    """Returns the facts of a file, which is hashed. Raises DataError if it is written to meanwhile."""
    before = path.stat()
    sha256, after = sha256_of_file(path), path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(f"{visible(str(path))} is written to while it is indexed; index it when it is whole")
    return File(name, after.st_size, after.st_mtime_ns, sha256, after.st_ctime_ns)


def bad_samples(folder: Path, header: Header) -> Iterator[dict[str, Any]]:
    """Yields what was left out: `name`, `reason`, `members`, `count`, `detail`, and `what`, "sample" or "text"."""
    with open(folder / header.bad_name, encoding="utf-8") as file:
        yield from map(json.loads, file)
