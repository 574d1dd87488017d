"""Scores come with their controls and intervals, or not at all."""

import json

import pytest

from arlow_vl.evaluation.results import CONTROLS
from arlow_vl.evaluation.scores import format_table, score_results
from tests.evaluation.made_results import write_captions, write_questions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_captions(folder, nearest_neighbour="a red dog")
    write_questions(folder)
    (folder / "text.json").write_text(json.dumps({"bits_per_byte_before": "0x1p+0", "bits_per_byte_after": "0x1p+0"}))
    return folder


@pytest.fixture(scope="module")
def scores(folder):
    return score_results(folder, resamples=200)


def test_scores_are_written_as_they_are_returned(folder, scores):
    assert json.loads((folder / "scores.json").read_text()) == scores


def test_a_model_that_is_right_has_a_difference_outside_zero(scores):
    metric = scores["tasks"]["captions-test-known"]["metrics"]["CIDEr-D"]
    assert metric["systems"]["model"]["estimate"] == pytest.approx(7.5)  # three words have no 4-gram
    assert all(metric["differences"][control]["outside_zero"] for control in CONTROLS["captions"])


def test_bleu_is_scored_of_the_corpus_in_all_orders(scores):
    metrics = scores["tasks"]["captions-test-known"]["metrics"]
    estimates = [metrics[f"BLEU-{order}"]["systems"]["model"]["estimate"] for order in (1, 2, 3)]
    assert estimates == pytest.approx([1, 1, 1])


def test_questions_are_scored_by_kind_and_name_their_rule(scores):
    task = scores["tasks"]["easy-vqa-test"]
    estimates = {kind: metric["systems"]["model"]["estimate"] for kind, metric in task["metrics"].items()}
    assert estimates == pytest.approx({"other": 2 / 3, "yes/no": 1, "all": 5 / 6})
    assert (task["rule"], task["images"], task["samples"]) == ("official", 3, 6)


def test_how_many_different_things_a_system_says_is_counted(scores):
    different = scores["tasks"]["captions-test-known"]["different_predictions"]
    assert (different["model"], different["most_frequent"]) == (12, 1)


@pytest.mark.parametrize("control", [*CONTROLS["captions"], "model"])
def test_no_caption_score_without_every_control(tmp_path, control):
    write_captions(tmp_path)
    (tmp_path / "captions-test-known" / f"{control}.jsonl").unlink()
    with pytest.raises(ValueError, match=f"no score without its controls, and {control} is missing"):
        score_results(tmp_path)
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.parametrize("control", CONTROLS["questions"])
def test_no_question_score_without_every_control(tmp_path, control):
    write_questions(tmp_path)
    (tmp_path / "easy-vqa-test" / f"{control}.jsonl").unlink()
    with pytest.raises(ValueError, match=f"{control} is missing"):
        score_results(tmp_path)


def test_a_folder_without_predictions_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match="run `arlow evaluate` first"):
        score_results(tmp_path)


def test_the_table_shows_every_control_beside_the_model(scores):
    table = format_table(scores)
    for title in (
        "model",
        "shown another image",
        "shown no image",
        "most frequent caption",
        "nearest training image",
    ):
        assert f"\n{title} " in table
    assert "7.500 [7.500, 7.500]" in table
    assert "66.7 [" in table


def test_the_table_marks_differences_outside_zero_and_no_others(scores):
    lines = format_table(scores).splitlines()
    question_rows = lines[lines.index(next(line for line in lines if line.startswith("Questions"))) :]
    same_on_yes_no = next(line for line in question_rows if line.startswith("  shown another image"))
    assert "+0.0 [+0.0, +0.0] " in same_on_yes_no and "+0.0 [+0.0, +0.0] *" not in same_on_yes_no
    assert "*" in next(line for line in lines if line.startswith("  shown another image"))


def test_the_columns_of_the_table_are_aligned(scores):
    block = format_table(scores).split("\n\n")[0].splitlines()[1:]
    starts = {line.index("[") for line in block if line.startswith(("model  ", "shown", "most", "nearest"))}
    assert len(starts) == 1
