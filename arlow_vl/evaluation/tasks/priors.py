"""Answers from no image, or from the most similar image: what a model must beat.

They are taken from training data where there are any. Else they are taken from the set itself, where no answer is known
from the item's own image alone. Own answers that other images have, too, are counted: were they left out, the answer of
an item would always lack one, and a prior from as many yes as no would be wrong every time instead of half of the time.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from arlow_vl.evaluation.class_means import nearest_class_means
from arlow_vl.evaluation.controls import ROWS_AT_ONCE, normalise_rows
from arlow_vl.evaluation.tasks.items import Item

Pooled = Callable[[Sequence[Item]], Float[np.ndarray, "items features"]]
"""The mean of each item's image features."""


class Prior:
    """The most frequent answers of training items, or of the other images of a set."""

    def __init__(self, known: Sequence[Item], *, leave_own_out: bool) -> None:
        self.leave_own_out = leave_own_out
        self.of_all: Counter[str] = Counter()
        self.of_question: dict[str, Counter[str]] = defaultdict(Counter)
        self.of_image: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for item in known:
            for answer in item.answers:
                self.of_all[answer] += 1
                self.of_question[item.question][answer] += 1
                if leave_own_out:
                    self.of_image[item.image].append((item.question, answer))
        self._ranked: dict[str | None, list[tuple[str, int]]] = {}

    def most_frequent(self, item: Item) -> str:
        answer = self._best(None, item)
        assert answer is not None  # see `ask.check_controls`
        return answer

    def to_question(self, item: Item) -> str:
        """The most frequent answer to the same wording; to one that is asked once, the most frequent of all."""
        return self._best(item.question, item) or self.most_frequent(item)

    def _best(self, question: str | None, item: Item) -> str | None:
        """Of equally frequent answers the first by the alphabet."""
        counts = self.of_all if question is None else self.of_question.get(question, Counter())
        own = Counter(a for asked, a in self.of_image.get(item.image, ()) if question in (None, asked))
        if question not in self._ranked:
            self._ranked[question] = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        return next((text for text, count in self._ranked[question] if count > own[text]), None)


def nearest_neighbours(items: Sequence[Item], known: Sequence[Item], prior: Prior, pooled: Pooled) -> list[str]:
    """For each item the answer to the same wording about the image with the most similar features, by cosine.

    A wording that no other image is asked, and an item without images, get the prior's answer.
    """
    seen, known = ([one for one in of if one.images] for of in (items, known))
    nearest = iter(_nearest_answers(seen, known, prior, pooled) if seen and known else map(prior.to_question, seen))
    return [next(nearest) if item.images else prior.to_question(item) for item in items]


def _nearest_answers(items: Sequence[Item], known: Sequence[Item], prior: Prior, pooled: Pooled) -> list[str]:
    of_known, of_items = _features(known, pooled), _features(items, pooled)
    places: dict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(known):
        places[item.question].append(place)
    asked: dict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        asked[item.question].append(place)
    answers = [""] * len(items)
    for question, rows in asked.items():
        candidates = places.get(question, [])
        images = np.array([known[place].image for place in candidates])
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            similar = of_items[some] @ of_known[candidates].T
            if prior.leave_own_out:
                similar[np.array([items[row].image for row in some])[:, None] == images[None]] = -np.inf
            for row, scores in zip(some, similar, strict=True):
                best = int(scores.argmax()) if scores.size else -1
                is_found = best >= 0 and np.isfinite(scores[best])
                answers[row] = known[candidates[best]].answers[0] if is_found else prior.to_question(items[row])
    return answers


def class_means(items: Sequence[Item], known: Sequence[Item], prior: Prior, pooled: Pooled) -> list[str]:
    """For each item the caption whose training images lie nearest on average (see `nearest_class_means`).

    The set's own captions, of which most have one image, have no means.
    """
    assert not prior.leave_own_out
    return nearest_class_means(pooled(known), [item.answers[0] for item in known], pooled(items))


def _features(items: Sequence[Item], pooled: Pooled) -> Float[np.ndarray, "items features"]:
    """Unit rows; an image that several items show is pooled once."""
    first = {item.image: item for item in reversed(items)}
    rows = dict(zip(first, range(len(first)), strict=True))
    features = normalise_rows(pooled(list(first.values())))
    return features[[rows[item.image] for item in items]]
