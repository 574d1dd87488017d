"""Controls without a model, from training data: the most frequent text, that of the most similar image, and the answer
to the same wording."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from arlow_vl.evaluation.class_means import normalise_rows

ROWS_AT_ONCE = 1024


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
