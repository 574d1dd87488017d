"""POPE: does the model say that things are in an image which are not (Li et al., 2023, arXiv:2305.10355)?

Each question is answered by yes or no. "Yes" is the positive class, so a model that always says yes has recall 1, and
its share of yes tells why.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from arlow_vl.evaluation.metrics.sums import Values, ratio, ratio_or_0

COUNTS = ("true yes", "false yes", "false no", "true no", "neither")


def pope_answer(text: str) -> str:
    """Returns "no" or "yes" by the official rule: "no" if the first sentence has the word no, No or not, else "yes".

    So the official rule takes an empty answer for a yes; `says_neither` counts those.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def says_neither(text: str) -> bool:
    """True for an answer that the official rule takes for a yes though it does not hold the word yes."""
    return pope_answer(text) == "yes" and "yes" not in re.findall(r"[a-z]+", text.lower())


def pope_counts(predictions: Sequence[str], labels: Sequence[str]) -> Float[np.ndarray, "samples 5"]:
    """Per question which of `COUNTS` it is. "Neither" is counted beside the yes that it is taken for.

    Raises:
        ValueError: a label is neither yes nor no.
    """
    rows = np.zeros((len(predictions), len(COUNTS)))
    for row, prediction, label in zip(rows, predictions, labels, strict=True):
        expected = label.strip().lower()
        if expected not in ("yes", "no"):
            raise ValueError(f"POPE's references are yes or no, got {label!r}; give the label alone")
        said = pope_answer(prediction)
        row[COUNTS.index(f"{'true' if said == expected else 'false'} {said}")] = 1
        row[COUNTS.index("neither")] = says_neither(prediction)
    return rows


def accuracy(sums: Float[np.ndarray, "*batch 5"]) -> Values:
    return ratio(sums[..., 0] + sums[..., 3], sums[..., :4].sum(axis=-1))


def precision(sums: Float[np.ndarray, "*batch 5"]) -> Values:
    """Of the answers yes, those that are right; 0 where there is none."""
    return ratio_or_0(sums[..., 0], sums[..., 0] + sums[..., 1], sums[..., :4].sum(axis=-1))


def recall(sums: Float[np.ndarray, "*batch 5"]) -> Values:
    """Of the questions whose answer is yes, those answered so; NaN where there is no such question."""
    return ratio(sums[..., 0], sums[..., 0] + sums[..., 2])


def f1(sums: Float[np.ndarray, "*batch 5"]) -> Values:
    """0 where nothing is a yes, neither answer nor label."""
    right = 2 * sums[..., 0]
    return ratio_or_0(right, right + sums[..., 1] + sums[..., 2], sums[..., :4].sum(axis=-1))


def yes_share(sums: Float[np.ndarray, "*batch 5"]) -> Values:
    return ratio(sums[..., 0] + sums[..., 1], sums[..., :4].sum(axis=-1))


def neither_share(sums: Float[np.ndarray, "*batch 5"]) -> Values:
    return ratio(sums[..., 4], sums[..., :4].sum(axis=-1))
