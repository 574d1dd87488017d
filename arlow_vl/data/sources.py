"""Sources of loaders: named data sets, and how many items of each a batch holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

Batch = dict[str, Any]
Collate = Callable[[list[Any]], Batch]


@runtime_checkable
class Dataset(Protocol):
    """Items by index. `fingerprint` differs when any item does; `key(i)` names an item in messages.

    `__getitem__` may raise ImageError or TextError for an item that cannot be used. To be packed into rows a data set
    has `length(i)`, see `rows.Length`, which does not read the item. One whose samples have several consecutive items
    has `sample_of(i)`, the sample's number.
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
    """Items of the source."""
    samples_per_batch: int = 1
    """Items in each batch; where rows are packed, the mixture decides instead."""
    max_bad: int = 0
    """Limit on the samples whose image turns out unusable in an epoch of a run; one more ends the run."""
    max_bad_texts: int = 0
    """Limit on the texts that turn out unusable in an epoch of a run; one more ends the run."""

    def __post_init__(self) -> None:
        if len(self.dataset) == 0:
            raise ValueError(f"source {self.name} has no samples")
        if self.samples_per_batch < 1:
            raise ValueError(
                f"samples_per_batch of source {self.name} must be at least 1, got {self.samples_per_batch}"
            )

    def are_of_one_sample(self, first: int, second: int) -> bool:
        """Returns True if two different items belong to one sample."""
        sample_of = getattr(self.dataset, "sample_of", None)
        return sample_of is not None and sample_of(first) == sample_of(second)


def with_different_names(sources: Sequence[Source]) -> tuple[Source, ...]:
    """Returns the sources. Raises ValueError if two have one name, or there is none."""
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"sources need different names and at least one source, got {names}")
    return tuple(sources)
