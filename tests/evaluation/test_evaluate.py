"""The whole evaluation on the committed samples, with a tiny random model."""

import shlex

import pytest

from arlow_vl.cli import build_parser, main
from arlow_vl.evaluation.results import read_json, read_tasks
from arlow_vl.training.recipe import parse_recipe
from arlow_vl.training.run import fit
from tests.tiny_runs import SAMPLES, write_image_text_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained tiny model and its evaluation, by the commands that a user types."""
    folder = tmp_path_factory.mktemp("evaluation")
    fit(parse_recipe(["--config", str(write_image_text_recipe(folder))]))
    options = {
        "--model": folder / "run" / "hf",
        "--text-model": folder / "text",
        "--data": SAMPLES,
        "--features": folder / "features",
        "--output": folder / "results",
        "--questions": 20,
    }
    assert main(["evaluate", *(str(word) for pair in options.items() for word in pair)]) == 0
    return folder


def test_every_task_has_the_model_and_all_its_controls(folder):
    tasks = {task.name: task for task in read_tasks(folder / "results")}
    assert {name: len(task.rows) for name, task in tasks.items()} == {
        "captions-test-known": 5,
        "captions-test-novel": 5,
        "easy-vqa-test": 5,
    }
    assert len(tasks["easy-vqa-test"].rows["model"]) == 20


def test_text_is_the_same_to_the_last_bit_after_the_vision_stage(folder):
    text = read_json(folder / "results" / "text.json")
    for name in ("loss", "bits_per_byte", "logits_sha256"):
        assert text[f"{name}_before"] == text[f"{name}_after"]


def test_what_is_said_of_the_data_comes_from_the_data(folder):
    meta = read_json(folder / "results" / "meta.json")
    assert {(row["name"], row["license"]) for row in meta["data"]} >= {("emoji", "Apache-2.0"), ("easy-vqa", "MIT")}
    assert meta["summary"] == ""  # the samples carry none


def test_the_command_to_do_it_again_is_the_one_that_was_run(folder):
    evaluation, report = read_json(folder / "results" / "meta.json")["reproduce"]
    words = shlex.split(evaluation)
    assert words[:2] == ["arlow", "evaluate"]
    args = build_parser().parse_args(words[1:])
    assert (args.model, args.data, args.output) == (folder / "run" / "hf", SAMPLES, folder / "results")
    assert (args.questions, args.text_model, args.features) == (20, folder / "text", folder / "features")
    assert report == f"arlow report {folder / 'results'}"


def test_a_report_is_made_of_the_results(folder, capsys):
    assert main(["report", str(folder / "results")]) == 0
    assert "report.html" in capsys.readouterr().out
    assert "<img" in (folder / "results" / "report.html").read_text()


def test_an_image_is_captioned_from_the_command_line(folder, capsys):
    image = str(SAMPLES / "fox.jpg")
    assert main(["caption", "--model", str(folder / "run" / "hf"), image]) == 0
    assert capsys.readouterr().out.startswith(f"{image}: ")


@pytest.mark.parametrize(
    ("model", "status", "sentence"),
    [("text", 4, "holds a model of type 'arlow', expected 'arlow_vl'"), ("nowhere", 4, "holds no config.json")],
)
def test_a_folder_of_another_model_is_refused(folder, capsys, model, status, sentence):
    assert main(["caption", "--model", str(folder / model), str(SAMPLES / "fox.jpg")]) == status
    assert sentence in capsys.readouterr().err


def test_an_image_that_is_none_is_refused_before_the_model_is_read(folder, capsys):
    assert main(["caption", "--model", str(folder / "nowhere"), __file__]) == 3
    assert __file__ in capsys.readouterr().err


def test_missing_test_data_name_the_command_that_fetches_them(folder, capsys):
    words = ["evaluate", "--model", folder / "run" / "hf", "--data", folder / "no-data", "--output", folder / "out"]
    assert main([str(word) for word in words]) == 3
    assert "arlow data fetch" in capsys.readouterr().err
