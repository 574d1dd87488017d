"""Scores come with their controls and intervals, or not at all."""

import json
import re

import pytest

from arlow_vl.evaluation.results import CONTROLS
from arlow_vl.evaluation.scores import format_interval, format_number, format_table, score_results
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


def test_all_questions_come_before_their_kinds(scores):
    assert list(scores["tasks"]["easy-vqa-test"]["metrics"]) == ["all", "other", "yes/no"]


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
    assert same_on_yes_no.endswith("+0.0 [+0.0, +0.0]")
    assert "*" in next(line for line in lines if line.startswith("  shown another image"))


def test_the_columns_of_the_table_are_aligned(scores):
    block = format_table(scores).split("\n\n")[0].splitlines()[1:]
    starts = {line.index("[") for line in block if line.startswith(("model  ", "shown", "most", "nearest"))}
    assert len(starts) == 1


@pytest.mark.parametrize("model", ["a red", "", "nothing of it"])
def test_no_matching_ngram_is_a_score_of_zero_without_a_sign_or_a_star(tmp_path, model):
    write_captions(tmp_path, model=model, no_image="zzz")
    table = format_table(score_results(tmp_path, resamples=50))
    bleu_4 = [line.split("  ")[-1].strip() for line in table.splitlines()[2:7] + table.splitlines()[8:12]]
    assert set(bleu_4) == {"0.000 [0.000, 0.000]", "+0.000 [+0.000, +0.000]"}
    assert "-0.000" not in table


def test_the_scale_stands_beside_each_metric(scores):
    captions, questions, _ = format_table(scores).split("\n\n")
    assert re.split(" {2,}", captions.splitlines()[1])[1:] == [
        "CIDEr-D, 10 at most",
        "BLEU-1, 1 at most",
        "BLEU-4, 1 at most",
    ]
    assert "all, %" in questions


@pytest.mark.parametrize(
    ("value", "digits", "text", "signed"),
    [
        (-0.0, 3, "0.000", "+0.000"),
        (-0.0004, 3, "0.000", "+0.000"),
        (-0.0006, 3, "-0.001", "-0.001"),
        (1e-15, 3, "0.000", "+0.000"),
        (99.96, 1, "100.0", "+100.0"),
        (float("nan"), 3, "nan", "+nan"),
        (float("inf"), 3, "inf", "+inf"),
        (float("-inf"), 1, "-inf", "-inf"),
        (1.23456e30, 3, "1.23e+30", "+1.23e+30"),
        (-4e6, 1, "-4e+06", "-4e+06"),
    ],
)
def test_every_number_can_be_printed_and_zero_has_no_minus(value, digits, text, signed):
    assert format_number(value, digits) == text
    assert format_number(value, digits, is_signed=True) == signed


@pytest.mark.parametrize(
    ("low", "high", "is_percent", "has_star"),
    [
        (0.002, 0.3, False, True),
        (-0.3, -0.002, False, True),
        (0.0001, 0.3, False, False),  # prints as +0.000
        (-0.3, -0.0001, True, False),  # prints as -0.0
        (0.001, 0.3, True, True),  # prints as +0.1
    ],
)
def test_a_star_stands_only_where_the_printed_interval_leaves_out_zero(low, high, is_percent, has_star):
    difference = {"estimate": (low + high) / 2, "low": low, "high": high, "outside_zero": True}
    assert format_interval(difference, is_percent=is_percent, is_difference=True).endswith("*") is has_star


def test_empty_predictions_are_counted_and_both_accuracies_are_said(tmp_path):
    write_questions(tmp_path, answer_is_article=True)
    scores = score_results(tmp_path, resamples=50)
    task = scores["tasks"]["easy-vqa-test"]
    assert task["metrics"]["all"]["systems"]["no_image"]["estimate"] == 0
    assert task["empty_matches"] == {"no_image": {"questions": 6, "accuracy_with_empty": 1.0}}
    assert "shown no image: 6 predictions of which normalisation leaves nothing" in format_table(scores)
    assert "either: 100.0%" in format_table(scores)


def test_control_characters_of_systems_and_tasks_are_shown_as_escapes(tmp_path):
    write_captions(tmp_path, task="captions\x1b[2J")
    rows = (tmp_path / "captions\x1b[2J" / "model.jsonl").read_bytes()
    (tmp_path / "captions\x1b[2J" / "mine\r\u202e.jsonl").write_bytes(rows)
    table = format_table(score_results(tmp_path, resamples=50))
    assert r"captions\x1b[2J" in table and r"mine\r\u202e" in table
    assert all(character.isprintable() or character == "\n" for character in table)
