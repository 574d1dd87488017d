"""What is evaluated: splits of which nothing is missing, and their questions."""

import pytest

from arlow_vl.data.questions import Question
from arlow_vl.errors import DataError
from arlow_vl.evaluation.runner import choose_questions, read_split
from tests.outside_data import JPEG, samples, tar_of
from tests.tiny_runs import SAMPLES


def test_a_split_with_an_unusable_sample_is_not_scored(tmp_path):
    (tmp_path / "test-000000.tar").write_bytes(tar_of(*samples(*map(str, range(99)))))
    assert len(read_split(tmp_path, "test")) == 99
    (tmp_path / "test-000001.tar").write_bytes(tar_of(*samples("a"), ("b.jpg", JPEG)))
    with pytest.raises(DataError, match=r"1 of 101 samples are unusable, the limit is 0%: missing_text 1"):
        read_split(tmp_path, "test")


def test_samples_without_questions_are_passed_over(tmp_path):
    with_one = ("1.json", b'{"questions": [{"question": "Is it red?", "answer": "no"}]}')
    (tmp_path / "test-000000.tar").write_bytes(tar_of(*samples("0"), *samples("1"), with_one))
    ((sample, question),) = choose_questions(read_split(tmp_path, "test"), None)
    assert (sample.key, question) == ("1", Question("Is it red?", "no", "other"))


def test_a_test_set_without_any_question_is_an_error(tmp_path):
    (tmp_path / "test-000000.tar").write_bytes(tar_of(*samples("0")))
    with pytest.raises(DataError, match="no test sample has a question"):
        choose_questions(read_split(tmp_path, "test"), None)


def test_some_questions_are_spread_over_all_samples():
    split = read_split(SAMPLES / "easy-vqa", "test")
    chosen = choose_questions(split, 5)
    assert len(chosen) == 5
    assert len({sample.key for sample, _ in chosen}) > 1
