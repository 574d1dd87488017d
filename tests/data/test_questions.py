"""Questions out of a sample's JSON, as outside data come: clean, or counted with a reason."""

import json

import pytest

from arlow_vl.data.questions import Question, read_questions
from arlow_vl.errors import DataError
from tests.data.conftest import answer_of
from tests.outside_data import samples, tar_of

GOOD = {"question": "Is it red?", "answer": "yes", "kind": "yes/no"}


def test_questions_are_clean_texts_with_a_kind():
    found = read_questions([GOOD, {"question": "\ufeff Who? ", "answer": "a cat\n"}])
    assert found == ((Question("Is it red?", "yes", "yes/no"), Question("Who?", "a cat", "other")), [])


@pytest.mark.parametrize("value", [None, []])
def test_a_sample_without_questions_is_no_fault(value):
    assert read_questions(value) == ((), [])


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("Is it red?", "question_not_an_object"),
        (None, "question_not_an_object"),
        ({}, "missing_question"),
        (GOOD | {"question": ["Is it red?"]}, "question_not_text"),
        (GOOD | {"question": " "}, "empty_question"),
        (GOOD | {"question": "a\0b"}, "nul_in_question"),
        (GOOD | {"question": "a" * 10_001}, "question_too_long"),
        ({"question": "Is it red?"}, "missing_answer"),
        (GOOD | {"answer": None}, "missing_answer"),
        (GOOD | {"answer": 3}, "answer_not_text"),
        (GOOD | {"answer": ["yes"]}, "answer_not_text"),
        (GOOD | {"answer": "\n"}, "empty_answer"),
        (GOOD | {"answer": "a\0"}, "nul_in_answer"),
        (GOOD | {"answer": "a" * 10_001}, "answer_too_long"),
        (GOOD | {"kind": 3}, "bad_question_kind"),
        (GOOD | {"kind": None}, "bad_question_kind"),
        (GOOD | {"kind": "a\x1b"}, "bad_question_kind"),
    ],
)
def test_a_bad_question_costs_itself_alone_and_says_why(entry, reason):
    usable, bad = read_questions([GOOD, entry, GOOD])
    assert (len(usable), bad) == (2, [(1, reason)])


@pytest.mark.parametrize("value", ["Is it red?", {"question": "?"}, 3, True])
def test_anything_but_a_list_is_one_fault(value):
    assert read_questions(value) == ((), [(0, "questions_not_a_list")])


def test_bad_questions_of_a_shard_are_named_and_limited(scan):
    fields = {"source": "x", "questions": [GOOD, GOOD | {"answer": 3}]}
    found = scan(tar_of(*samples("a"), ("a.json", json.dumps(fields).encode()), *samples("b")))
    assert found.keys == ["a", "b"]
    assert found.samples[0].fields == {"source": "x"}
    answers = [answer_of(text) for sample in found.samples for text in sample.texts if text.task == "question"]
    assert answers == ["yes"]
    assert [(bad.name, bad.reason) for bad in found.tally.bad_questions] == [("a.tar:a, question 1", "answer_not_text")]
    found.tally.check("a.tar", 0.5)
    with pytest.raises(DataError, match=r"1 of 2 questions is unusable.*answer_not_text 1 \(as a\.tar:a, question 1\)"):
        found.tally.check("a.tar")
