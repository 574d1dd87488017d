"""The demonstration's sets as tasks: what the model and its controls say is what it says without tasks."""

import pytest

from arlow_vl.cli import main
from arlow_vl.evaluation.results import read_rows as read_old_rows
from arlow_vl.evaluation.tasks.predictions import read_rows
from tests.tiny_runs import SAMPLES

TASKS = ("captions-test-known", "captions-test-novel", "easy-vqa")


@pytest.fixture(scope="module")
def folder(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demonstration")
    shared = ["--model", model_folder, "--data", SAMPLES, "--features", folder / "features"]
    tasks = [word for name in TASKS for word in ("--task", name)]
    assert main([str(word) for word in ("evaluate", *shared, "--output", folder / "old")]) == 0
    assert main([str(word) for word in ("evaluate", *shared, "--output", folder / "new", *tasks)]) == 0
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_every_system_says_what_it_said(folder, task):
    systems = {"captions": ("nearest_neighbour",), "easy-vqa": ("question_prior",)}[task.split("-test")[0]]
    renamed = {"most_frequent": "always_majority"} if task == "easy-vqa" else {}
    for system in ("model", "shuffled", "no_image", "most_frequent", *systems):
        new = read_rows(folder / "new" / task / system / "predictions.jsonl")
        old_task = "easy-vqa-test" if task == "easy-vqa" else task
        old = read_old_rows(folder / "old" / old_task / f"{renamed.get(system, system)}.jsonl")
        assert [row.output for row in new] == [row.prediction for row in old]
        assert [row.references for row in new] == [getattr(row, "references", None) or row.answers for row in old]
