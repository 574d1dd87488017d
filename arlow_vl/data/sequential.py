"""Batches of one pass in order, for validation."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from arlow_vl.data.bad_items import UNUSABLE, BadItems, Fault, OnFault
from arlow_vl.data.order import shuffled_order
from arlow_vl.data.sources import Batch, Collate, Source, with_different_names
from arlow_vl.errors import DataError


class SequentialLoader:
    """One pass in order over each source, in batches of its `samples_per_batch`; the same pass each time.

    Where `max_samples` are fewer than a source has, they are a draw of all, not the first ones: files are often sorted.
    A batch holds samples of one source, named in batch["source"]. Unusable samples are left out.

    Of several ranks each reads every `ranks`-th batch of each source. All yield equally many: where a rank has none, or
    one without a usable sample, it yields a filler, batch["is_filler"], which is to be computed and not counted.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        collate: Collate,
        *,
        max_samples: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        on_fault: OnFault = lambda fault: None,
    ) -> None:
        self.sources = with_different_names(sources)
        self.readers = {s.name: BadItems(s.name, s.max_bad, s.max_bad_texts, on_fault) for s in self.sources}
        self.collate = collate
        self.max_samples = max_samples
        self.rank, self.ranks = rank, ranks
        self.passes = 0

    def __len__(self) -> int:
        return sum(-(-self._size(source) // (source.samples_per_batch * self.ranks)) for source in self.sources)

    def __iter__(self) -> Iterator[Batch]:
        self.passes += 1
        for source in self.sources:
            size, count = self._size(source), source.samples_per_batch
            self.readers[source.name].finish(self.passes)
            drawn = np.sort(shuffled_order(0, source.name, 0, len(source.dataset), np.arange(size))).tolist()
            for first in range(0, size, count * self.ranks):
                start = first + self.rank * count
                items, keys = self._read(source, drawn, range(start, min(start + count, size)))
                if items:
                    yield {**self.collate(items), "keys": keys, "source": source.name}
                elif self.ranks > 1:
                    yield {**self.collate([self._any(source)]), "keys": [], "source": source.name, "is_filler": True}

    def _any(self, source: Source) -> Any:
        """The first usable item, of which nothing is noted."""
        for index in range(len(source.dataset)):
            with contextlib.suppress(*UNUSABLE):
                return source.dataset[index]
        raise DataError(f"source {source.name}: no sample can be used")

    def _read(self, source: Source, drawn: Sequence[int], places: range) -> tuple[list[Any], list[str]]:
        items, keys = [], []
        for place in places:
            index = drawn[place]
            try:
                items.append(source.dataset[index])
            except UNUSABLE as error:
                is_first = place == 0 or not source.are_of_one_sample(drawn[place - 1], index)
                self.readers[source.name].note(Fault.of(source.name, self.passes, error, is_first=is_first))
                continue
            keys.append(f"{source.name}:{source.dataset.key(index)}")
        return items, keys

    def _size(self, source: Source) -> int:
        size = len(source.dataset)
        return size if self.max_samples is None else min(size, self.max_samples)
