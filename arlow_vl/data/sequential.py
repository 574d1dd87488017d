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
    A batch holds samples of one source, named in batch["source"]. The next sample that is not drawn stands in for an
    unusable one, which is left out where there is none.

    Each of several ranks reads every `ranks`-th batch of each source. All yield equally many: where a rank has none, or
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
            drawn = _drawn(source, np.arange(size))
            places = np.argsort(drawn)
            ordered = drawn[places]
            for first in range(0, size, count * self.ranks):
                start = first + self.rank * count
                items, keys = self._read(source, drawn, ordered, places[start : start + count].tolist())
                if items:
                    yield {**self.collate(items), "keys": keys, "source": source.name}
                else:
                    yield {**self.collate([self._any(source)]), "keys": [], "source": source.name, "is_filler": True}

    def _any(self, source: Source) -> Any:
        """Returns the first usable item; unusable ones before it are not counted."""
        for index in range(len(source.dataset)):
            with contextlib.suppress(*UNUSABLE):
                return source.dataset[index]
        raise DataError(f"source {source.name}: no sample can be used")

    def _read(
        self, source: Source, drawn: np.ndarray, ordered: np.ndarray, places: Sequence[int]
    ) -> tuple[list[Any], list[str]]:
        """Reads the usable samples at some places of the draw; `ordered` is the draw in the order of the data."""
        items, keys = [], []
        for place in places:
            for index in _candidates(source, drawn, place):
                try:
                    items.append(source.dataset[index])
                except UNUSABLE as error:
                    is_first = _is_first(source, ordered, index)
                    self.readers[source.name].note(Fault.of(source.name, self.passes, error, is_first=is_first))
                    continue
                keys.append(f"{source.name}:{source.dataset.key(index)}")
                break
        return items, keys

    def _size(self, source: Source) -> int:
        size = len(source.dataset)
        return size if self.max_samples is None else min(size, self.max_samples)


def _candidates(source: Source, drawn: np.ndarray, place: int) -> Iterator[int]:
    """Yields the sample at a place of the draw, then its stand-ins: every n-th of the order after a draw of n, so that
    no sample stands in for two, whatever the number of ranks."""
    yield int(drawn[place])
    for later in range(place + len(drawn), len(source.dataset), len(drawn)):
        yield int(_drawn(source, np.array([later]))[0])


def _is_first(source: Source, ordered: np.ndarray, index: int) -> bool:
    """Returns True if a fault of an image counts at this text: the first of its sample that is drawn or, where none is
    drawn, the first. So the count does not depend on what another rank reads."""
    place = int(np.searchsorted(ordered, index))
    is_drawn = bool(place < len(ordered) and ordered[place] == index)
    around = ([place - 1] if place else []) + ([place] if place < len(ordered) and not is_drawn else [])
    if any(source.are_of_one_sample(int(ordered[one]), index) for one in around):
        return False
    return is_drawn or index == 0 or not source.are_of_one_sample(index - 1, index)


def _drawn(source: Source, places: np.ndarray) -> np.ndarray:
    return shuffled_order(0, source.name, 0, len(source.dataset), places)
