"""Samples packed into rows of a token budget and an image budget, window by window.

The stream of draws is cut into windows of about 128 rows. A window is packed best-fit decreasing, which leaves little
of a row empty; its rows then come in a seeded order, so that long samples do not come first. A window depends on
nothing but the draws before it: its state is a few numbers for each source.
"""

import bisect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from arlow_vl.data.mixing import Draws, Mixture, Number, integer_shares
from arlow_vl.data.order import permutation, shuffled_order
from arlow_vl.errors import DataError
from arlow_vl.printing import print_line

WINDOW_ROWS = 128
"""Rows that a window fills, roughly: its last row is half empty on average, which is 0.4% of the window."""
WINDOW_SAMPLES = 16384
"""Most samples of a window."""
ORDER_AT_ONCE = 1024
"""Places of an order that are computed at once."""
ENOUGH = 100
"""Samples of a source that are tried, if it has so many, before an error says that none fits."""
REASONS = {
    "images_left_out": "samples have more images than a row takes (packing.row_images) and are left out",
    "texts_left_out": "texts are longer than a row (packing.row_tokens) and are left out",
    "texts_cut": "texts are longer than a row (packing.row_tokens) and are cut",
}
"""Reasons why something does not fit into rows, each with the sentence that reports it."""

Length = tuple[int | tuple[int, ...], int]
"""Tokens of a sample (of each text, where it has several), and its number of images."""


@dataclass(frozen=True, kw_only=True)
class RowBudget:
    """Limits of a row."""

    tokens: int
    """Tokens of a row."""
    images: int = 0
    """Most images of a row; samples with more are left out."""
    too_long: Literal["cut", "leave_out"] = "cut"
    """Treatment of a text of more tokens than a row: its end is cut off, or it is not used."""

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.images < 0:
            raise ValueError(f"a row needs tokens of at least 1 and images of at least 0, got {self}")


class Piece(NamedTuple):
    """Part of a sample that is in one row: all its images and some of its texts."""

    sample: int
    texts: tuple[int, ...]
    """Numbers of the texts, from 0."""
    tokens: int
    images: int
    part: int = 0
    """Number of this piece among those of the sample."""


class Take(NamedTuple):
    """A sample, or a piece of one, in a batch; its number counts over all epochs of the source."""

    source: int
    number: int
    texts: tuple[int, ...] | None = None
    """Numbers of the texts that are taken; None: all."""
    tokens: int = 0
    """Tokens of these texts, which is the room for a stand-in."""
    images: int = 0
    part: int = 0
    """0: the sample's first piece, or all of it."""


def pack_rows(
    lengths: Sequence[Length], budget: RowBudget, sources: Sequence[str] = ()
) -> tuple[list[list[Piece]], Counter[str]]:
    """Packs samples of these lengths into rows; also returns counts by `REASONS` of what does not fit.

    With `sources`, the source of each sample, the counts are by source: "captions: texts_cut".

    A sample's texts share its images and stay in one row where they fit. Else they are spread over as few rows as they
    need, and the images go into each.
    """
    pieces, counts = [], Counter()
    for sample, (tokens, images) in enumerate(lengths):
        unfit: Counter[str] = Counter()
        pieces += _pieces(sample, (tokens,) if isinstance(tokens, int) else tokens, images, budget, unfit)
        counts.update({f"{sources[sample]}: {reason}" if sources else reason: n for reason, n in unfit.items() if n})
    if any(piece.images for piece in pieces):
        rows = balanced_fit([(piece.tokens, piece.images) for piece in pieces], budget)
    else:
        rows = best_fit([piece.tokens for piece in pieces], budget.tokens)
    return [[pieces[number] for number in row] for row in rows], counts


def _pieces(
    sample: int, tokens: Sequence[int], images: int, budget: RowBudget, counts: Counter[str]
) -> Iterator[Piece]:
    if images > budget.images:
        counts["images_left_out"] += 1
        return
    too_long = [text for text, count in enumerate(tokens) if count > budget.tokens]
    counts["texts_cut" if budget.too_long == "cut" else "texts_left_out"] += len(too_long)
    kept = [text for text in range(len(tokens)) if budget.too_long == "cut" or text not in too_long]
    length = [min(tokens[text], budget.tokens) for text in kept]
    if sum(length) <= budget.tokens:
        if kept:
            yield Piece(sample, tuple(kept), sum(length), images)
        return
    for part, row in enumerate(best_fit(length, budget.tokens)):
        chosen = sorted(row)
        yield Piece(sample, tuple(kept[n] for n in chosen), sum(length[n] for n in chosen), images, part)


def best_fit(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Returns the items of each row. The longest first, each goes where it leaves least room, or begins a row."""
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room, row), sorted
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        place = bisect.bisect_left(open_rows, (lengths[item], -1))
        if place < len(open_rows):
            room, row = open_rows.pop(place)
        else:
            room, row = tokens, len(rows)
            rows.append([])
        rows[row].append(item)
        bisect.insort(open_rows, (room - lengths[item], row))
    return rows


def balanced_fit(sizes: Sequence[tuple[int, int]], budget: RowBudget) -> list[list[int]]:
    """Returns the items of each row for items of (tokens, images), where both limits bind.

    One row after the other takes large items that leave its rooms for tokens and images in the proportion in which the
    items left need them: best fit alone fills the first rows with long texts, and the last with images without text
    (92% where this gives 99%).
    """
    limits = np.array([[budget.tokens], [max(1, budget.images)]])
    numbers, need = np.arange(len(sizes)), np.array(sizes).T  # (2, items)
    rows: list[list[int]] = []
    while len(numbers):
        rows.append([])
        room, left = limits.copy(), np.ones(len(numbers), dtype=bool)
        demand = need.sum(axis=1, keepdims=True) / limits
        demand /= max(demand.sum(), 1e-9)
        share = (need / limits).sum(axis=0)
        while (fits := left & (need <= room).all(axis=0)).any():
            tokens, images = (room - need) / limits * demand[::-1]  # room as demand: room1 demand2 = room2 demand1
            score = np.where(fits, share - 2 * np.abs(tokens - images), -np.inf)
            best = int(score.argmax())
            rows[-1].append(int(numbers[best]))
            left[best] = False
            room -= need[:, best : best + 1]
        numbers, need = numbers[left], need[:, left]
    return rows


@dataclass(frozen=True)
class WindowState:
    """Start of a window, and the number of its rows that are done."""

    draws: Draws
    """Samples that were drawn before it."""
    weights: tuple[Number, ...]
    """Weights of the sources; a window is finished with the weights that it was begun with."""
    window: int = 0
    """Number of the window."""
    row_number: int = 0
    """Number of its first row in the run."""
    done: int = 0
    """Number of its rows that are done."""
    counts: tuple[tuple[str, int], ...] = ()
    """Counts, by reason, of what did not fit into rows before it."""

    def plain(self) -> dict[str, Any]:
        """Returns the state as numbers, lists and mappings."""
        return {**vars(self), "draws": self.draws.plain(), "weights": [*self.weights], "counts": dict(self.counts)}


class WindowPlan(NamedTuple):
    """A window's rows in their order, and the state after the last one."""

    rows: list[list[Take]]
    after: WindowState


PlanAhead = Callable[[WindowState], Callable[[], WindowPlan | None]]
"""Starts to plan a window, and returns a function that waits for the plan."""


class Windows:
    """The rows of a run from any state on.

    Args:
        names, datasets: The sources. A data set has `length(i)`, see `Length`.
        rows_per_step: Rows of an optimizer step; a window has the weights of the step in which it begins.
    """

    def __init__(
        self,
        names: Sequence[str],
        datasets: Sequence[Any],
        budget: RowBudget,
        mixture: Mixture,
        *,
        seed: int,
        rows_per_step: int,
    ) -> None:
        if unknown := set(names) ^ mixture.at(0).keys():
            raise ValueError(
                f"weights must name the sources and no others; {', '.join(sorted(unknown))} is in one only"
            )
        for name, dataset in zip(names, datasets, strict=True):
            if not hasattr(dataset, "length"):
                raise ValueError(f"source {name} cannot be packed into rows, its data set tells no lengths")
        self.names, self.datasets = names, datasets
        self.budget, self.mixture = budget, mixture
        self.seed, self.rows_per_step = seed, rows_per_step
        epochs = (mixture.epochs.get(name) for name in names)
        self.most = [None if e is None else round(e * len(d)) for e, d in zip(epochs, datasets, strict=True)]

    def first_state(self) -> WindowState:
        return WindowState(Draws.none(len(self.names)), self._weights(0))

    def resume(self, plain: dict[str, Any]) -> WindowState:
        """Returns the state that `plain` wrote; a window that has not been begun gets the weights of this mixture."""
        weights = tuple(plain["weights"]) if plain["done"] else self._weights(plain["row_number"])
        counts = tuple(plain["counts"].items())
        return WindowState(
            Draws(**plain["draws"]), weights, plain["window"], plain["row_number"], plain["done"], counts
        )

    def _weights(self, row_number: int) -> tuple[Number, ...]:
        weights = self.mixture.at(row_number // self.rows_per_step)
        return tuple(weights[name] for name in self.names)

    def rows(self, state: WindowState, plan_ahead: PlanAhead | None = None) -> Iterator[tuple[list[Take], WindowState]]:
        """Yields each row from a state on, with the state after it; ends when all sources are used up.

        With `plan_ahead` the next window is planned, perhaps in another process, while this one is read. Without it a
        window is planned when its first row is asked for.
        """
        plan_ahead = plan_ahead or (lambda some: lambda: self.plan(some))
        plan = plan_ahead(state)()
        warned: set[str] = set()
        while plan is not None:
            self._warn_of_unfit(Counter(dict(plan.after.counts)) - Counter(dict(state.counts)), warned)
            wait = plan_ahead(plan.after)
            for done in range(state.done, len(plan.rows)):
                after = replace(state, done=done + 1) if done + 1 < len(plan.rows) else plan.after
                yield plan.rows[done], after
            state, plan = plan.after, wait()

    def samples_left(self, state: WindowState) -> int | None:
        """Counts the samples left in all epochs; None where a source without end has a weight after the last step."""
        _, weights = self.mixture.schedule[-1]
        if any(most is None and weights[name] for most, name in zip(self.most, self.names, strict=True)):
            return None
        return sum(most - drawn for most, drawn in zip(self.most, state.draws.drawn, strict=True) if most is not None)

    def count(self, state: WindowState, most: int) -> int:
        """Counts the rows from a state on, up to `most`; they are planned for it, but not read."""
        rows, plan = -state.done, self.plan(state)
        while plan is not None and (rows := rows + len(plan.rows)) < most:
            plan = self.plan(plan.after)
        return min(rows, most)

    def plan(self, state: WindowState) -> WindowPlan | None:
        """Plans the window that a state is in; None where all sources are used up."""
        draws, counts = state.draws.copy(), Counter(dict(state.counts))
        drawn, lengths = self._draw(draws, state.weights)
        if not drawn:
            return None
        rows, unfit = pack_rows(lengths, self.budget, [self.names[source] for source, _ in drawn])
        self._refuse_unfit(drawn, {drawn[piece.sample][0] for row in rows for piece in row})
        counts.update(unfit)
        order = permutation(self.seed, "rows", state.window, size=len(rows))
        takes = [[Take(*drawn[piece.sample], *piece[1:]) for piece in rows[place]] for place in order]
        begun = state.row_number + len(rows)
        return WindowPlan(
            takes, WindowState(draws, self._weights(begun), state.window + 1, begun, 0, tuple(counts.items()))
        )

    def _refuse_unfit(self, drawn: Sequence[tuple[int, int]], fitting: set[int]) -> None:
        """Raises DataError for a source of which many samples were drawn, and none fits into a row."""
        for source, count in Counter(source for source, _ in drawn).items():
            if source not in fitting and (not fitting or count >= min(ENOUGH, len(self.datasets[source]))):
                fits = f"{self.budget.tokens:,} tokens and {self.budget.images:,} images"
                raise DataError(
                    f"source {self.names[source]}: no sample fits into a row of {fits}; "
                    "raise packing.row_images or packing.row_tokens"
                )

    @staticmethod
    def _warn_of_unfit(unfit: Counter[str], warned: set[str]) -> None:
        """Reports once by source and reason that something does not fit, as soon as a window shows it."""
        for what in sorted(unfit.keys() - warned):
            name, _, reason = what.rpartition(": ")
            print_line(f"source {name}: {unfit[what]:,} {REASONS[reason]}, of the first that are read", file=sys.stderr)
        warned |= unfit.keys()

    def _draw(self, draws: Draws, weights: Sequence[Number]) -> tuple[list[tuple[int, int]], list[Length]]:
        """Draws a window's samples, advancing `draws`; returns (source, number) and length of each."""
        upcoming = [_Upcoming(self, source, draws.drawn[source]) for source in range(len(self.names))]
        drawn, lengths, tokens, images = [], [], 0, 0
        shares: list[int] = []
        used_up: list[bool] = []
        while len(drawn) < WINDOW_SAMPLES and tokens < WINDOW_ROWS * self.budget.tokens:
            if self.budget.images and images >= WINDOW_ROWS * self.budget.images:
                break
            gone = [most is not None and n >= most for n, most in zip(draws.drawn, self.most, strict=True)]
            if gone != used_up:
                left = [0 if is_gone else weight for weight, is_gone in zip(weights, gone, strict=True)]
                if not any(left):
                    break
                shares, used_up = integer_shares(left), gone
            costs = [1] * len(self.names) if self.mixture.by == "samples" else [u.tokens() for u in upcoming]
            source = draws.next_source(shares, costs)
            length = upcoming[source].take()
            drawn.append((source, draws.draw(source, shares, costs[source])))
            lengths.append(length)
            tokens, images = tokens + total_tokens(length), images + length[1]
        return drawn, lengths


class _Upcoming:
    """The next sample of a source: its number over all epochs, and its length."""

    def __init__(self, windows: Windows, source: int, number: int) -> None:
        self.seed, self.name, self.dataset = windows.seed, windows.names[source], windows.datasets[source]
        self.number, self.ahead, self._length = number, iter(()), None

    def length(self) -> Length:
        if self._length is None:
            index = next(self.ahead, None)
            if index is None:
                numbers = np.arange(self.number, self.number + ORDER_AT_ONCE)
                self.ahead = iter(indices(self.seed, self.name, len(self.dataset), numbers))
                index = next(self.ahead)
            self._length = self.dataset.length(index)
        return self._length

    def tokens(self) -> int:
        return total_tokens(self.length())

    def take(self) -> Length:
        length = self.length()
        self.number, self._length = self.number + 1, None
        return length


def total_tokens(length: Length) -> int:
    """Returns the tokens of all texts of a sample."""
    tokens = length[0]
    return tokens if isinstance(tokens, int) else sum(tokens)


def indices(seed: int, name: str, size: int, numbers: np.ndarray) -> list[int]:
    """Returns the items behind sample numbers over all epochs: number p is place p % size of epoch p // size."""
    epochs, places = np.divmod(numbers, size)
    found = np.empty(len(numbers), dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        found[chosen] = shuffled_order(seed, name, int(epoch), size, places[chosen])
    return found.tolist()
