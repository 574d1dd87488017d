"""Scores of short answers: exact match, F1 of words, ANLS. Each takes the best reference.

By every rule here, a prediction of which normalisation leaves nothing scores 0.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

ANLS_THRESHOLD = 0.5
"""Largest edit distance, as a share of the longer text's characters, at which a similarity counts."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 if the prediction equals a reference apart from case and space, else 0.

    This is GQA's rule, where all answers are lower case.
    """
    return _is_any(_squeeze(prediction), map(_squeeze, references))


def squad_exact_match(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 if the prediction equals a reference after SQuAD's normalisation (Rajpurkar et al., 2016, D16-1264)."""
    return _is_any(squad_normalise(prediction), map(squad_normalise, references))


def squad_f1(prediction: str, references: Sequence[str]) -> float:
    """Returns the F1 of the words in common, counted with repetitions, after SQuAD's normalisation."""
    return max((_word_f1(squad_normalise(prediction), squad_normalise(text)) for text in references), default=0.0)


def squad_normalise(answer: str) -> str:
    """Normalises: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_WITHOUT_PUNCTUATION)).split())


def anls(prediction: str, references: Sequence[str]) -> float:
    """Computes the normalised Levenshtein similarity of one answer (ANLS; Biten et al., 2019, arXiv:1905.13648).

    It is 1 minus the edits as a share of the longer text's characters; 0 where more than half would have to change.
    Exactly half counts, as in the scorers in use (Robust Reading Competition, mmf, lmms-eval, VLMEvalKit), though not
    by the paper's formula.
    """
    predicted = _squeeze(prediction)
    return max((_similarity(predicted, _squeeze(text)) for text in references), default=0.0)


def edit_distance(one: str, other: str) -> int:
    """Returns the Levenshtein distance in characters, computed a row of the table at a time."""
    letters = np.frombuffer(other.encode("utf-32-le", "surrogatepass"), np.uint32)
    steps = np.arange(len(letters) + 1)
    row = steps
    for place, letter in enumerate(one):
        replaced = row[:-1] + (letters != ord(letter))
        above = np.concatenate([[place + 1], np.minimum(row[1:] + 1, replaced)])
        row = np.minimum.accumulate(above - steps) + steps  # and insertions, from left to right
    return int(row[-1])


def _similarity(predicted: str, reference: str) -> float:
    if not predicted or not reference:
        return 0.0
    distance = edit_distance(predicted, reference) / max(len(predicted), len(reference))
    return 1 - distance if distance <= ANLS_THRESHOLD else 0.0


def _word_f1(predicted: str, reference: str) -> float:
    ours, theirs = predicted.split(), reference.split()
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def _squeeze(answer: str) -> str:
    return " ".join(answer.lower().split())


def _is_any(predicted: str, references: Iterable[str]) -> float:
    return float(bool(predicted) and predicted in references)
