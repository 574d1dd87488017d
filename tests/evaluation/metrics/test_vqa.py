"""VQA accuracy by both rules, against numbers of the stored official implementation."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.evaluation.metrics.vqa import CONTRACTIONS, normalise_answer, vqa_accuracy

CASES = json.loads(Path(__file__).with_name("vqa_scores.json").read_text(encoding="utf-8"))["cases"]
answers = st.text() | st.lists(
    st.sampled_from(["a", "The", " ", ",", ".", "5", "1,000", "two", "dont", "-", "'", "\n"])
).map("".join)


def test_official_rule_equals_the_official_implementation():
    for prediction, given_answers, official, _ in CASES:
        assert vqa_accuracy(prediction, given_answers, rule="official") == pytest.approx(official, abs=1e-12)


def test_other_rule_equals_the_official_steps_on_both_sides():
    for prediction, given_answers, _, both in CASES:
        assert vqa_accuracy(prediction, given_answers, rule="normalised both") == pytest.approx(both, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "given_answers"),
    [
        ("two", ["two"] * 10),
        ("the north face", ["the north face"] * 10),
        ("coca-cola", ["coca-cola"] * 10),
        ("a robin", ["a robin"] * 8 + ["wren"] * 2),
    ],
)
def test_an_answer_in_the_annotators_own_words_is_right_by_either_rule(prediction, given_answers):
    assert vqa_accuracy(prediction, given_answers, rule="official") == 1
    assert vqa_accuracy(prediction, given_answers, rule="normalised both") == 1


@pytest.mark.parametrize(("prediction", "agreeing"), [("2", "two"), ("Yes", "yes"), ("robin", "a robin")])
def test_rules_differ_where_all_annotators_agree_and_the_prediction_has_other_letters(prediction, agreeing):
    assert vqa_accuracy(prediction, [agreeing] * 10, rule="official") == 0
    assert vqa_accuracy(prediction, [agreeing] * 10, rule="normalised both") == 1


@pytest.mark.parametrize(("agreeing", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_accuracy_is_the_share_of_three_annotators_averaged_over_leaving_one_out(agreeing, accuracy):
    given_answers = ["cat"] * agreeing + ["dog"] * (10 - agreeing)
    assert vqa_accuracy("cat", given_answers, rule="official") == pytest.approx(accuracy)


@pytest.mark.parametrize("rule", ["official", "normalised both"])
@pytest.mark.parametrize(("prediction", "is_right"), [("Blue.", 1), ("the blue", 1), ("blue green", 0), ("", 0)])
def test_a_single_answer_asks_for_equality_after_normalisation(rule, prediction, is_right):
    assert vqa_accuracy(prediction, ["blue"], rule=rule) == is_right


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [
        ("Two dogs!", "2 dogs"),
        ("an apple, a pear", "apple pear"),
        ("dont", "don't"),
        ("1,000", "1000"),
        ("black/white", "black white"),
        ("3.5 U.S.", "3.5 us"),
        ("couldntve", "couldntve"),
    ],
)
def test_answers_are_normalised_as_the_official_evaluation_does(answer, normalised):
    assert normalise_answer(answer) == normalised


@given(answers)
def test_normalising_twice_is_normalising_once(answer):
    once = normalise_answer(answer)
    assert normalise_answer(once) == once


@given(answers, st.lists(answers, min_size=1, max_size=10), st.sampled_from(["official", "normalised both"]))
def test_any_texts_have_an_accuracy(prediction, given_answers, rule):
    assert 0 <= vqa_accuracy(prediction, given_answers, rule=rule) <= 1


def test_every_contraction_lacks_one_apostrophe():
    odd = {"somebody'd"}
    assert all(word.count("'") + 1 == full.count("'") for word, full in CONTRACTIONS.items() if word not in odd)


def test_a_question_without_answers_is_refused():
    with pytest.raises(ValueError, match="needs an answer"):
        vqa_accuracy("yes", [], rule="official")


RULES = pytest.mark.parametrize("rule", ["official", "normalised both"])


@RULES
@pytest.mark.parametrize(
    ("prediction", "answer", "is_right"),
    [
        ("", "A", 0),
        (" ", "the", 0),
        ("the", "A", 0),
        ("?", "A", 0),
        ("!", "?", 0),
        ("", "?", 0),
        ("", "", 0),
        (" ", "", 0),
        ("A", "A", 1),
        ("a.", "A", 1),
        ("The", "the", 1),
        ("?", "?", 1),
    ],
)
def test_a_prediction_of_which_nothing_is_left_is_right_only_if_it_says_the_answer(rule, prediction, answer, is_right):
    assert vqa_accuracy(prediction, [answer], rule=rule) == is_right
    assert vqa_accuracy(prediction, [answer], rule=rule, empty_may_match=True) == 1  # as the official code


@pytest.mark.parametrize("prediction", ["", "an", "?"])
def test_nothing_matches_no_annotator_of_several(prediction):
    assert vqa_accuracy(prediction, ["the"] * 10, rule="normalised both") == 0
    assert vqa_accuracy(prediction, ["the"] * 10, rule="normalised both", empty_may_match=True) == 1
    assert vqa_accuracy(prediction, ["!"] * 5 + ["."] * 5, rule="official") == 0


@RULES
def test_who_gave_an_empty_answer_counts_among_the_ten(rule):
    """As in the official code, which gives 27 / 30: without one of three foxes 2 / 3, without another answer 1."""
    assert vqa_accuracy("fox", ["fox"] * 3 + ["dog"] * 6 + [""], rule=rule) == pytest.approx(0.9)
    assert vqa_accuracy("", ["fox"] * 6 + [""] * 4, rule=rule) == 0


@RULES
@given(prediction=answers, given_answers=st.lists(answers, min_size=1, max_size=10))
def test_only_predictions_of_which_nothing_is_left_differ_from_the_official_code(rule, prediction, given_answers):
    strict = vqa_accuracy(prediction, given_answers, rule=rule)
    official = vqa_accuracy(prediction, given_answers, rule=rule, empty_may_match=True)
    assert strict <= official
    assert strict == official or not normalise_answer(prediction)
