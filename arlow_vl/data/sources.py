"""What loaders read: data sets by name, and how many items of each a batch holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

Batch = dict[str, Any]
Collate = Callable[[list[Any]], Batch]


@runtime_checkable
class Dataset(Protocol):
    """Items by index. `fingerprint` differs when any item does; `key(i)` names an item to people.

    `__getitem__` may raise ImageError or TextError for an item that cannot be used. To be packed into rows a data set
    tells `length(i)`, see `rows.Length`, without reading the item. One that has several items of a sample, in a row,
    tells `sample_of(i)`, the sample's number.
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
    samples_per_batch: int = 1
    """Items in each batch; where rows are packed, the mixture decides instead."""
    max_bad: int = 0
    """Samples whose image may turn out unusable in an epoch while a run goes on; one more ends it."""
    max_bad_texts: int = 0
    """The same of texts."""

    def __post_init__(self) -> None:
        if len(self.dataset) == 0:
            raise ValueError(f"source {self.name} has no samples")
        if self.samples_per_batch < 1:
            raise ValueError(
                f"samples_per_batch of source {self.name} must be at least 1, got {self.samples_per_batch}"
            )

    def are_of_one_sample(self, first: int, second: int) -> bool:
        """Of two different items."""
        sample_of = getattr(self.dataset, "sample_of", None)
        return sample_of is not None and sample_of(first) == sample_of(second)


def with_different_names(sources: Sequence[Source]) -> tuple[Source, ...]:
    """The sources. Raises ValueError where two have one name, or there is none."""
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"sources need different names and at least one source, got {names}")
    return tuple(sources)
