"""Batches as a pure function of seed and position, so that a killed run goes on where it stopped.

Lightning stores `state_dict()` in its checkpoints. It fetches no batch ahead of a loader that has a length, so the
position is the number of batches that were trained on. One "epoch" of Lightning is the whole run, and the epochs of
the data are counted in here: no checkpoint ever meets an epoch's border.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

Batch = dict[str, Any]
Collate = Callable[[list[Any]], Batch]


@runtime_checkable
class Dataset(Protocol):
    """Items by index. `fingerprint` differs when any item does; `key(i)` names an item to people."""

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

    def __post_init__(self) -> None:
        if len(self.dataset) == 0:
            raise ValueError(f"source {self.name} has no samples")
        if self.samples_per_batch < 1:
            raise ValueError(
                f"samples_per_batch of source {self.name} must be at least 1, got {self.samples_per_batch}"
            )

    def read(self, indices: Sequence[int]) -> tuple[list[Any], list[str]]:
        """Items and their keys."""
        return [self.dataset[i] for i in indices], [f"{self.name}:{self.dataset.key(i)}" for i in indices]


class ResumableLoader:
    """The batches of a whole run. Iterating goes on from the position, also after `load_state_dict`.

    Sample p of a source is item `shuffled_order(...)[p % size]` of its epoch p // size.
    """

    def __init__(self, sources: Sequence[Source], collate: Collate, *, seed: int, num_batches: int) -> None:
        self.sources = _with_different_names(sources)
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
            some_items, some_keys = source.read(self.indices(source, position))
            items += some_items
            keys += some_keys
        return {**self.collate(items), "keys": keys}

    def indices(self, source: Source, position: int) -> list[int]:
        size, first = len(source.dataset), position * source.samples_per_batch
        samples = range(first, first + source.samples_per_batch)
        return [int(shuffled_order(self.seed, source.name, p // size, size)[p % size]) for p in samples]

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "fingerprint": self.fingerprint}

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

    A batch holds samples of one source, named in batch["source"].
    """

    def __init__(self, sources: Sequence[Source], collate: Collate, *, max_samples: int | None = None) -> None:
        self.sources = _with_different_names(sources)
        self.collate = collate
        self.max_samples = max_samples

    def __len__(self) -> int:
        return sum(-(-self._size(source) // source.samples_per_batch) for source in self.sources)

    def __iter__(self) -> Iterator[Batch]:
        for source in self.sources:
            size = self._size(source)
            for first in range(0, size, source.samples_per_batch):
                items, keys = source.read(range(first, min(first + source.samples_per_batch, size)))
                yield {**self.collate(items), "keys": keys, "source": source.name}

    def _size(self, source: Source) -> int:
        size = len(source.dataset)
        return size if self.max_samples is None else min(size, self.max_samples)
