"""Items that show an image of training: the recipe beside a model says what that was, where the command does not."""

import json
import os
import shutil

import pytest
import yaml

from arlow_vl.cli import main
from arlow_vl.data.index.building import indexes_of
from arlow_vl.data.index.ready import ready_indexes
from arlow_vl.errors import DataError
from arlow_vl.evaluation.origins import trained_images
from tests.evaluation.tasks.conftest import image_bytes, write
from tests.evaluation.tasks.made_sets import shard
from tests.evaluation.tasks.test_resume import TASK
from tests.outside_data import tar_of

OTHER = tar_of(("a.png", image_bytes("purple")), ("a.txt", b"a purple image"))


@pytest.fixture
def folder(model_folder, tmp_path):
    """A model in the folder of its run, a task, and its data, whose images other data show too."""
    shutil.copytree(model_folder, tmp_path / "runs" / "x" / "hf")
    files = {"data/test-000000.tar": shard("test"), "seen/train-0.tar": shard("train"), "other/train-0.tar": OTHER}
    return write(tmp_path, {**files, "mine.yaml": yaml.safe_dump(TASK)})


def write_recipe(run, *data, **more):
    sources = [{"name": f"s{number}", "data": str(one)} for number, one in enumerate(data)]
    write(run, {"config.yaml": yaml.safe_dump({"stage": "image_text", "sources": sources, **more})})


@pytest.fixture
def evaluate(folder, capsys):
    """Runs the command; gives what it said, and what metrics.json says of the overlap."""

    def run(**options):
        values = {"model": folder / "runs/x/hf", "task": folder / "mine.yaml", "data": folder / "data", "limit": 4}
        values |= {"features": folder / "features", "output": folder / "results"} | options
        status = main(["evaluate", *(str(word) for name, value in values.items() for word in (f"--{name}", value))])
        said = capsys.readouterr()
        assert status == 0, said.err
        return said.out, json.loads((folder / "results" / "mine" / "metrics.json").read_text())["overlap"]

    return run


def test_sources_of_the_runs_recipe_are_compared_without_being_named(evaluate, folder):
    seen = folder / "seen" / "train-*.tar"
    indexes_of(seen)
    indexes_of(folder / "other")
    write_recipe(folder / "runs/x", folder / "other", seen)
    said, overlap = evaluate()
    assert "warning: 4 of 4 items of mine show an image of the training data, byte for byte" in said
    sources = [str(folder / "other"), str(seen)]
    assert overlap == {"items": 4, "first": "test-000000.tar:test-000001?0", "sources": sources}


def test_sources_without_a_common_image_are_no_warning(evaluate, folder):
    indexes_of(folder / "other")
    write_recipe(folder / "runs/x", folder / "other")
    said, overlap = evaluate()
    assert "image of the training data" not in said and "not checked" not in said
    assert overlap == {"items": 0, "first": "", "sources": [str(folder / "other")]}


@pytest.mark.parametrize("data", ["seen/train-*.tar", "seen/train-{0..0}.tar"])
def test_a_path_of_the_recipe_is_seen_from_a_folder_that_holds_the_run(
    evaluate, folder, tmp_path_factory, monkeypatch, data
):
    """Where a folder of the run has the data's name."""
    indexes_of(folder / "seen")
    (folder / "runs/seen").mkdir()
    write_recipe(folder / "runs/x", data)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert evaluate()[1]["items"] == 4


def test_a_run_folder_of_the_datas_name_is_not_taken_for_the_data(evaluate, folder, tmp_path_factory, monkeypatch):
    """As the recipe with `run_dir: runs/photos` that reads photos/train.csv."""
    (folder / "runs/x").rename(folder / "runs/seen")
    indexes_of(folder / "seen/train-0.tar")
    write_recipe(folder / "runs/seen", "seen/train-0.tar")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert evaluate(model=folder / "runs/seen/hf")[1]["items"] == 4


def test_what_the_model_began_with_was_trained_on_counts_too(evaluate, folder):
    for name in ("seen", "other"):
        indexes_of(folder / name)
    write_recipe(folder / "runs/before", folder / "seen")
    (folder / "runs/before/hf").mkdir()
    write_recipe(folder / "runs/x", folder / "other", checkpoint=str(folder / "runs/before/hf"))
    assert evaluate()[1]["items"] == 4


def test_data_that_several_sources_and_runs_name_are_read_and_told_once(folder):
    indexes_of(folder / "seen")
    indexes_of(folder / "other")
    write_recipe(folder / "runs/before", folder / "seen", folder / "seen/train-*.tar")
    (folder / "runs/before/hf").mkdir()
    write_recipe(folder / "runs/x", folder / "other", folder / "seen", checkpoint=str(folder / "runs/before/hf"))
    trained = trained_images(folder / "runs/x/hf")
    assert [index.base.name for index in trained.indexes] == ["seen", "other"]
    assert trained.sources == (str(folder / "seen"), str(folder / "other"))


def test_what_is_not_checked_is_said(evaluate, folder):
    write_recipe(folder / "runs/x", folder / "gone/train-*.tar", folder / "seen", checkpoint=str(folder / "gone/hf"))
    said, overlap = evaluate()
    run = folder / "runs/x"
    sentences = [
        f"source s0 of {run}: no such file or folder: {folder}/gone/train-*.tar",
        f"source s1 of {run}: {folder}/seen/train-0.tar has no index",
        f"no recipe is beside {folder}/gone/hf, which the run began with",
    ]
    assert overlap == {"not_checked": sentences}
    for sentence in sentences:
        assert f"not checked for images of training: {sentence}; `--training DATA` counts images of DATA" in said
    assert main(["report", str(folder / "results")]) == 0
    page = (folder / "results" / "report.html").read_text()
    assert f"Not checked for images of training: {sentences[0]}." in page


def test_the_data_that_the_command_names_are_compared_alone(evaluate, folder):
    write_recipe(folder / "runs/x", folder / "gone")
    said, overlap = evaluate(training=folder / "seen")
    assert overlap["items"] == 4 and overlap["sources"] == [str(folder / "seen")] and "not checked" not in said


def test_named_data_without_questions_are_compared_and_the_tasks_own_give_the_priors(evaluate, folder):
    write(folder, {"own.yaml": yaml.safe_dump(TASK | {"training": "own.tar"}), "data/own.tar": shard("own")})
    said, overlap = evaluate(task=folder / "own.yaml", training=folder / "other")
    told = f"no sample of {folder / 'other'} has a question; the priors of mine come from {folder}/data/own.tar"
    assert f"warning: {told}, as the task says" in said
    assert overlap == {"items": 0, "first": "", "sources": [str(folder / "other")]}
    metrics = json.loads((folder / "results" / "mine" / "metrics.json").read_text())
    assert metrics["prior"] == "training data" and metrics["training"]["path"] == f"{folder}/data/own.tar"


def test_where_no_training_data_have_questions_the_priors_come_from_the_set_and_that_is_said(evaluate, folder):
    said, overlap = evaluate(training=folder / "other")
    assert f"no sample of {folder / 'other'} has a question; the priors of mine come from the set itself" in said
    assert overlap["sources"] == [str(folder / "other")]
    metrics = json.loads((folder / "results" / "mine" / "metrics.json").read_text())
    assert metrics["prior"] == "the other images of the set"
    assert metrics["training"] == {"path": None, "sha256": None}


@pytest.mark.parametrize("content", ["- 1\n", "sources: 3\n", "sources: [3, {data: 4}]\n", "a: b: c\n", "\t"])
def test_a_recipe_that_cannot_be_read_says_nothing(evaluate, folder, content):
    write(folder / "runs/x", {"config.yaml": content})
    assert evaluate()[1] == {}


def test_files_that_would_have_to_be_read_again_are_so_up_to_a_bound(folder):
    path = folder / "seen" / "train-0.tar"
    indexes_of(folder / "seen")
    size = path.stat().st_size
    assert len(ready_indexes(folder / "seen", most_hashed=0)) == 1
    os.utime(path, (1, 1))
    with pytest.raises(DataError, match="has other times than when it was indexed: 0 GB to compare"):
        ready_indexes(folder / "seen", most_hashed=size - 1)
    assert len(ready_indexes(folder / "seen", most_hashed=size)) == 1


def test_an_address_that_the_network_would_have_to_list_is_not_asked():
    with pytest.raises(DataError, match="would have to be listed over the network"):
        ready_indexes("s3://bucket/train-*.tar")
