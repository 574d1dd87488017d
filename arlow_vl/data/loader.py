"""Batches as a pure function of seed and position, so that a killed run goes on where it stopped.

Lightning stores `state_dict()` in its checkpoints. It fetches no batch ahead of a loader that has a length, so the
position is the number of batches that were trained on. One "epoch" of Lightning is the whole run, and the epochs of
the data are counted in here: no checkpoint ever meets an epoch's border.
"""

import functools
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from arlow_vl.errors import DataError
from vision.decoding.image import ImageError

logger = logging.getLogger(__name__)

TOLD = 5
"""Unusable images of a source that are named when they are met; the others are counted."""

Batch = dict[str, Any]
Collate = Callable[[list[Any]], Batch]


@runtime_checkable
class Dataset(Protocol):
    """Items by index. `fingerprint` differs when any item does; `key(i)` names an item to people.

    `__getitem__` may raise ImageError for an item whose image cannot be used.
    """

    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def key(self, index: int) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set and its share of every batch."""

    name: str
    """Names the source in sample keys and metrics."""
    dataset: Dataset
    """Where the items come from."""
    samples_per_batch: int
    """Items in each batch."""
    max_bad: int = 0
    """Images that may turn out unusable while a run goes on; one more ends it."""

    def __post_init__(self) -> None:
        if len(self.dataset) == 0:
            raise ValueError(f"source {self.name} has no samples")
        if self.samples_per_batch < 1:
            raise ValueError(
                f"samples_per_batch of source {self.name} must be at least 1, got {self.samples_per_batch}"
            )


class Reader:
    """Reads items of a source past those whose image cannot be used, and keeps count of them."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.bad: dict[str, str] = {}
        """The reason of each unusable image, by its name."""

    def read(self, indices: Iterable[int], *, stand_in: bool) -> tuple[list[Any], list[str]]:
        """Items and their keys. For an unusable one the next usable item of the data set stands in, or none does.

        Raises:
            DataError: more images are unusable than the source allows, or all are.
        """
        dataset, items, keys = self.source.dataset, [], []
        for index in indices:
            others = range(len(dataset)) if stand_in else range(1)
            for candidate in ((index + distance) % len(dataset) for distance in others):
                try:
                    items.append(dataset[candidate])
                except ImageError as error:
                    self._note(error)
                    continue
                keys.append(f"{self.source.name}:{dataset.key(candidate)}")
                break
        if stand_in and not items:
            raise DataError(f"source {self.source.name}: no image can be used, {self.summary()}")
        return items, keys

    def _note(self, error: ImageError) -> None:
        if error.name in self.bad:
            return
        self.bad[error.name] = error.reason
        if len(self.bad) > self.source.max_bad:
            allowed = f"the limit is {self.source.max_bad:,} (max_bad_fraction)"
            raise DataError(
                f"{error} ({error.reason}); source {self.source.name}: {self.summary()}, {allowed}; "
                "`arlow data verify` lists all such samples"
            )
        if len(self.bad) <= TOLD:
            logger.warning(f"source {self.source.name}: {error} ({error.reason}); it is skipped")

    def summary(self) -> str:
        """`3 images skipped (truncated 2, corrupt 1)`."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in Counter(self.bad.values()).most_common())
        return f"{len(self.bad):,} image{'s' * (len(self.bad) != 1)} skipped ({reasons})"


class ResumableLoader:
    """The batches of a whole run. Iterating goes on from the position, also after `load_state_dict`.

    Sample p of a source is item `shuffled_order(...)[p % size]` of its epoch p // size, or, where its image is
    unusable, the next usable item: batches keep their size, and depend on nothing but their position and the data.
    """

    def __init__(self, sources: Sequence[Source], collate: Collate, *, seed: int, num_batches: int) -> None:
        self.sources = _with_different_names(sources)
        self.readers = {source.name: Reader(source) for source in self.sources}
        self.collate = collate
        self.seed = seed
        self.num_batches = num_batches
        self.position = 0
        parts = [[s.name, len(s.dataset), s.dataset.fingerprint, s.samples_per_batch] for s in sources]
        self.fingerprint = hashlib.sha256(json.dumps([seed, parts]).encode()).hexdigest()

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        while self.position < self.num_batches:
            batch = self.read(self.position)
            self.position += 1
            yield batch

    def read(self, position: int) -> Batch:
        """Batch number `position`, whatever was read before; its "keys" name the samples."""
        items, keys = [], []
        for source in self.sources:
            some_items, some_keys = self.readers[source.name].read(self.indices(source, position), stand_in=True)
            items += some_items
            keys += some_keys
        return {**self.collate(items), "keys": keys}

    def indices(self, source: Source, position: int) -> list[int]:
        size, first = len(source.dataset), position * source.samples_per_batch
        samples = range(first, first + source.samples_per_batch)
        return [int(shuffled_order(self.seed, source.name, p // size, size)[p % size]) for p in samples]

    def state_dict(self) -> dict[str, Any]:
        bad = {name: dict(reader.bad) for name, reader in self.readers.items()}
        return {"position": self.position, "fingerprint": self.fingerprint, "bad": bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for a state of other data, another seed or other batch sizes."""
        if state.get("fingerprint") != self.fingerprint:
            raise ValueError(
                "the checkpoint belongs to other training data, another seed or another samples_per_batch; "
                "use the data it was trained on, or another run_dir to start anew"
            )
        position = state.get("position")
        if not isinstance(position, int) or not 0 <= position <= self.num_batches:
            raise ValueError(
                f"the checkpoint's loader position is {position!r}, this run has {self.num_batches} batches"
            )
        self.position = position
        for name, bad in state.get("bad", {}).items():
            self.readers[name].bad = dict(bad)


def _with_different_names(sources: Sequence[Source]) -> tuple[Source, ...]:
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"sources need different names and at least one source, got {names}")
    return tuple(sources)


@functools.lru_cache(maxsize=16)
def shuffled_order(seed: int, name: str, epoch: int, size: int) -> np.ndarray:
    """A permutation of range(size) that depends on the arguments only, not on the process or numpy's version."""
    digest = hashlib.sha256(json.dumps([seed, name, epoch]).encode()).digest()
    # numpy promises the raw stream of a bit generator for ever, the output of `permutation` not.
    return np.argsort(np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(size), kind="stable")


class SequentialLoader:
    """One pass in order over each source, in batches of its `samples_per_batch`; the same pass each time.

    A batch holds samples of one source, named in batch["source"]. Samples with an unusable image are left out.
    """

    def __init__(self, sources: Sequence[Source], collate: Collate, *, max_samples: int | None = None) -> None:
        self.sources = _with_different_names(sources)
        self.readers = {source.name: Reader(source) for source in self.sources}
        self.collate = collate
        self.max_samples = max_samples

    def __len__(self) -> int:
        return sum(-(-self._size(source) // source.samples_per_batch) for source in self.sources)

    def __iter__(self) -> Iterator[Batch]:
        for source in self.sources:
            size = self._size(source)
            for first in range(0, size, source.samples_per_batch):
                indices = range(first, min(first + source.samples_per_batch, size))
                items, keys = self.readers[source.name].read(indices, stand_in=False)
                if items:
                    yield {**self.collate(items), "keys": keys, "source": source.name}

    def _size(self, source: Source) -> int:
        size = len(source.dataset)
        return size if self.max_samples is None else min(size, self.max_samples)
