"""POPE, a test of whether a model claims to see things that are not in the image (Li et al., 2023, arXiv:2305.10355).

Each question is answered with yes or no. "Yes" is the positive class, so a model that always says yes has recall 1; its
share of yes reveals it.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from arlow_vl.evaluation.metrics.sums import Values, ratio, ratio_or_0

COUNTS = ("true yes", "false yes", "false no", "true no", "neither")


def pope_answer(text: str) -> str:
    """Returns "no" or "yes" by the official rule: "no" if the first sentence has the word no, No or not, else "yes".

    The official rule therefore counts an empty answer as yes; `says_neither` finds such answers.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def says_neither(text: str) -> bool:
    """True for an answer that the official rule counts as yes although it does not contain the word."""
    return pope_answer(text) == "yes" and "yes" not in re.findall(r"[a-z]+", text.lower())


def pope_counts(predictions: Sequence[str], labels: Sequence[str]) -> Float[np.ndarray, "samples 5"]:
    """Marks for each question which of `COUNTS` it is; "neither" is marked beside the yes as which it counts.

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
    """Returns the share of yes answers that are right; 0 where there is none."""
    return ratio_or_0(sums[..., 0], sums[..., 0] + sums[..., 1], sums[..., :4].sum(axis=-1))


def recall(sums: Float[np.ndarray, "*batch 5"]) -> Values:
    """Returns the share of questions with the label yes that are answered so; NaN where there is none."""
    return ratio(sums[..., 0], sums[..., 0] + sums[..., 2])


def f1(sums: Float[np.ndarray, "*batch 5"]) -> Values:
    """Returns F1; 0 where neither an answer nor a label is yes."""
    right = 2 * sums[..., 0]
    return ratio_or_0(right, right + sums[..., 1] + sums[..., 2], sums[..., :4].sum(axis=-1))


def yes_share(sums: Float[np.ndarray, "*batch 5"]) -> Values:
    return ratio(sums[..., 0] + sums[..., 1], sums[..., :4].sum(axis=-1))


def neither_share(sums: Float[np.ndarray, "*batch 5"]) -> Values:
    return ratio(sums[..., 4], sums[..., :4].sum(axis=-1))
