"""Controls that answer without the image, or from the most similar image.

Answers come from training data if there are any, else from the set itself; then a text that only the item's own images
have is not used, in whatever item they are shown. The own answers still count if other images have them, too. Otherwise
an item's own answer would always be one short, and a prior over as many yes as no would be wrong every time instead of
half of the time.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from arlow_vl.evaluation.class_means import nearest_class_means, normalise_rows
from arlow_vl.evaluation.tasks.items import Item

ROWS_AT_ONCE = 1024
Pooled = Callable[[Sequence[Item]], Float[np.ndarray, "items features"]]
"""Averages the image features of each item."""


class Prior:
    """The most frequent answers, of training items or of the other images of a set."""

    def __init__(self, known: Sequence[Item], *, leave_own_out: bool) -> None:
        self.leave_own_out = leave_own_out
        self.of_all: Counter[str] = Counter()
        self.of_question: dict[str, Counter[str]] = defaultdict(Counter)
        self.of_image: dict[str, dict[str, Item]] = defaultdict(dict)
        """Items that show the image, by id."""
        for item in known:
            for image in shown_or_named(item) if leave_own_out else ():
                self.of_image[image][item.id] = item
            for answer in item.answers:
                self.of_all[answer] += 1
                self.of_question[item.question][answer] += 1
        self._ranked: dict[str | None, list[tuple[str, int]]] = {}

    def most_frequent(self, item: Item) -> str:
        answer = self._best(None, item)
        assert answer is not None  # see `answering.check_controls`
        return answer

    def to_question(self, item: Item) -> str:
        """Returns the most frequent answer to the same wording, or overall if the wording is asked only once."""
        return self._best(item.question, item) or self.most_frequent(item)

    def own(self, item: Item) -> list[Item]:
        """Returns the known items whose answers are left out: those with an image of this one."""
        if not self.leave_own_out:
            return []
        return list({id_: one for image in shown_or_named(item) for id_, one in self.of_image[image].items()}.values())

    def _best(self, question: str | None, item: Item) -> str | None:
        """Returns the most frequent answer that another image has, too; of equally frequent ones the first sorted."""
        counts = self.of_all if question is None else self.of_question.get(question, Counter())
        own = Counter(a for one in self.own(item) if question in (None, one.question) for a in one.answers)
        if question not in self._ranked:
            self._ranked[question] = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        return next((text for text, count in self._ranked[question] if count > own[text]), None)


def shown_or_named(item: Item) -> tuple[str, ...]:
    """Returns the hashes of an item's images; without images the key of its sample."""
    return item.shown or (item.image,)


def nearest_neighbours(items: Sequence[Item], known: Sequence[Item], prior: Prior, pooled: Pooled) -> list[str]:
    """Returns for each item the answer to the same wording about the image with the most similar features, by cosine.

    Items whose wording no other image has, and items without images, get the prior's answer.
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
        showing: dict[str, list[int]] = defaultdict(list)
        for column, place in enumerate(candidates):
            for image in known[place].shown if prior.leave_own_out else ():
                showing[image].append(column)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            similar = of_items[some] @ of_known[candidates].T
            for row, scores in zip(some, similar, strict=True):
                for image in items[row].shown:
                    scores[showing[image]] = -np.inf
                best = int(scores.argmax()) if scores.size else -1
                is_found = best >= 0 and np.isfinite(scores[best])
                answers[row] = known[candidates[best]].answers[0] if is_found else prior.to_question(items[row])
    return answers


def class_means(items: Sequence[Item], known: Sequence[Item], prior: Prior, pooled: Pooled) -> list[str]:
    """Returns for each item the caption whose training images have the nearest mean features (`nearest_class_means`).

    It needs training data: most captions of a test set have a single image.
    """
    assert not prior.leave_own_out
    return nearest_class_means(pooled(known), [item.answers[0] for item in known], pooled(items))


def _features(items: Sequence[Item], pooled: Pooled) -> Float[np.ndarray, "items features"]:
    """Returns features of unit length; images of several items are pooled once."""
    first = {item.image_set: item for item in reversed(items)}
    rows = dict(zip(first, range(len(first)), strict=True))
    features = normalise_rows(pooled(list(first.values())))
    return features[[rows[item.image_set] for item in items]]
