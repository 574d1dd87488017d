"""Exact match, F1 and ANLS of short answers."""

import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.evaluation.metrics.answers import (
    anls,
    edit_distance,
    exact_match,
    squad_exact_match,
    squad_f1,
    squad_normalise,
)

answers = st.text(max_size=12) | st.lists(
    st.sampled_from(["the", "The ", "a", "an", " ", "red", "dog", ",", "-", "dog's", "\n", "aé"]), max_size=6
).map("".join)


def squad_reference(prediction, truth):
    """Exact match and F1 as the SQuAD v1.1 evaluation computes them, apart from what is left of nothing."""

    def normalised(text):
        text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    ours, theirs = normalised(prediction), normalised(truth)
    same = sum((Counter(ours.split()) & Counter(theirs.split())).values())
    if not same:
        return float(ours == theirs and ours != ""), 0.0
    precision, recall = same / len(ours.split()), same / len(theirs.split())
    return float(ours == theirs), 2 * precision * recall / (precision + recall)


def edits(one, other):
    """The textbook's table."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        above, row = row, [i]
        for j, b in enumerate(other, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (a != b)))
    return row[-1]


@given(answers, st.lists(answers, min_size=1, max_size=4))
def test_squads_scores_are_those_of_the_best_reference(prediction, references):
    expected = [squad_reference(prediction, truth) for truth in references]
    assert squad_exact_match(prediction, references) == max(exact for exact, _ in expected)
    assert squad_f1(prediction, references) == pytest.approx(max(f1 for _, f1 in expected))


@given(answers, answers)
def test_the_edit_distance_is_the_textbooks(one, other):
    assert edit_distance(one, other) == edits(one, other)


@given(answers, st.lists(answers, min_size=1, max_size=3))
def test_anls_is_the_share_of_characters_that_need_no_edit_from_a_half_on(prediction, references):
    best = 0.0
    for truth in references:
        one, other = (" ".join(text.lower().split()) for text in (prediction, truth))
        if one and other and edits(one, other) / max(len(one), len(other)) <= 0.5:
            best = max(best, 1 - edits(one, other) / max(len(one), len(other)))
    assert anls(prediction, references) == pytest.approx(best)


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [("abcd", "axyz", 0.0), ("abcd", "abxy", 0.5), ("abcd", "abcx", 0.75), ("ABCD ", "abcd", 1.0)],
)
def test_an_answer_more_than_half_of_which_is_wrong_is_another_answer(prediction, reference, score):
    assert anls(prediction, [reference]) == score


@pytest.mark.parametrize("rule", [exact_match, squad_exact_match, squad_f1, anls])
@pytest.mark.parametrize("references", [["", "the", "?"], ["dog"], []])
def test_nothing_is_no_answer(rule, references):
    assert rule("", references) == rule(" \n", references) == 0


def test_exact_match_keeps_articles_and_punctuation_and_squads_does_not():
    assert exact_match(" Red  Dog", ["cat", "red dog"]) == 1
    assert exact_match("the red dog.", ["red dog"]) == 0
    assert squad_exact_match("the red dog.", ["red dog"]) == 1
    assert squad_normalise("The cat's hat -- an old one!") == "cats hat old one"
