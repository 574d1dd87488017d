"""The result folder: what is written is read, and what is broken is named."""

import json

import pytest

from arlow_vl.errors import DataError
from arlow_vl.evaluation.results import CaptionRow, read_json, read_rows, read_tasks, write_predictions
from tests.evaluation.made_results import write_captions, write_questions


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = [CaptionRow(key="a", prediction='<b>"\u2028\n é 😀', references=["x", "y"])]
    assert read_rows(write_predictions(tmp_path, "captions-test-known", "model", rows)) == rows


def test_a_task_holds_the_model_first_then_its_controls_then_others(tmp_path):
    write_captions(tmp_path)
    (tmp_path / "captions-test-known" / "a_second_model.jsonl").write_bytes(
        (tmp_path / "captions-test-known" / "model.jsonl").read_bytes()
    )
    (task,) = read_tasks(tmp_path)
    assert list(task.rows) == [
        "model",
        "shuffled",
        "no_image",
        "most_frequent",
        "nearest_neighbour",
        "a_second_model",
    ]


def test_kinds_of_tasks_are_known_by_their_rows(tmp_path):
    write_captions(tmp_path)
    write_questions(tmp_path)
    assert [task.kind for task in read_tasks(tmp_path)] == ["captions", "questions"]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"key": "a", "prediction": "b"}',
        '{"key": "a", "prediction": null, "references": ["c"]}',
        '{"key": "a", "prediction": "b", "references": []}',
        '{"key": "a", "prediction": "b", "references": "c"}',
        '{"key": "a", "question": "q", "prediction": "b", "answers": ["c"]}',
    ],
)
def test_a_broken_line_is_named(tmp_path, line):
    path = tmp_path / "model.jsonl"
    path.write_text('{"key": "a", "prediction": "b", "references": ["c"]}\n' + line + "\n")
    with pytest.raises(DataError, match=r"model\.jsonl:2"):
        read_rows(path)


def test_systems_that_were_asked_different_things_are_refused(tmp_path):
    write_captions(tmp_path)
    path = tmp_path / "captions-test-known" / "shuffled.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[::-1]) + "\n")
    with pytest.raises(DataError, match=r"shuffled\.jsonl: other samples or another order"):
        read_tasks(tmp_path)


def test_an_empty_file_of_predictions_is_refused(tmp_path):
    (tmp_path / "model.jsonl").touch()
    with pytest.raises(DataError, match="no predictions"):
        read_rows(tmp_path / "model.jsonl")


def test_a_broken_json_file_is_named(tmp_path):
    (tmp_path / "meta.json").write_text(json.dumps({"title": "x"})[:-1])
    with pytest.raises(DataError, match=r"meta\.json: not JSON"):
        read_json(tmp_path / "meta.json")
