"""Writes an index: records and rows as they come, the header last.

Two processes that index the same data at once do no harm: they write the same files under the same names.
"""

import contextlib
import errno
import hashlib
import os
import struct
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np

from arlow_vl.data.index.header import Header, LeftOut, file_of, write_header
from arlow_vl.data.index.images import read_range
from arlow_vl.data.index.reading import Index
from arlow_vl.data.index.records import COUNTED, ROW, compact, identity, row_of, seen_from, task_bits, written_record
from arlow_vl.data.samples import TASKS, ImageRef, Sample, TextTask
from arlow_vl.data.shard_faults import ShardFault
from arlow_vl.data.shard_samples import BadSample
from arlow_vl.errors import DataError, ResourceError
from arlow_vl.printing import visible
from vision.whole_files import STALE_SECONDS, put_in_place, remove_remains, write_whole

ROW_BYTES = struct.Struct("<QQII" + "I" * len(TASKS))
READ_AHEAD = 64  # samples per thread
BUFFER = 2**20
CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
"""Errors of a folder that this user may not write, as opposed to a full disk."""


@runtime_checkable
class Tally(Protocol):
    """Samples and texts that a source leaves out; see `formats.tally`."""

    @property
    def bad(self) -> Sequence[BadSample]: ...

    @property
    def bad_texts(self) -> Sequence[BadSample]: ...

    @property
    def faults(self) -> Sequence[ShardFault]: ...


@runtime_checkable
class Source(Protocol):
    """Samples of a file or folder, in an order that is always the same; see `formats.detect`."""

    @property
    def format(self) -> str: ...

    @property
    def files(self) -> Sequence[Path]:
        """Files that the samples depend on, except images, which are identified by their SHA-256."""
        ...

    @property
    def tally(self) -> Tally:
        """Complete when `iterate` is exhausted."""
        ...

    def iterate(self) -> Iterator[Sample]: ...

    def close(self) -> None:
        """Releases the files, of which nothing more is read."""
        ...


def write_index(
    folder: Path,
    source: Source,
    *,
    name: str,
    base: Path,
    threads: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Index:
    """Reads every sample and the bytes of every image of a source, and writes its index into `folder`.

    Args:
        name: Name of the source in messages and keys.
        base: Folder of the source; paths in it are written relative to it.
        threads: Threads that read images.
        progress: Called with the number of samples so far.

    Raises:
        DataError: a file is written to meanwhile.
        ResourceError: the disk is full.
        OSError: the folder cannot be written at all.
    """
    paths = sorted(map(Path, source.files))
    before = [_state(path) for path in paths]
    with _Writer(folder, base, paths) as writer:
        for done, sample in enumerate(_with_sha256(source.iterate(), threads), start=1):
            writer.add(sample)
            progress(done)
        writer.bad += source.tally.bad
        files = tuple(file_of(path, seen_from(base, str(path))) for path in paths)
        for path, file, state in zip(paths, files, before, strict=True):
            if (file.size, file.mtime_ns) != state:
                raise DataError(f"{visible(str(path))} is written to while it is indexed; index it when it is whole")
        header = writer.finish(
            source.tally.bad_texts, source=name, format=source.format, files=files, faults=tuple(source.tally.faults)
        )
    return Index(folder, header)


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def _with_sha256(samples: Iterable[Sample], threads: int) -> Iterator[Sample | BadSample]:
    """Yields the samples in order, their images read and hashed by `threads`; hashing releases the GIL."""
    if threads == 1:
        yield from map(_hashed, samples)
        return
    with ThreadPoolExecutor(threads) as pool:
        coming: deque = deque()
        for sample in samples:
            coming.append(pool.submit(_hashed, sample))
            if len(coming) > READ_AHEAD * threads:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _hashed(sample: Sample) -> Sample | BadSample:
    """Returns the sample with the SHA-256 of every `ImageRef`, or a `BadSample` if an image cannot be read."""
    images: list[ImageRef | bytes] = []
    for image in sample.images:
        if isinstance(image, ImageRef) and not image.sha256:
            try:
                image = image._replace(sha256=hashlib.sha256(read_range(image)).digest())
            except DataError as error:
                return BadSample(sample.key, "image_unreadable", detail=f": {error}", image_files=(image.path,))
        images.append(image)
    return Sample(sample.key, tuple(images), sample.texts, sample.fields)


class _Writer:
    """Files of an index while they are written, under temporary names."""

    def __init__(self, folder: Path, base: Path, files: Sequence[Path]) -> None:
        self.folder = folder
        self.base = base
        self._files = set(map(str, files))
        self._has_own_files = False
        self.bad: list[BadSample] = []
        self._rows = bytearray()
        self._tasks: Counter[int] = Counter()
        self._bytes = 0
        self._fingerprint, self._content = hashlib.sha256(), hashlib.sha256()
        self._partial = {what: folder / f".{what}.{uuid.uuid4().hex[:8]}.partial" for what in ("records", "images")}
        self._images: BinaryIO | None = None

    def __enter__(self) -> "_Writer":
        with _full_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_remains(self.folder)
            self._records = open(self._partial["records"], "wb", buffering=BUFFER)
            self._begun_ns = os.fstat(self._records.fileno()).st_ctime_ns
        return self

    def __exit__(self, *_: object) -> None:
        for file in filter(None, (self._records, self._images)):
            with contextlib.suppress(OSError):  # flushing finds the disk still full
                file.close()
        for partial in self._partial.values():
            with contextlib.suppress(OSError):
                partial.unlink()

    def add(self, sample: Sample | BadSample) -> None:
        if isinstance(sample, BadSample):
            self.bad.append(sample)
            return
        self._has_own_files |= any(isinstance(i, ImageRef) and i.path not in self._files for i in sample.images)
        with _full_disk(self.folder):
            sample = self._placed(sample)
            record = written_record(sample, self.base)
            self._records.write(record)
        self._content.update(record)
        self._fingerprint.update(identity(sample))
        self._rows += ROW_BYTES.pack(*row_of(sample, self._bytes))
        self._tasks[task_bits(text.task for text in sample.texts)] += 1
        self._bytes += len(record)

    def _placed(self, sample: Sample) -> Sample:
        """Returns the sample with images that are bytes written to the index's file of images."""
        images = tuple(self._lay(image) if isinstance(image, bytes) else image for image in sample.images)
        return Sample(sample.key, images, sample.texts, sample.fields)

    def _lay(self, image: bytes) -> ImageRef:
        if self._images is None:
            self._images = open(self._partial["images"], "wb", buffering=BUFFER)  # noqa: SIM115
        place = ImageRef("", self._images.tell(), len(image), hashlib.sha256(image).digest())
        self._images.write(image)
        return place

    def finish(self, bad_texts: Sequence[BadSample], **facts: Any) -> Header:
        """Renames all files to their final names, and writes the header last."""
        rows = np.frombuffer(self._rows, ROW)
        bad = {"sample": self.bad, "text": bad_texts}
        lines = (compact({"what": what, **one._asdict()}) + b"\n" for what, listed in bad.items() for one in listed)
        header = Header(
            base=_base_seen_from(self.folder, self.base),
            samples=len(rows),
            tasks={str(bits): count for bits, count in sorted(self._tasks.items())},
            totals={name: int(rows[name].sum(dtype=np.int64)) for name in COUNTED},
            bad=_left_out(self.bad, None),
            bad_texts={task: left_out for task in TASKS if (left_out := _left_out(bad_texts, task))},
            fingerprint=self._fingerprint.hexdigest(),
            records_bytes=self._bytes,
            images_read_ns=self._begun_ns if self._has_own_files else None,
            content=self._content.hexdigest(),
            **facts,
        )
        with _full_disk(self.folder):
            write_whole(self.folder / header.rows_name, lambda file: np.save(file, rows))
            write_whole(self.folder / header.bad_name, b"".join(lines))
            self._records.close()
            put_in_place(self._partial["records"], self.folder / header.records_name)
            if self._images is not None:
                self._images.close()
                put_in_place(self._partial["images"], self.folder / header.images_name)
            write_header(self.folder, header)
        _remove_old(self.folder, header)
        return header


def _left_out(bad: Sequence[BadSample], task: TextTask | None) -> dict[str, LeftOut]:
    left_out: dict[str, LeftOut] = {}
    for one in (one for one in bad if one.task == task):
        count, example = left_out.get(one.reason, LeftOut(0, f"{one.name}{one.detail}"))
        left_out[one.reason] = LeftOut(count + one.count, example)
    return left_out


def _base_seen_from(folder: Path, base: Path) -> str:
    """Returns `../..` for an index inside its data, so that both may move together; else the absolute folder."""
    return os.path.relpath(base, folder) if folder.is_relative_to(base) else str(base)


def _remove_old(folder: Path, header: Header) -> None:
    """Removes files of earlier headers that are an hour old, which no process is about to open any more."""
    for path in folder.glob("*-*"):
        is_ours = path.name in (header.records_name, header.rows_name, header.images_name, header.bad_name)
        with contextlib.suppress(OSError):
            if not is_ours and time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


@contextlib.contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in CANNOT_WRITE:
            raise
        raise ResourceError(
            f"the index cannot be written to {visible(str(folder))} ({error.strerror}); make room there, "
            "or set XDG_CACHE_HOME to a folder with room if it is the cache"
        ) from None
