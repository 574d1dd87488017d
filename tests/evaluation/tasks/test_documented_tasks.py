"""The tasks that docs/evaluation.md shows in full are run as they stand there, on the data that they are shown with."""

import json
import re
from pathlib import Path

import pytest
import yaml

from arlow_vl.cli import main
from arlow_vl.evaluation.tasks.predictions import read_rows
from arlow_vl.evaluation.tasks.task import CONTROLS, IMAGE_CONTROLS, PRIORS
from tests.evaluation.tasks.conftest import COLOURS, image_bytes, write
from tests.evaluation.tasks.made_sets import shard

DOCUMENT = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
TASKS = {task["name"]: text for text in BLOCKS if "name" in (task := yaml.safe_load(text))}
(CAPTIONS,) = re.findall(r"^```\n(image,text\n.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def evaluate(tmp_path, model_folder):
    """Runs a task of the document on the data below a folder; gives what metrics.json and the model's lines hold."""

    def run(name, data):
        write(tmp_path, {f"{name}.yaml": TASKS[name]})
        words = ["evaluate", "--model", model_folder, "--task", tmp_path / f"{name}.yaml", "--data", data]
        words += ["--features", tmp_path / "features", "--output", tmp_path / "results"]
        assert main([str(word) for word in words]) == 0
        folder = tmp_path / "results" / name
        return json.loads((folder / "metrics.json").read_text()), read_rows(folder / "model" / "predictions.jsonl")

    return run


def test_every_whole_task_of_the_document_is_run_here():
    assert set(TASKS) == {"birds", "my-captions"}


def test_the_controls_are_documented_in_the_order_that_what_a_task_needs_is_told_by():
    (table,) = re.findall(r"\| control \|.*?\n\n", DOCUMENT, re.DOTALL)
    assert tuple(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == (*IMAGE_CONTROLS, *PRIORS, *CONTROLS["text"])
    assert {"question_prior", "class_means"} == set(PRIORS) - (set(CONTROLS["caption"]) & set(CONTROLS["question"]))


def test_captions_of_own_images_are_scored_against_all_rows_of_an_image(evaluate, tmp_path):
    names = dict.fromkeys(line.partition(",")[0] for line in CAPTIONS.splitlines()[1:])
    images = {name: image_bytes(colour) for name, colour in zip(names, COLOURS, strict=False)}
    metrics, rows = evaluate("my-captions", write(tmp_path / "photos", {"captions.csv": CAPTIONS, **images}))
    assert [row.references for row in rows] == [
        ["A robin on a branch.", "A small bird with a red breast sits still."],
        ["Two gulls over the sea.", "White birds fly above the water."],
    ]
    assert metrics["task"]["title"] == "my-captions"
    assert list(metrics["scores"]["metrics"]) == ["CIDEr-D", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]


def test_questions_of_shards_are_scored_by_kind(evaluate, tmp_path):
    data = write(tmp_path / "birds", {f"{split}-000000.tar": shard(split) for split in ("test", "train")})
    metrics, rows = evaluate("birds", data)
    assert len(rows) == 2 * len(COLOURS) and metrics["prior"] == "training data"
    groups = metrics["scores"]["metrics"]["exact match"]["groups"]
    assert groups["yes/no"]["items"] == groups["other"]["items"] == len(COLOURS)
