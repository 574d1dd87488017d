"""The items of a source that turn out unusable while a run goes on: told, counted by reason, limited.

Every item comes once an epoch, so that the items counted in one epoch are different ones: the count is exact, and takes
a few numbers however many there are.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from arlow_vl.errors import DataError
from arlow_vl.printing import number_of, visible
from vision.decoding.image import ImageError

logger = logging.getLogger(__name__)


class TextError(ValueError):
    """A text that cannot be used: `name` says which, `reason` is one stable snake_case word."""

    def __init__(self, name: str, reason: str, detail: str) -> None:
        super().__init__(name, reason, detail)
        self.name, self.reason, self.detail = name, reason, detail

    def __str__(self) -> str:
        return visible(f"{self.name}: {self.detail}")


UNUSABLE = (ImageError, TextError)
"""What costs an item, and not the run."""
TOLD = 5
"""Unusable items of a source that are named when they are met; the others are counted."""
NAME_CHARACTERS = 200
"""Of a name that are kept."""


class Fault(NamedTuple):
    """An item whose image or text could not be used in an epoch of a source."""

    source: str
    epoch: int
    name: str
    reason: str
    sentence: str

    @classmethod
    def of(cls, source: str, epoch: int, error: ImageError | TextError) -> "Fault":
        return cls(source, epoch, error.name, error.reason, f"{error} ({error.reason})")


OnFault = Callable[[Fault], None]
"""Is told every item that turns out unusable, again in each epoch."""


class BadItems:
    """What is known of the unusable items of a source."""

    def __init__(self, source: str, max_bad: int, on_fault: OnFault = lambda fault: None) -> None:
        self.source = source
        self.max_bad = max_bad
        self.on_fault = on_fault
        self.bad: dict[str, str] = {}
        """The reason of the first ones, by name."""
        self.counts: dict[int, Counter[str]] = {}
        """Of each epoch that is under way, by reason."""
        self.fullest: Counter[str] = Counter()
        """Of the finished epoch that had most."""

    def note(self, fault: Fault) -> None:
        """Raises DataError if more are unusable in the epoch than may be."""
        self.on_fault(fault)
        counts = self.counts.setdefault(fault.epoch, Counter())
        counts[fault.reason] += 1
        if counts.total() > self.max_bad:
            allowed = f"the limit is {self.max_bad:,} (max_bad_fraction)"
            raise DataError(
                f"{fault.sentence}; source {self.source}: {summary_of(counts.elements())}, {allowed}; "
                "`arlow data verify` lists all such samples"
            )
        name = fault.name[:NAME_CHARACTERS]
        if name not in self.bad and len(self.bad) < TOLD:
            self.bad[name] = fault.reason
            logger.warning(f"source {self.source}: {fault.sentence}; it is skipped")

    def finish(self, epoch: int) -> None:
        """Says that the epochs before this one are over."""
        for over in [number for number in self.counts if number < epoch]:
            counts = self.counts.pop(over)
            if counts.total() > self.fullest.total():
                self.fullest = counts

    def summary(self) -> str:
        """Of the epoch that had most: `3 samples skipped (truncated 2, corrupt 1)`."""
        return summary_of(max([self.fullest, *self.counts.values()], key=Counter.total).elements())

    def state_dict(self) -> dict[str, Any]:
        counts = {epoch: dict(counts) for epoch, counts in self.counts.items()}
        return {"first": dict(self.bad), "counts": counts, "fullest": dict(self.fullest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bad = dict(state["first"])
        self.counts = {int(epoch): Counter(counts) for epoch, counts in state["counts"].items()}
        self.fullest = Counter(state["fullest"])


def merged_counts(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The state of one `BadItems` that has met all that these have. Finished epochs are told by their fullest part."""
    counts: dict[int, Counter[str]] = {}
    first: dict[str, str] = {}
    for state in states:
        first = {**state["first"], **first}
        for epoch, some in state["counts"].items():
            counts.setdefault(int(epoch), Counter()).update(some)
    fullest = max((Counter(state["fullest"]) for state in states), key=Counter.total)
    kept = dict(list(first.items())[:TOLD])
    return {"first": kept, "counts": {e: dict(c) for e, c in counts.items()}, "fullest": dict(fullest)}


def summary_of(reasons: Iterable[str]) -> str:
    """`3 samples skipped (truncated 2, corrupt 1)`."""
    counts = Counter(reasons)
    told = ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common())
    return f"{number_of(counts.total(), 'sample')} skipped ({told})"
