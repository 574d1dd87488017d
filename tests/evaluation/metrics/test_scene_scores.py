"""Captions and answers about scenes are right, or wrong in the slot that is."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.data.scenes.draws import Draws
from arlow_vl.data.scenes.grammar import caption_of
from arlow_vl.data.scenes.scene import Group, Scene, Word
from arlow_vl.data.scenes.splits import draw_scene
from arlow_vl.evaluation.metrics.registry import METRICS, Prediction, metric_sums
from arlow_vl.evaluation.metrics.scenes import PARTS, SLOTS, answer_scores, scene_scores

pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
SCENE = Scene((Group("car", "red", 1), Group("cat", "blue", 2)), "left of")
SCENES = [draw_scene(Draws(number), "train") for number in range(40)]


def test_captions_of_the_grammar_are_right_in_every_slot():
    scores = scene_scores([caption_of(scene) for scene in SCENES], SCENES)
    assert scores == dict.fromkeys(("whole scene", *SLOTS), 1) | {"parts swapped": 0, "named falsely": 0}


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a red car left of two blue dogs", {"thing": 0.5, "colour": 0.5, "count": 0.5, "relation": 0}),
        ("a red car left of two green cats", {"colour": 0.5}),
        ("a red car left of three blue cats", {"count": 0.5}),
        ("a red car above two blue cats", {"relation": 0}),
        ("two blue cats left of a red car", {"relation": 0}),
        ("a red car", {"thing": 0.5, "colour": 0.5, "count": 0.5, "relation": 0}),
        ("a red car and two blue cats", {"relation": 0}),
        ("", {"thing": 0, "colour": 0, "count": 0, "relation": 0}),
    ],
)
def test_each_slot_is_scored_by_itself(caption, wrong):
    scores = scene_scores([caption], [SCENE])
    assert scores["whole scene"] == 0
    slots = {slot: scores[slot] for slot in SLOTS if slot in scores}  # nothing is written in this scene
    assert slots == {"thing": 1, "colour": 1, "count": 1, "relation": 1} | wrong


def test_parts_in_the_wrong_order_are_counted():
    assert scene_scores(["two blue cats left of a red car"], [SCENE])["parts swapped"] == 1
    assert scene_scores(["two blue cats above a red car"], [SCENE])["parts swapped"] == 0


def test_things_that_are_not_there_are_counted_of_those_named():
    scores = scene_scores(["a red car left of two blue dogs", "some cat with a dog and a dog"], [SCENE, SCENE])
    assert scores["named falsely"] == 3 / 5


def test_a_caption_that_names_nothing_names_nothing_falsely():
    assert scene_scores(["hello"], [SCENE])["named falsely"] == 0


def test_written_words_are_a_slot():
    scene = Scene((Word("moon"), Group("cat", "red", 1)), "above")
    scores = scene_scores(['the word "noon" above a red cat'], [scene])
    assert [scores[slot] for slot in SLOTS] == [1, 1, 1, 1, 0]


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_shares_lie_between_0_and_1_whatever_is_said(captions):
    scores = scene_scores(captions, SCENES[: len(captions)])
    assert all(0 <= share <= 1 for share in scores.values())


def test_the_shares_are_the_values_of_the_metrics():
    said = ["two blue cats left of a red car", "a red car left of two blue dogs", "hello", caption_of(SCENE)]
    metrics = {part: METRICS[f"scene_{part.replace(' ', '_')}"] for part in PARTS}
    predictions = [
        Prediction(id=str(place), image="one", text=caption, references=[caption_of(SCENE)])
        for place, caption in enumerate(said)
    ]
    sums = metric_sums(metrics, predictions)
    values = {part: float(metric.value(sums[part].sum(axis=0))) for part, metric in metrics.items()}
    assert {part: value for part, value in values.items() if not math.isnan(value)} == scene_scores(said, [SCENE] * 4)


def test_answers_are_exact_but_for_case_articles_and_number_words():
    scores = answer_scores(
        ["Two", "2", "three", "the second.", "left", "yes"],
        ["two", "two", "two", "the second", "right", "yes"],
        ["count", "count", "count", "comparison", "relation", "presence"],
    )
    assert scores == {"comparison": 1, "count": 2 / 3, "presence": 1, "relation": 0}


def test_numbers_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"captions \(0\) and scenes \(0\) must be as many, and some"):
        scene_scores([], [])
    with pytest.raises(ValueError, match=r"predictions \(1\), answers \(2\) and kinds \(1\) must be as many"):
        answer_scores(["a"], ["a", "b"], ["c"])
