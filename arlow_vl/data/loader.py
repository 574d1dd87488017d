"""Batches as a pure function of seed and position, so that a killed run resumes where it stopped.

Lightning stores `state_dict()` in its checkpoints. It fetches no batch ahead of a loader that has a length, so the
position is the number of batches that were trained on. One "epoch" of Lightning is the whole run, and the epochs of
the data are counted in here: no checkpoint ever falls on the border of an epoch.

The batches of a run are numbered over all ranks. Rank r of n reads r, r + n, r + 2 n, ... counted from the position, so
that after each round exactly the batches before the new position have been read: another number of ranks or workers
resumes from there.
"""

import collections
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from arlow_vl.data.bad_items import UNUSABLE, BadItems, Fault, OnFault, merged_counts, summary_of
from arlow_vl.data.mixing import Mixture
from arlow_vl.data.order import BLOCK, BUFFER
from arlow_vl.data.rows import (
    WINDOW_ROWS,
    WINDOW_SAMPLES,
    RowBudget,
    Take,
    WindowPlan,
    Windows,
    WindowState,
    indices,
    total_tokens,
)
from arlow_vl.data.sources import Batch, Collate, Source, with_different_names
from arlow_vl.data.workers import At, Pool
from arlow_vl.errors import DataError
from arlow_vl.printing import visible

logger = logging.getLogger(__name__)

COUNTED_SAMPLES = 10**6
"""Samples, over all epochs, up to which it is checked before the first step that they are enough for the run."""
STAND_INS = 64
"""Samples after an unusable one that are tried in its place in a row."""

PlannedBatch = list[list[Take]]
"""A batch before it is read: what each of its rows holds; one row where rows are not packed."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Batches of packed rows, of sources that are mixed.

    The loader's collate gets rows, each a list of (item, texts): the numbers of the item's texts in the row, None: all.
    """

    budget: RowBudget
    """Limits of a row."""
    rows_per_batch: int
    """Rows of each batch."""
    mixture: Mixture
    """The share of each source."""
    rows_per_step: int
    """Rows of an optimizer step over all ranks; the mixture's schedule counts in steps."""


class ResumableLoader:
    """The batches of a whole run. Iterating continues from the position, also after `load_state_dict`.

    Sample p of a source is item `shuffled_order(...)[p % size]` of its epoch p // size, or, where its image is
    unusable, the next usable item: batches keep their size, and depend on nothing but their position and the data.

    Args:
        num_batches: Batches of the whole run, over all ranks.
        workers: Processes that read ahead; 0: batches are read when they are asked for.
        rank, ranks: This rank, and the number of ranks; each yields every `ranks`-th batch.
        on_fault: Called with every item that turns out unusable.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        collate: Collate,
        *,
        seed: int,
        num_batches: int,
        workers: int = 0,
        rank: int = 0,
        ranks: int = 1,
        packing: Packing | None = None,
        on_fault: OnFault = lambda fault: None,
    ) -> None:
        self.sources = with_different_names(sources)
        if num_batches % ranks:
            raise ValueError(f"{num_batches:,} batches cannot be shared by {ranks} ranks; each optimizer step needs a "
                             "multiple of the ranks")  # fmt: skip
        self.readers = {s.name: BadItems(s.name, s.max_bad, s.max_bad_texts, on_fault) for s in self.sources}
        self.collate = collate
        self.seed = seed
        self.num_batches = num_batches
        self.workers, self.rank, self.ranks = workers, rank, ranks
        self.packing = packing
        self.position = 0
        self.windows: Windows | None = None
        self.window: WindowState | None = None
        parts: list[Any] = [[s.name, len(s.dataset), s.dataset.fingerprint, s.samples_per_batch] for s in sources]
        if packing:
            names, datasets = zip(*((source.name, source.dataset) for source in self.sources), strict=True)
            self.windows = Windows(
                names, datasets, packing.budget, packing.mixture, seed=seed, rows_per_step=packing.rows_per_step
            )
            self.window = self.windows.first_state()
            mixture = [packing.mixture.by, dict(packing.mixture.epochs)]
            parts.append([asdict(packing.budget), packing.rows_per_batch, mixture, WINDOW_ROWS, WINDOW_SAMPLES])
        self.fingerprint = hashlib.sha256(json.dumps([seed, BLOCK, BUFFER, parts]).encode()).hexdigest()

    def __len__(self) -> int:
        return self.num_batches // self.ranks

    def __iter__(self) -> Iterator[Batch]:
        self._refuse_too_few()
        after: collections.deque[WindowState | None] = collections.deque()

        def tasks(planner: Pool) -> Iterator[PlannedBatch]:
            for task, state in self._own_tasks(planner):
                after.append(state)
                yield task

        planners = 1 if self.windows and self.workers else 0  # a whole window is tokenised, to know the lengths
        with Pool(self._plan, workers=planners) as planner, Pool(self._read, workers=self.workers) as pool:
            for batch, faults in pool.results(tasks(planner)):
                for fault in faults:
                    self.readers[fault.source].note(fault)
                self.position, self.window = self.position + self.ranks, after.popleft()
                self._finish_epochs()
                yield batch

    def read(self, position: int) -> Batch:
        """Returns batch number `position` of unpacked rows, whatever was read before; its "keys" name the samples."""
        batch, faults = self._read(self._fixed_shares(position), lambda key: None)
        for fault in faults:
            self.readers[fault.source].note(fault)
        assert batch is not None  # else `note` has raised
        return batch

    def _own_tasks(self, planner: Pool) -> Iterator[tuple[PlannedBatch, WindowState | None]]:
        """Yields this rank's batches from the position on, with the window's state after each round of all ranks."""
        tasks = self._tasks(self.position, self.window, planner)
        for position in range(self.position, self.num_batches, self.ranks):
            batches = list(islice(tasks, self.ranks))
            if len(batches) < self.ranks:
                raise self._used_up(position + len(batches))
            yield batches[self.rank][0], batches[-1][1]

    def _refuse_too_few(self) -> None:
        """Raises DataError if the sources are used up before the run's last step.

        With more samples only the run itself shows it: to plan a million takes a minute.
        """
        if not (self.packing and self.windows and self.window):
            return
        samples = self.windows.samples_left(self.window)
        if samples is None or samples > COUNTED_SAMPLES:
            return
        rows, left = self.packing.rows_per_batch, self.num_batches - self.position
        batches = self.position + self.windows.count(self.window, left * rows) // rows
        if batches < self.num_batches:
            raise self._used_up(batches)

    def _used_up(self, batches: int) -> DataError:
        assert self.packing is not None
        steps = batches * self.packing.rows_per_batch // self.packing.rows_per_step
        return DataError(
            f"the sources are used up after {batches:,} of {self.num_batches:,} batches; lower run.max_steps to "
            f"{steps:,} at most, or allow more epochs"
        )

    def _tasks(
        self, position: int, window: WindowState | None, planner: Pool
    ) -> Iterator[tuple[PlannedBatch, WindowState | None]]:
        """Yields the batches of all ranks."""
        if self.packing is None:
            yield from ((self._fixed_shares(number), None) for number in range(position, self.num_batches))
            return
        assert self.windows and window
        rows = self.windows.rows(window, planner.begin)
        while len(batch := list(islice(rows, self.packing.rows_per_batch))) == self.packing.rows_per_batch:
            yield [row for row, _ in batch], batch[-1][1]

    def _plan(self, window: WindowState, at: At) -> WindowPlan | None:
        assert self.windows
        at(f"the plan of window {window.window}")
        return self.windows.plan(window)

    def _fixed_shares(self, position: int) -> PlannedBatch:
        takes = []
        for number, source in enumerate(self.sources):
            first = position * source.samples_per_batch
            takes += [Take(number, sample) for sample in range(first, first + source.samples_per_batch)]
        return [takes]

    def _read(self, task: PlannedBatch, at: At) -> tuple[Batch | None, list[Fault]]:
        """Reads a batch; returns it with its faults. The batch is None where there are more faults than allowed."""
        faults: list[Fault] = []
        rows: list[list[Any]] = []
        keys: list[str] = []
        index_of = self._indices(task)
        for takes in task:
            rows.append([])
            for take in takes:
                found = self._usable(take, index_of[take.source, take.number], at, faults)
                if found is None and self.packing is None:
                    return None, faults
                if found is not None:
                    key, item, is_stand_in = found
                    keys.append(key)
                    rows[-1].append((item, None if is_stand_in else take.texts) if self.packing else item)
        if not keys:
            raise DataError("no sample of a batch can be used, nor one that fits its place; raise rows_per_batch")
        return {**self.collate(rows if self.packing else rows[0]), "keys": keys}, faults

    def _indices(self, task: PlannedBatch) -> dict[tuple[int, int], int]:
        """Returns the items of a batch by source and number; computed at once, as one costs as much as hundreds."""
        found = {}
        for number, source in enumerate(self.sources):
            some = np.array([take.number for takes in task for take in takes if take.source == number], dtype=np.int64)
            items = indices(self.seed, source.name, len(source.dataset), some)
            found.update({(number, int(n)): item for n, item in zip(some, items, strict=True)})
        return found

    def _usable(self, take: Take, index: int, at: At, faults: list[Fault]) -> tuple[str, Any, bool] | None:
        """Returns key and item of a sample, or of the next usable one that fits its place; True: it is that stand-in.

        None: none of those that may be tried is usable. Of the unusable ones only the first counts, once for all pieces
        of the sample; the others count at their own turn. All count when there are more than allowed.
        """
        source = self.sources[take.source]
        dataset: Any = source.dataset
        size = len(dataset)
        met: list[Fault] = []
        left = [source.max_bad, source.max_bad_texts]  # by Fault.is_text
        for distance in range(min(size, STAND_INS) if self.packing else size):
            candidate = (index + distance) % size
            if distance and self.packing and not _fits(dataset.length(candidate), take):
                continue
            key = f"{source.name}:{dataset.key(candidate)}"
            at(key)
            try:
                item = dataset[candidate]
            except UNUSABLE as error:
                is_first = candidate == 0 or not source.are_of_one_sample(candidate - 1, candidate)
                fault = Fault.of(source.name, take.number // size, error, is_first=is_first)
                met.append(fault)
                left[fault.is_text] -= fault.counts
                if min(left) < 0 and not self.packing:
                    break
                continue
            faults += met[: take.part == 0]
            return key, item, distance > 0
        if len(met) == size and min(left) >= 0:
            counts = Counter(fault.reason for fault in met if fault.counts)
            raise DataError(f"source {source.name}: no sample can be used, {summary_of(counts)}")
        faults += met[: take.part == 0] if self.packing else met
        return None

    def _finish_epochs(self) -> None:
        for number, source in enumerate(self.sources):
            first = self.window.draws.drawn[number] if self.window else self.position * source.samples_per_batch
            self.readers[source.name].finish(first // len(source.dataset))

    def state_dict(self) -> dict[str, Any]:
        """Numbers, short strings, and lists and mappings of them: some kilobytes at any point of the run."""
        bad = {name: reader.state_dict() for name, reader in self.readers.items()}
        state = {"position": self.position, "fingerprint": self.fingerprint, "bad": bad}
        if self.packing and self.window:
            state |= {"window": self.window.plain(), "weights": _plain_weights(self.packing)}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a state. Raises ValueError for one of other data, another seed or other batch sizes."""
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
        if (self.num_batches - position) % self.ranks:
            left = self.num_batches - position
            raise ValueError(f"the {left:,} batches that are left cannot be shared by {self.ranks} ranks")
        self.position = position
        for name, bad in state.get("bad", {}).items() if self.rank == 0 else ():  # see merge_states
            self.readers[name].load_state_dict(bad)
        if self.packing and self.windows:
            self.window = self.windows.resume(state["window"])
            old, new = state["weights"], _plain_weights(self.packing)
            if _shares(old) != _shares(new):
                logger.warning(
                    f"weights were {visible(str(old))} and are {new} (from step, weights) after batch {position:,}, "
                    "once its window ends"
                )


def _plain_weights(packing: Packing) -> list[Any]:
    return [[step, dict(weights)] for step, weights in packing.mixture.schedule]


def _shares(weights: list[Any]) -> list[Any]:
    """Returns the weights as shares of their sum, so that equal mixtures compare equal."""
    return [[step, {name: round(one / sum(of.values()), 9) for name, one in of.items()}] for step, of in weights]


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merges the states of all ranks at the same position into one, for any number of ranks.

    Each rank counts the faults it met since a state was loaded, and rank 0 those before, so the sum is that of all.
    """
    names = states[0]["bad"]
    return {**states[0], "bad": {name: merged_counts([state["bad"][name] for state in states]) for name in names}}


def _fits(length: Any, take: Take) -> bool:
    return total_tokens(length) <= take.tokens and length[1] <= take.images
