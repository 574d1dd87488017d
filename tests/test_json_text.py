"""Files of JSON that people read hold letters, not their numbers; and whatever a name is made of, they can be read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.data.bad_items import Fault
from arlow_vl.data.quarantine import Quarantine
from arlow_vl.data.trained_prompts import TrainedPrompts
from arlow_vl.evaluation.tasks.predictions import PredictionRow, line_of, write_json
from arlow_vl.json_text import json_text
from arlow_vl.serving.answer_file import AnswerFile
from arlow_vl.training.logs import StepLog
from tests.training.test_callbacks import READING

NAME = "Füchse/狐狸\udcff\u2028\x85.jpg"
SHOWN = "Füchse/狐狸\\udcff\\u2028\\u0085.jpg"


@given(st.text(st.characters(codec=None, exclude_categories=())) | st.lists(st.text()))
def test_what_is_written_is_read_again_line_by_line(value):
    text = json_text(value)
    assert text.encode().decode().splitlines() == [text]
    assert json.loads(text) == json.loads(json.dumps(value))


def test_options_are_those_of_json():
    assert json_text({"a": ["ü"]}, indent=1) == '{\n "a": [\n  "ü"\n ]\n}'
    with pytest.raises(ValueError, match="JSON compliant"):
        json_text(float("nan"), allow_nan=False)


def answers(folder: Path) -> Path:
    with AnswerFile(folder / "captions.jsonl", {"question": "où?"}) as file:
        file.add([{"image": NAME, "caption": "ein Fuchs"}])
    with AnswerFile(folder / "captions.jsonl", {"question": "où?"}) as file:
        assert file.done == {NAME}
    assert "où?" in (folder / "captions.jsonl.meta.json").read_text("utf-8")
    return folder / "captions.jsonl"


def quarantine(folder: Path) -> Path:
    Quarantine(folder / "quarantine.jsonl").add(Fault("s", 0, NAME, "truncated", "no"))
    return folder / "quarantine.jsonl"


def steps(folder: Path) -> Path:
    log = StepLog(folder / "steps.jsonl")
    log.step_read(replace(READING, keys=[NAME], step=1))
    log.keep_until(1)
    return folder / "steps.jsonl"


def predictions(folder: Path) -> Path:
    row = PredictionRow(id=NAME, image=NAME, prompt="", output="", references=[])
    (folder / "predictions.jsonl").write_bytes(line_of(row).encode())
    return folder / "predictions.jsonl"


def metrics(folder: Path) -> Path:
    write_json(folder / "metrics.json", {"overlap": {"first": NAME}})
    return folder / "metrics.json"


def prompts(folder: Path) -> Path:
    TrainedPrompts({"question": {NAME: 7}}).save_pretrained(folder)
    return folder / "trained_prompts.json"


@pytest.mark.parametrize("write", [answers, quarantine, steps, predictions, metrics, prompts])
def test_each_file_holds_letters_and_takes_any_name(write, tmp_path):
    assert SHOWN in write(tmp_path).read_text("utf-8")
