"""Where a task's data are looked for."""

import pytest

from arlow_vl.errors import DataError
from arlow_vl.evaluation.tasks.items import read_training
from arlow_vl.evaluation.tasks.places import TaskData, place_of, refuse_missing_training, training_place
from arlow_vl.evaluation.tasks.task import parse_task
from tests.evaluation.tasks.conftest import write
from tests.evaluation.tasks.made_sets import shard
from tests.evaluation.tasks.test_resume import TASK
from tests.outside_data import JPEG


def task_with(training):
    return parse_task(TASK | {"training": training}, "task")


@pytest.mark.parametrize("training", ["train-0.tar", "train-?.tar", "train-{0..1}.tar"])
def test_training_data_of_a_task_may_be_whatever_a_recipe_names(tmp_path, training):
    folder = write(tmp_path / "set[1]", {f"train-{number}.tar": shard("train") for number in (0, 1)})
    refuse_missing_training(task_with(training), folder, None)
    assert training_place(task_with(training), folder, None) == TaskData(str(folder / training), None, None)
    assert training_place(task_with("gone-{0..1}.tar"), folder, None) is None


def test_training_data_in_several_folders_have_the_tasks_images(tmp_path):
    asked = {"data": [{"question_id": 0, "image_id": "fox", "question": "what?", "answers": ["fox"]}]}
    folder = write(tmp_path, {"a/textvqa.json": asked, "b/textvqa.json": asked, "images/fox.jpg": JPEG})
    task = parse_task(TASK | {"training": "[ab]/textvqa.json", "images": "images"}, "task")
    refuse_missing_training(task, folder, None)
    assert read_training(task, folder, None).source == str(folder / "[ab]/textvqa.json")


def test_a_range_of_training_data_with_a_gap_is_refused(tmp_path):
    write(tmp_path, {"train-0.tar": shard("train")})
    with pytest.raises(DataError, match=r"train-1\.tar is missing; put it there, or write a range without it"):
        refuse_missing_training(task_with("train-{0..1}.tar"), tmp_path, None)


def test_data_at_an_address_are_named_as_they_came(tmp_path):
    task = parse_task(TASK | {"images": "images", "training": "train-0.tar"}, "task")
    folder = write(tmp_path, {"images/a.jpg": JPEG, "train-0.tar": shard("train")})
    assert place_of(task, "https://h/a/b.tar") == TaskData("https://h/a/b.tar", None, None)
    assert training_place(task, "https://h/a/b.tar", None) is None
    assert place_of(task, f"file://{folder}") == place_of(task, folder)
    assert training_place(task, f"file://{folder}", None) == training_place(task, folder, None) is not None
