"""Every task that is shipped runs from local files of the true format, beside its controls."""

import json
import shutil
from dataclasses import asdict

import pytest

from arlow_vl.cli import main
from arlow_vl.evaluation.tasks.predictions import read_rows
from arlow_vl.evaluation.tasks.table import format_scores
from arlow_vl.evaluation.tasks.task import load_task, shipped_tasks
from tests.evaluation.tasks.made_sets import write_sets

OTHER_SPLITS = {
    "pope-random": ("popular", "adversarial"),
    "scenes-new": ("pairs", "colours", "counts", "style", "drawings"),
    "captions-test-known": ("novel",),
}
ALIKE = {f"{name.rpartition('-')[0]}-{split}": name for name, splits in OTHER_SPLITS.items() for split in splits}
RUN = [name for name in shipped_tasks() if name not in ALIKE]


@pytest.fixture(scope="module")
def results(model_folder, tmp_path_factory):
    """All tasks at once, by the command that a user types."""
    folder = tmp_path_factory.mktemp("shipped")
    write_sets(folder / "data")
    words = ["evaluate", "--model", model_folder, "--data", folder / "data", "--features", folder / "features"]
    words += ["--output", folder / "results", "--batch-size", "8"]
    words += [word for name in RUN for word in ("--task", name)]
    assert main([str(word) for word in words]) == 0
    return folder / "results"


@pytest.mark.parametrize("name", RUN)
def test_a_score_stands_beside_every_control_of_its_task(results, name):
    task = load_task(name)
    metrics = json.loads((results / name / "metrics.json").read_text())
    for of in metrics["scores"]["metrics"].values():
        for group in of["groups"].values():
            assert list(group["systems"]) == ["model", *task.controls]
            assert list(group["differences"]) == list(task.controls)
    rows = read_rows(results / name / "model" / "predictions.jsonl")
    assert len(rows) == metrics["scores"]["items"] >= 4
    assert all(row.log_probability is not None and row.log_probability < 0 for row in rows)


@pytest.mark.parametrize("name", ALIKE)
def test_tasks_of_other_splits_differ_in_their_data_alone(name):
    (one, other), split = (asdict(load_task(n)) for n in (name, ALIKE[name])), ALIKE[name].rpartition("-")[2]
    assert one.pop("data") == other.pop("data").replace(split, name.rpartition("-")[2])
    different = {field for field in one if one[field] != other[field]}
    assert different == {"name", "title"}


@pytest.mark.parametrize(
    ("name", "items", "references", "kinds"),
    [
        ("coco-captions-karpathy", 4, ["a red image.", "All of it is red."], {""}),
        ("coco-captions", 6, ["a red image.", "All of it is red."], {""}),
        ("nocaps", 6, ["a red image.", "All of it is red."], {""}),
        ("vqav2", 12, ["blue"] + ["red"] * 9, {"other", "yes/no"}),
        ("ok-vqa", 12, ["blue"] + ["red"] * 9, {"other", "yes/no"}),
        ("gqa", 6, ["red"], {"query"}),
        ("textvqa", 6, ["nokia"] * 9 + ["red"], {""}),
        ("vizwiz", 6, ["red"] * 10, {"other"}),
        ("pope-random", 6, ["no"], {""}),
        ("scenes-new", 6, ["a red car left of two blue cats"], {""}),
        ("scenes-comparisons", 6, ["the first"], {""}),
        ("easy-vqa", 12, ["red"], {"", "yes/no"}),
    ],
)
def test_references_and_kinds_are_the_datas(results, name, items, references, kinds):
    rows = read_rows(results / name / "model" / "predictions.jsonl")
    assert (len(rows), rows[0].references, {row.kind for row in rows}) == (items, references, kinds)


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("vqav2", "vqa accuracy"),
        ("ok-vqa", "vqa accuracy"),
        ("textvqa", "vqa accuracy, normalised both"),
        ("vizwiz", "vqa accuracy, normalised both"),
        ("gqa", "exact match, case and space apart"),
    ],
)
def test_questions_are_scored_as_their_sets_are(name, metric):
    assert load_task(name).metrics == (metric,)


def test_pope_says_yes_or_no_and_tells_how_likely_each_is(results):
    for row in read_rows(results / "pope-random" / "model" / "predictions.jsonl"):
        assert list(row.choices) == ["yes", "no"]
        assert row.output == max(row.choices, key=row.choices.get)
    metrics = json.loads((results / "pope-random" / "metrics.json").read_text())["scores"]["metrics"]
    assert list(metrics) == ["POPE accuracy", "precision", "recall", "F1", "share of yes", "neither yes nor no"]


def test_a_folder_from_before_a_metric_came_to_be_reproduces_and_is_shown(results, tmp_path, capsys):
    shutil.copytree(results / "pope-random", tmp_path / "pope-random")
    path = tmp_path / "pope-random" / "metrics.json"
    metrics = json.loads(path.read_text())
    del metrics["scores"]["metrics"]["neither yes nor no"]
    path.write_text(json.dumps(metrics))
    assert main(["reproduce", str(tmp_path)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "neither yes nor no" in line]
    assert rows and all(row.startswith("not here  pope-random: neither yes nor no, ") for row in rows)
    assert main(["report", str(tmp_path), "--heat", "0"]) == 0
    assert "neither yes nor no" not in (tmp_path / "report.html").read_text()


def test_pairs_that_share_their_images_are_one_image_group_and_show_no_difference(results):
    metrics = json.loads((results / "scenes-comparisons" / "metrics.json").read_text())
    assert (metrics["shown"], metrics["scores"]["items"], metrics["scores"]["images"]) == ("image group", 6, 1)
    size, warning, *rows = format_scores(metrics).splitlines()
    assert size.endswith("(6 items, 1 image group)")
    assert warning == "warning: fewer than 10 image groups, scores that say little"
    assert not any("*" in row for row in rows)


def test_answers_come_from_the_training_data_where_all_of_them_are_compared(results):
    row = read_rows(results / "easy-vqa-likelihood" / "model" / "predictions.jsonl")[0]
    assert sorted(row.choices) == ["black", "blue", "green", "no", "red", "white", "yellow", "yes"]


def test_questions_have_the_score_where_the_prior_is_wrong(results):
    metrics = json.loads((results / "vqav2" / "metrics.json").read_text())["scores"]["metrics"]["accuracy"]["groups"]
    assert metrics["where the prior is wrong"]["systems"]["question_prior"]["estimate"] < 0.5
    assert {"all", "other", "yes/no", "where the prior is wrong"} <= metrics.keys()


def test_the_words_of_the_task_stand_in_the_prompt(results):
    metrics = json.loads((results / "vqav2" / "metrics.json").read_text())
    assert "What color is it?\nAnswer the question using a single word or phrase." in metrics["prompt"]
    assert metrics["task"]["decoding"] == {"max_new_tokens": 10, "num_beams": 1}
    assert metrics["prior"] == "the other images of the set"


def test_everything_is_equal_when_it_is_derived_again(results, capsys):
    assert main(["reproduce", str(results)]) == 0
    out = capsys.readouterr().out
    *rows, total = out.splitlines()
    assert len(rows) > 1000 and all(row.startswith("equal") for row in rows)
    assert int(total.split(" equal, ")[0].replace(",", "")) > 1000 and total.endswith(", 0 unequal, 0 not here")
