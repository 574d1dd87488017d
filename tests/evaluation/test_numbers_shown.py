"""Figures as they are printed: beside their controls, aligned, with a star where a difference is one."""

import json
import re

import pytest

from arlow_vl.evaluation.numbers import few_note, format_count, format_interval, format_number, legend
from arlow_vl.evaluation.tasks.table import TITLES, format_scores
from arlow_vl.evaluation.tasks.task import load_task
from tests.evaluation.made_results import CAPTIONS, QUESTIONS, but_teal, write_data, write_results


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def captions(data):
    return write_results(data / "results", data, CAPTIONS, {"nearest_neighbour": "a red dog"})


@pytest.fixture(scope="module")
def questions(data):
    return write_results(data / "results", data, QUESTIONS, {"model": but_teal})


def group_of(result, metric, group="all"):
    return result["scores"]["metrics"][metric]["groups"][group]


def test_a_model_that_is_right_has_a_difference_outside_zero(captions):
    group = group_of(captions, "CIDEr-D")
    assert group["systems"]["model"]["estimate"] == pytest.approx(7.5)  # three words have no 4-gram
    assert all(group["differences"][control]["outside_zero"] for control in load_task(CAPTIONS).controls)


def test_bleu_is_scored_of_the_corpus_in_all_orders(captions):
    estimates = [group_of(captions, f"BLEU-{order}")["systems"]["model"]["estimate"] for order in (1, 2, 3)]
    assert estimates == pytest.approx([1, 1, 1])


def test_questions_are_scored_by_kind(questions):
    groups = questions["scores"]["metrics"]["accuracy"]["groups"]
    estimates = {kind: group["systems"]["model"]["estimate"] for kind, group in groups.items()}
    assert estimates == pytest.approx({"all": 5 / 6, "where the prior is wrong": 2 / 3, "other": 2 / 3, "yes/no": 1})
    assert (questions["scores"]["images"], questions["scores"]["items"]) == (3, 6)


def test_how_many_different_things_a_system_says_is_counted(captions):
    different = captions["scores"]["different_outputs"]
    assert (different["model"], different["most_frequent"]) == (12, 1)


def test_the_table_shows_every_control_beside_the_model(captions, questions):
    table = format_scores(captions)
    for system in ("model", *load_task(CAPTIONS).controls):
        assert f"\n{TITLES[system]} " in table
    assert "7.500 [7.500, 7.500]" in table
    assert "66.7 [" in format_scores(questions)


def test_the_table_marks_differences_outside_zero_and_no_others(data, captions):
    assert "*" in next(line for line in format_scores(captions).splitlines() if "minus shown another" in line)
    same = write_results(data / "same", data, QUESTIONS, {"model": "yes"})
    assert "+0.0 [+0.0, +0.0]" in format_scores(same) and "*" not in format_scores(same)


def test_the_columns_of_the_table_are_aligned(captions):
    lines = format_scores(captions).splitlines()
    starts = {line.index("[") for line in lines if line.startswith(("model  ", "shown", "most"))}
    assert len(starts) == 1


@pytest.mark.parametrize("model", ["a red", "", "nothing of it"])
def test_no_matching_ngram_is_a_score_of_zero_without_a_sign_or_a_star(data, tmp_path, model):
    table = format_scores(write_results(tmp_path, data, CAPTIONS, {"model": model, "no_image": "zzz"}))
    cells = {re.split(" {2,}", line)[-1].strip() for line in table.splitlines()[2:]}
    assert cells == {"0.000 [0.000, 0.000]", "+0.000 [+0.000, +0.000]"}
    assert "-0.000" not in table


def test_the_scale_stands_beside_each_metric(captions, questions):
    assert re.split(" {2,}", format_scores(captions).splitlines()[1])[1:] == [
        "CIDEr-D, 10 at most",
        "BLEU-1",
        "BLEU-4",
    ]
    assert "accuracy, %" in format_scores(questions)


def test_control_characters_of_tasks_are_shown_as_escapes(captions):
    table = format_scores(captions | {"task": captions["task"] | {"title": "captions\x1b[2J\u202e"}})
    assert r"captions\x1b[2J\u202e" in table
    assert all(character.isprintable() or character == "\n" for character in table)


def test_a_score_of_few_images_is_marked_beside_it(captions, questions):
    lines = format_scores(questions).splitlines()
    assert lines[:2] == [
        "Questions of easy-VQA (6 items, 3 images)",
        "warning: fewer than 10 images, scores that say little",
    ]
    (row,) = [line for line in lines if line.startswith("  other ")]
    assert re.split(" {2,}", row.strip())[1] == "3 (few)"
    assert lines[-1] == "(few): fewer than 10 images, a score that says little"
    assert "few" not in format_scores(captions)  # twelve images and no groups


def test_groups_of_older_results_are_marked_by_their_items(questions):
    older = json.loads(json.dumps(questions))
    for group in older["scores"]["metrics"]["accuracy"]["groups"].values():
        del group["images"]
    assert format_scores(older) == format_scores(questions)


def test_ten_images_are_not_few():
    assert [format_count(2000, number) for number in (0, 9, 10, 2000)] == ["2,000 (few)"] * 2 + ["2,000"] * 2
    assert few_note([10, 2000]) == [] != few_note([10, 9])


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


def test_below_tables_stands_over_what_the_intervals_were_drawn():
    assert "interval over images." in legend() and "interval over images." in legend(["image", "image"])
    assert "interval over documents." in legend(["document", "document"])
    assert "interval over images or documents." in legend(["document", "image"])
