"""POPE's counts, against the definitions of the rates."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.evaluation.metrics import pope

said = st.sampled_from(["yes", "Yes, there is a dog.", "no", "No.", "There is not. yes", "a dog", "", "Nope"])


@given(st.lists(st.tuples(said, st.sampled_from(["yes", "no", "No "])), min_size=1, max_size=20))
def test_rates_are_those_of_the_confusion_matrix(pairs):
    predictions, labels = (list(column) for column in zip(*pairs, strict=True))
    ours = [pope.pope_answer(text) == "yes" for text in predictions]
    theirs = [label == "yes" for label in labels]
    right_yes = sum(a and b for a, b in zip(ours, theirs, strict=True))
    sums = pope.pope_counts(predictions, labels).sum(axis=0)
    assert pope.accuracy(sums) == pytest.approx(np.mean(np.equal(ours, theirs)))
    assert pope.yes_share(sums) == pytest.approx(np.mean(ours))
    precision, recall = right_yes / max(1, sum(ours)), right_yes / max(1, sum(theirs))
    assert pope.precision(sums) == pytest.approx(precision)
    assert pope.recall(sums) == (pytest.approx(recall) if any(theirs) else pytest.approx(math.nan, nan_ok=True))
    harmonic = 2 * precision * recall / (precision + recall) if right_yes else 0
    assert pope.f1(sums) == pytest.approx(harmonic)


@pytest.mark.parametrize(
    ("text", "answer", "is_neither"),
    [
        ("Yes, there is.", "yes", False),
        ("No, there is none.", "no", False),
        ("There is not a dog.", "no", False),
        ("I see a cat. There is no dog.", "yes", True),
        ("", "yes", True),
        ("a dog", "yes", True),
        ("YES", "yes", False),
        ("NO", "yes", True),
    ],
)
def test_answers_are_read_by_the_official_rule_and_what_it_guesses_is_counted(text, answer, is_neither):
    assert (pope.pope_answer(text), pope.says_neither(text)) == (answer, is_neither)


def test_a_model_that_always_says_yes_is_told_by_its_share_of_yes():
    sums = pope.pope_counts(["yes"] * 4, ["yes", "no", "no", "no"]).sum(axis=0)
    assert (pope.recall(sums), pope.accuracy(sums), pope.yes_share(sums)) == (1, 0.25, 1)


def test_a_label_that_is_neither_yes_nor_no_is_refused():
    with pytest.raises(ValueError, match="references are yes or no, got 'maybe'"):
        pope.pope_counts(["yes"], ["maybe"])
