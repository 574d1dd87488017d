"""What a user types, one command after the other, on the committed samples: evaluate, report, reproduce."""

import json
import re
import shutil
from pathlib import Path

import pytest

from arlow_vl.cli import main
from arlow_vl.evaluation.faithfulness import SHARES
from arlow_vl.evaluation.tasks.evaluate import EvaluationOptions, command_line
from arlow_vl.evaluation.tasks.task import load_task
from arlow_vl.models.folder_writing import save_folder
from tests.evaluation.test_faithfulness import tiny_model
from tests.tiny_runs import SAMPLES

TASKS = ("captions-test-known", "easy-vqa")


def typed(*words) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A random model that writes words: its seed is one of those that do."""
    folder = tmp_path_factory.mktemp("talker")
    save_folder(tiny_model(folder), folder / "hf")
    return folder / "hf"


@pytest.fixture(scope="module")
def results(talker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reported")
    tasks = [word for name in TASKS for word in ("--task", name)]
    shared = ["--data", SAMPLES, "--features", folder / "features", "--limit", 4]
    assert typed("evaluate", "--model", talker, *tasks, *shared, "--output", folder / "results") == 0
    return folder / "results"


@pytest.fixture(scope="module")
def page(results):
    assert typed("report", results, "--heat", 3) == 0
    return (results / "report.html").read_text(encoding="utf-8")


def test_heat_maps_of_several_samples_are_drawn_with_what_was_written(page):
    assert (
        len(re.findall(r'<img class="map" src="data:image/\w+;base64,[^"]{1000,}" alt="Heat of each word', page)) == 3
    )


def test_heat_is_tested_on_as_many_images_as_asked_for_and_the_figures_are_kept(page, results):
    (layer,) = json.loads((results / "heat.json").read_text())["layers"]
    assert layer["images"] == 3 and layer["words"] > 0
    assert all(len(falls) == len(SHARES) for falls in layer["falls"].values())
    assert f"<h3>Layer {layer['layer']}" in page and "most minus random" in page


def test_kept_figures_are_shown_again_without_a_model(page, results, tmp_path):
    copy = shutil.copytree(results, tmp_path / "results")
    assert typed("report", copy, "--model", tmp_path, "--output", tmp_path / "page.html") == 0
    again = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "most minus random" in again and "is not the model that was evaluated" in again


def test_every_sample_is_shown_with_its_image(page):
    figures = page.split("<figure")[1:]
    assert len(figures) >= 8 and all("data:image/" in figure for figure in figures)


def test_the_command_to_do_it_again_is_the_one_that_was_run(page, results, talker):
    told = json.loads((results / "easy-vqa" / "metrics.json").read_text())["command"].split()
    options = dict(zip(told[2::2], told[3::2], strict=True))
    assert told[:2] == ["arlow", "evaluate"]
    assert (options["--model"], options["--task"], options["--limit"]) == (str(talker), "easy-vqa", "4")
    assert (options["--data"], options["--output"]) == (str(SAMPLES), str(results))
    assert " ".join(told) in page


def test_the_command_to_do_it_again_keeps_the_secrets_of_addresses():
    address = "https://user:secret@host/a.tar?token=secret"
    run = EvaluationOptions(model=Path("m"), data=address, training=address, output=Path("o"), features=Path("f"))
    told = command_line(run, load_task("easy-vqa"))
    assert "--data https://host/a.tar --training https://host/a.tar " in told and "secret" not in told


def test_everything_is_equal_when_it_is_derived_again(results, capsys):
    assert typed("reproduce", results) == 0
    assert ", 0 unequal, 0 not here" in capsys.readouterr().out
