"""Samples by number from indexes that are memory-mapped and never read as a whole.

Opening reads only headers. A sample costs one row of a mapped file and one `pread` of its record, at any position.
"""

import hashlib
import mmap
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped

from arlow_vl.data.index.header import SHARDS, Header, base_of
from arlow_vl.data.index.records import ROW, compact, read_images, read_record, refs, task_bits
from arlow_vl.data.remote import unpinned
from arlow_vl.data.samples import TASKS, ImageRef, Sample, TextTask
from arlow_vl.errors import DataError
from arlow_vl.printing import visible

MOST_OPEN = 128
"""Maximum number of indexes with open files: each takes two descriptors, and many systems give a process 1,024."""

ABSENT = object()


class Index:
    """The samples of one source by number. Its files are opened on first use."""

    def __init__(self, folder: Path, header: Header, address: str | None = None) -> None:
        self.folder = folder
        self.header = header
        self.address = address
        """Address of the remote shard that holds all images; None: the data are local."""
        self.base = base_of(folder, header)
        self._files: _Files | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of keys, texts and images, independent of where the data lie."""
        return self.header.fingerprint

    @property
    def shard(self) -> str:
        """File name of a shard, with which the keys of its samples begin."""
        return os.path.basename(self.header.files[0].name)

    @property
    def place(self) -> str:
        """Folder of the data, or their address up to the last slash."""
        return str(self.base) if self.address is None else unpinned(self.address)[0].rpartition("/")[0]

    def __len__(self) -> int:
        return self.header.samples

    def sample(self, position: int) -> Sample:
        if not 0 <= position < len(self):
            raise IndexError(f"{self.header.source} has {len(self):,} samples, there is no sample {position:,}")
        files = self._open()
        start = int(files.rows["offset"][position])
        is_last = position + 1 == len(self)
        end = self.header.records_bytes if is_last else int(files.rows["offset"][position + 1])
        line = os.pread(files.records, end - start, start)
        if not line.endswith(b"\n"):
            raise self._damaged()
        sample = read_record(line, self.base, self.folder / self.header.images_name)
        if self.address is None:
            return sample
        images = tuple(image._replace(path=self.address) for image in refs(sample))
        return Sample(sample.key, images, sample.texts, sample.fields)

    def images(self) -> Iterator[ImageRef]:
        """Yields all images in the order of the samples; a remote shard's with the path where it lay when indexed."""
        own_images = self.folder / self.header.images_name
        with open(self.folder / self.header.records_name, "rb") as file:
            for line in file:
                try:
                    yield from read_images(line, self.base, own_images)
                except ValueError:
                    raise self._damaged() from None

    def key(self, position: int) -> str:
        return self.sample(position).key

    @property
    def rows(self) -> Shaped[np.ndarray, " samples"]:
        """A row for each sample, mapped: see `records.ROW`."""
        return self._open().rows

    @property
    def lengths(self) -> Integer[np.ndarray, " samples"]:
        """Characters of each sample's texts, mapped."""
        return self.rows["characters"]

    def count(self, tasks: Iterable[TextTask] = TASKS) -> int:
        """Returns the number of samples that have a text of one of the tasks, from the header."""
        bits = task_bits(tasks)
        return sum(count for has, count in self.header.tasks.items() if int(has) & bits)

    def select(self, tasks: Iterable[TextTask]) -> Integer[np.ndarray, " selected"]:
        """Returns the numbers of the samples that have a text of one of the tasks."""
        tasks = list(tasks)
        if self.count(tasks) == len(self):
            return np.arange(len(self))
        chosen = np.zeros(len(self), dtype=bool)
        for task in tasks:
            chosen |= self.rows[task] > 0
        return np.flatnonzero(chosen)

    def close(self) -> None:
        """Closes the files; the next use opens them again."""
        self._files = None

    def _damaged(self) -> DataError:
        return DataError(f"{visible(str(self.folder))}: the index is damaged; remove it and run `arlow data index`")

    def _open(self) -> "_Files":
        files = self._files
        if files is None:
            files = self._files = _Files(self.folder, self.header)
        return files

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": None}


class _Files:
    """Open files of an index, closed with the last reference, so that a thread may drop them while another reads."""

    records = -1

    def __init__(self, folder: Path, header: Header) -> None:
        try:
            self.records = os.open(folder / header.records_name, os.O_RDONLY)
            self.rows = _mapped(folder / header.rows_name, header.samples)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{visible(str(folder))}: the index cannot be read ({visible(str(error))}); "
                "remove it and run `arlow data index`"
            ) from None

    def __del__(self) -> None:
        if self.records >= 0:
            os.close(self.records)


def _mapped(path: Path, number: int) -> Shaped[np.ndarray, " samples"]:
    """Maps the rows of a file that `np.save` wrote, twice as fast as `np.load`, which matters with many shards."""
    with open(path, "rb") as file:
        start = 10 + int.from_bytes(file.read(10)[8:], "little")  # magic, version, length of the header
        if os.fstat(file.fileno()).st_size != start + number * ROW.itemsize:
            raise ValueError(f"{path.name} does not have {number:,} rows")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, ROW, number, start)


class IndexedSamples:
    """The samples of several indexes, numbered in the order of the indexes; only those with texts of `tasks`."""

    def __init__(self, indexes: Sequence[Index], tasks: Iterable[TextTask] = TASKS) -> None:
        self.indexes = list(indexes)
        self.tasks = tuple(task for task in TASKS if task in set(tasks))
        self._folders = _folders_apart(self.indexes)
        counts = [index.count(self.tasks) for index in self.indexes]
        self.starts = np.cumsum([0, *counts])
        self._opened: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, position: int) -> Sample:
        return self.sample(position)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the indexes' fingerprints and the tasks, which identifies the samples and their order."""
        facts = [[index.fingerprint for index in self.indexes], self.tasks]
        return hashlib.sha256(compact(facts)).hexdigest()

    def sample(self, position: int) -> Sample:
        """Returns a sample with its texts of `tasks` only."""
        index, local = self.locate(position)
        sample = index.sample(local)
        texts = tuple(text for text in sample.texts if text.task in self.tasks)
        return Sample(self._folders.get(index, "") + sample.key, sample.images, texts, sample.fields)

    def key(self, position: int) -> str:
        """Returns the key of a sample, in shards as `train-000017.tar:000413`, or `a/train-...` if two shards have the
        same name."""
        index, local = self.locate(position)
        return self._folders.get(index, "") + index.key(local)

    def locate(self, position: int) -> tuple[Index, int]:
        """Returns the index that holds a sample, and the sample's number in it."""
        if not 0 <= position < len(self):
            raise IndexError(f"there are {len(self):,} samples, there is no sample {position:,}")
        number = int(np.searchsorted(self.starts, position, side="right")) - 1
        chosen, local = self._use(number), position - int(self.starts[number])
        return self.indexes[number], local if chosen is None else int(chosen[local])

    def rows(self, positions: Integer[np.ndarray, " positions"]) -> Shaped[np.ndarray, " positions"]:
        """Returns the rows of many samples (see `records.ROW`), fastest if neighbours are in the same index."""
        rows = np.empty(len(positions), ROW)
        numbers = np.searchsorted(self.starts, positions, side="right") - 1
        for number in np.unique(numbers).tolist():
            here = numbers == number
            chosen, local = self._use(number), positions[here] - self.starts[number]
            rows[here] = self.indexes[number].rows[local if chosen is None else chosen[local]]
        return rows

    def _use(self, number: int) -> Any:
        """Returns the numbers of an index's chosen samples, None: all of them; closes the least recently used index."""
        chosen = self._opened.pop(number, ABSENT)  # atomic steps, as threads may share this
        if chosen is ABSENT:
            index = self.indexes[number]
            chosen = None if index.count(self.tasks) == len(index) else index.select(self.tasks)
        self._opened[number] = chosen
        if len(self._opened) > MOST_OPEN:
            self.indexes[self._opened.popitem(last=False)[0]].close()
        return chosen

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": OrderedDict()}


def _folders_apart(indexes: Sequence[Index]) -> dict[Index, str]:
    """Returns the prefix, such as `a/`, for keys of shards with the same name, as img2dataset writes into folders."""
    shards = [index for index in indexes if index.header.format == SHARDS]
    uses = Counter(index.shard for index in shards)
    if len(uses) == len(shards):
        return {}
    folders = {index: index.place.split("/") for index in shards}
    common = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*folders.values(), strict=False))))
    return {
        index: "".join(f"{folder}/" for folder in parts[common:])
        for index, parts in folders.items()
        if uses[index.shard] > 1
    }
