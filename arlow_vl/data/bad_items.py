"""Items of a source that turn out unusable during a run: reported, counted by reason, limited.

An unusable image counts once per sample: where each text is an item, at the sample's first text. An unusable text
counts by itself. Every item comes once an epoch, so none is counted twice in one: the count is exact and takes a few
numbers, however many items there are. Each rank counts what it meets; the sum does not depend on the number of ranks.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from arlow_vl.errors import DataError
from arlow_vl.printing import number_of, visible
from vision.decoding.image import ImageError

logger = logging.getLogger(__name__)


TEXT_REASONS = frozenset({"text_without_room"})
"""Reasons why a text is unusable, as stable snake_case words; all other reasons concern images."""


class TextError(ValueError):
    """A text that cannot be used: `name` says which, `reason` is one of `TEXT_REASONS`."""

    def __init__(self, name: str, reason: str, detail: str) -> None:
        assert reason in TEXT_REASONS
        super().__init__(name, reason, detail)
        self.name, self.reason, self.detail = name, reason, detail

    def __str__(self) -> str:
        return visible(f"{self.name}: {self.detail}")


UNUSABLE = (ImageError, TextError)
"""Errors that cost one item and do not end the run."""
TOLD = 5
"""Samples, and as many texts, of a source that are named when they are met; the others are only counted."""
NAME_CHARACTERS = 200
"""Characters of a name that are kept."""


class Fault(NamedTuple):
    """An item whose image or text could not be used in an epoch of a source."""

    source: str
    epoch: int
    name: str
    reason: str
    sentence: str
    counts: bool = True
    """False: it is reported but not counted, as another item of its sample counts."""

    @property
    def is_text(self) -> bool:
        return self.reason in TEXT_REASONS

    @classmethod
    def of(cls, source: str, epoch: int, error: ImageError | TextError, *, is_first: bool = True) -> "Fault":
        """Makes the fault of an error; `is_first` says that the item is the first of its sample."""
        counts = is_first or isinstance(error, TextError)
        return cls(source, epoch, error.name, error.reason, f"{error} ({error.reason})", counts)


OnFault = Callable[[Fault], None]
"""Called with every item that turns out unusable, again in each epoch."""


class BadItems:
    """Record of a source's unusable items: those that this rank met and, up to the last `share`, those of all ranks."""

    def __init__(
        self, source: str, max_bad: int, max_bad_texts: int = 0, on_fault: OnFault = lambda fault: None
    ) -> None:
        self.source = source
        self.max_bad, self.max_bad_texts = max_bad, max_bad_texts
        self.on_fault = on_fault
        self.bad: dict[str, str] = {}
        """Reasons of the first `TOLD` samples and the first `TOLD` texts, by name."""
        self.counts: dict[int, Counter[str]] = {}
        """Items that this rank met, by epoch and reason, in epochs that were not over at the last `share`."""
        self.fullest: Counter[str] = Counter()
        """Counts by reason, over all ranks, of the epoch that had most unusable items at the last `share`."""
        self.epoch = 0
        """First epoch that is not over."""

    def note(self, fault: Fault) -> None:
        """Counts an unusable item. Raises DataError if its epoch then has more than the limit."""
        self.on_fault(fault)
        counts = self.counts.setdefault(fault.epoch, Counter())
        if fault.counts or not (self.max_bad_texts if fault.is_text else self.max_bad):  # at once where none is allowed
            counts[fault.reason] += 1
        is_named = add_name(self.bad, fault.name[:NAME_CHARACTERS], fault.reason)
        self._refuse_too_many(counts, f"{fault.sentence}; ")
        if is_named:
            logger.warning(f"source {self.source}: {fault.sentence}; it is skipped")

    def _refuse_too_many(self, counts: Counter[str], prefix: str) -> None:
        for some, limit in zip(parted(counts), (self.max_bad, self.max_bad_texts), strict=True):
            if some.total() > limit:
                raise DataError(
                    f"{prefix}source {self.source}: {summary_of(some)}, the limit is {limit:,} (max_bad_fraction); "
                    "`arlow data verify` lists all such samples"
                )

    def finish(self, epoch: int) -> None:
        """Marks the epochs before this one as over."""
        self.epoch = epoch

    def share(self, states: Sequence[dict[str, Any]]) -> None:
        """Merges the states of all ranks at the same position.

        Raises:
            DataError: on every rank, if an epoch has more unusable items than the limit.
        """
        merged, own = merged_counts(states), self.bad
        self.bad, self.fullest = merged["first"], Counter(merged["fullest"])
        self.counts = {epoch: counts for epoch, counts in self.counts.items() if epoch >= self.epoch}
        for counts in summed_counts(states).values():
            self._refuse_too_many(counts, "")
        for name in (name for name in self.bad if name not in own):
            logger.warning(f"source {self.source}: {visible(name)} ({self.bad[name]}); it is skipped")

    def summary(self) -> str:
        """Counts the fullest epoch, or the named items where they are more: `3 samples skipped (truncated 3)`."""
        return summary_of(max([self.fullest, *self.counts.values()], key=Counter.total) | Counter(self.bad.values()))

    def state_dict(self) -> dict[str, Any]:
        counts = {epoch: dict(counts) for epoch, counts in self.counts.items()}
        return {"first": dict(self.bad), "counts": counts, "fullest": dict(self.fullest), "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bad = dict(state["first"])
        if "epoch" not in state:  # of an earlier version, which counted a bad image for each of its texts
            return
        self.counts = {int(epoch): Counter(counts) for epoch, counts in state["counts"].items()}
        self.fullest = Counter(state["fullest"])


def merged_counts(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the state of one `BadItems` that met all that these did; of the epochs that are over, the fullest."""
    first: dict[str, str] = {}
    for name, reason in (item for state in states for item in state["first"].items()):
        add_name(first, name, reason)
    sums = summed_counts(states)
    fullest = max([*(Counter(state["fullest"]) for state in states), *sums.values()], key=Counter.total)
    now = states[0]["epoch"]
    counts = {epoch: dict(some) for epoch, some in sums.items() if epoch >= now}
    return {"first": first, "counts": counts, "fullest": dict(fullest), "epoch": now}


def summed_counts(states: Sequence[dict[str, Any]]) -> dict[int, Counter[str]]:
    """Sums the counts of all states, by epoch and reason."""
    sums: dict[int, Counter[str]] = {}
    for epoch, counts in (item for state in states for item in state["counts"].items()):
        sums.setdefault(epoch, Counter()).update(counts)
    return sums


def add_name(bad: dict[str, str], name: str, reason: str) -> bool:
    """Adds a name with its reason, unless it or enough of its kind are there; returns True if it was added."""
    is_text = reason in TEXT_REASONS
    if name in bad or parted(Counter(bad.values()))[is_text].total() >= TOLD:
        return False
    bad[name] = reason
    return True


def parted(counts: Counter[str]) -> tuple[Counter[str], Counter[str]]:
    """Splits counts into those of images, which count by sample, and those of texts."""
    of_texts = Counter({reason: count for reason, count in counts.items() if reason in TEXT_REASONS})
    return counts - of_texts, of_texts


def summary_of(counts: Counter[str]) -> str:
    """`3 samples skipped (truncated 2, corrupt 1), 1 text skipped (text_without_room 1)`."""
    listed = []
    for some, what in zip(parted(counts), ("sample", "text"), strict=True):
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in some.most_common())
        listed += [f"{number_of(some.total(), what)} skipped ({reasons})"] if some else []
    return ", ".join(listed)
