"""Controls that a model must beat: answers from no image, from a wrong one, or from the most similar training image."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float

ROWS_AT_ONCE = 1024
Key = TypeVar("Key", str, tuple[str, ...])


def most_frequent(texts: Iterable[str]) -> str:
    """Returns the most frequent of training captions or answers; of equally frequent ones the first in sort order.

    Raises:
        ValueError: there are no texts.
    """
    counts = Counter(texts)
    if not counts:
        raise ValueError("the most frequent text of none: pass the training captions or answers")
    return min(counts, key=lambda text: (-counts[text], text))


def nearest_neighbour(
    train_features: Float[np.ndarray, "train dim"],
    train_captions: Sequence[str],
    test_features: Float[np.ndarray, "test dim"],
) -> list[str]:
    """Returns for each test image the caption of the training image with the most similar features, by cosine.

    Raises:
        ValueError: training features and captions differ in number, or there are none.
    """
    if not len(train_features) == len(train_captions) > 0:
        raise ValueError(f"{len(train_features)} training features need as many captions, got {len(train_captions)}")
    train = normalise_rows(train_features)
    captions = []
    for start in range(0, len(test_features), ROWS_AT_ONCE):
        similarity = normalise_rows(test_features[start : start + ROWS_AT_ONCE]) @ train.T
        captions += [train_captions[row] for row in similarity.argmax(axis=1)]
    return captions


def normalise_rows(features: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, np.finfo(features.dtype).tiny)


def question_prior(train: Iterable[tuple[str, str]], questions: Sequence[str]) -> list[str]:
    """Answers each question from its wording alone, with the most frequent training answer to that exact wording.

    A wording that is not in the training data gets the most frequent answer overall.
    """
    by_question = defaultdict(list)
    for question, answer in train:
        by_question[question].append(answer)
    usual = most_frequent(answer for answers in by_question.values() for answer in answers)
    answer_to = {question: most_frequent(answers) for question, answers in by_question.items()}
    return [answer_to.get(question, usual) for question in questions]


def shuffle_images(keys: Sequence[Key], labels: Sequence[str], *, seed: int = 0) -> list[int]:
    """Returns for each sample the position of one whose image to show instead.

    `keys` name the images; `labels` are captions, or names of what is not to be shown for one another. All samples of
    one image are shown the same other one, and every image is used. None is shown its own image, nor one with its own
    label as far as the most frequent label leaves that possible.

    Raises:
        ValueError: there are fewer than two images.
    """
    position = {key: place for place, key in reversed(list(enumerate(keys)))}
    if len(position) < 2:
        raise ValueError(f"shuffling needs two images at least, got {len(position)}")
    rng, images = np.random.default_rng(seed), sorted(position)
    groups = defaultdict(list)
    for place in rng.permutation(len(images)):
        groups[labels[position[images[place]]]].append(images[place])
    # Equal labels lie together, so a turn by the longest run takes every image out of its run.
    order = [key for group in groups.values() for key in group]
    longest = max(map(len, groups.values()))
    turn = longest if longest < len(order) else 1
    shown = {key: order[(place + turn) % len(order)] for place, key in enumerate(order)}
    return [position[shown[key]] for key in keys]
