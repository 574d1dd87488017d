"""Chooses the samples that a page shows: some by hash, the best, the worst, and the most surprising for the model."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from jaxtyping import Float

from arlow_vl.data.questions import UNNAMED_KIND
from arlow_vl.evaluation.metrics.vqa import normalise_answer, spelled
from arlow_vl.evaluation.tasks.measures import measure
from arlow_vl.evaluation.tasks.predictions import MODEL, PredictionRow
from arlow_vl.evaluation.tasks.results import Results

UNPICKED, PICKED, MOST_ANSWERS = 24, 8, 14
SOMETHING_ELSE, NOTHING = "something else", "(nothing)"


@dataclass(frozen=True)
class Sheet:
    """Samples under one heading, by their positions among the predictions."""

    title: str
    places: list[int]


@dataclass(frozen=True)
class Scored:
    """The task's first metric, for each of the model's predictions by itself."""

    title: str
    is_share: bool
    points: Float[np.ndarray, " items"]


@dataclass(frozen=True)
class Confusion:
    """Confusion table of a kind of question: rows are expected answers, columns predicted ones, the last all others."""

    kind: str
    columns: list[str]
    rows: list[tuple[str, list[int]]]


def score_samples(results: Results) -> Scored:
    """Scores each prediction of the model. Raises DataError for one without what the metric needs."""
    measures = measure(results.task.metrics[:1], results.systems[MODEL])
    title, of = next(iter(measures.items()))
    return Scored(title, of.metric.is_share, np.asarray(of.metric.value(of.statistics), np.float64))


def choose(results: Results, scored: Scored) -> list[Sheet]:
    """Returns the sheets of a task, without empty ones."""
    rows, points = results.systems[MODEL], scored.points
    order = sorted(range(len(rows)), key=lambda place: _hash_of(rows[place].id))
    best = sorted(order, key=lambda place: -points[place])
    is_right, is_wrong = _right_and_wrong(scored)
    likely = [place for place in order if rows[place].log_probability is not None]
    by_likelihood = sorted(likely, key=lambda place: rows[place].log_probability or 0.0)
    sheets = [
        Sheet("Chosen by the hash of their names: nobody picked them", _of_each_kind(rows, order)),
        Sheet(f"The best by {scored.title}: these are picked", best[:PICKED]),
        Sheet(f"The worst by {scored.title}: these are picked", best[: -PICKED - 1 : -1]),
        Sheet(
            "Right, and what the model found least likely of all that was right",
            [place for place in by_likelihood if is_right[place]][:PICKED],
        ),
        Sheet(
            "Wrong, and what the model found most likely of all that was wrong",
            [place for place in reversed(by_likelihood) if is_wrong[place]][:PICKED],
        ),
    ]
    return [sheet for sheet in sheets if sheet.places]


def _right_and_wrong(scored: Scored) -> tuple[np.ndarray, np.ndarray]:
    """Returns masks of right and wrong samples.

    An answer is right from a score of a half on. A caption counts as right in the best quarter, as wrong in the worst.
    """
    if scored.is_share:
        return scored.points >= 0.5, scored.points < 0.5
    low, high = np.quantile(scored.points, [0.25, 0.75])
    return (scored.points >= high) & (high > low), (scored.points <= low) & (high > low)


def _of_each_kind(rows: Sequence[PredictionRow], order: Sequence[int]) -> list[int]:
    """Takes equally many samples of each kind of question, as far as there are."""
    kinds = sorted({row.kind for row in rows})
    each = max(1, UNPICKED // len(kinds))
    return [place for kind in kinds for place in [p for p in order if rows[p].kind == kind][:each]][:UNPICKED]


def confusions(rows: Sequence[PredictionRow]) -> list[Confusion]:
    """Builds a table for each kind of question."""
    kinds = sorted({row.kind for row in rows})
    return [_confusion(kind or UNNAMED_KIND, [row for row in rows if row.kind == kind]) for kind in kinds]


def _confusion(kind: str, rows: Sequence[PredictionRow]) -> Confusion:
    """Counts pairs of (most given answer, prediction), for the most frequent answers."""
    pairs = Counter((_cell_of(_most_given(row.references)), _cell_of(row.output)) for row in rows)
    expected: Counter[str] = Counter()
    for (answer, _), count in pairs.items():
        expected[answer] += count
    columns = sorted(answer for answer, _ in expected.most_common(MOST_ANSWERS))
    table = []
    for answer in columns:
        counts = [pairs[answer, prediction] for prediction in columns]
        table.append((answer, [*counts, expected[answer] - sum(counts)]))
    return Confusion(kind, [*columns, SOMETHING_ELSE], table)


def _cell_of(answer: str) -> str:
    """Returns the normalised answer, or its words if normalisation leaves nothing."""
    return normalise_answer(answer) or " ".join(spelled(answer)) or NOTHING


def _most_given(answers: Sequence[str]) -> str:
    return max(Counter(answers).items(), key=lambda given: (given[0] != "", given[1]))[0]


def _hash_of(text: str) -> str:
    return sha256(text.encode(errors="surrogatepass")).hexdigest()


def unpicked(rows: Sequence[PredictionRow], number: int) -> list[int]:
    """Returns the positions of `number` samples with different images, chosen by hash."""
    first: dict[str, int] = {}
    for place in sorted(range(len(rows)), key=lambda place: _hash_of(rows[place].id)):
        first.setdefault(rows[place].image, place)
    return list(first.values())[:number]
