"""The controls: what is answered without seeing, or by looking up."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.evaluation.controls import most_frequent, nearest_neighbour, question_prior, shuffle_images

labels = st.lists(st.sampled_from("abcde"), min_size=2, max_size=30)


def test_ties_go_to_the_first_by_the_alphabet():
    assert most_frequent(["b", "a", "c", "b", "a"]) == "a"


def test_the_most_frequent_of_none_is_refused():
    with pytest.raises(ValueError, match="of none"):
        most_frequent([])


def test_the_nearest_neighbour_is_so_by_cosine_not_by_distance():
    train = np.array([[10.0, 0.0], [0.5, 0.5]])
    assert nearest_neighbour(train, ["far but aligned", "near"], np.array([[1.0, 0.1]])) == ["far but aligned"]


def test_neighbours_of_many_images_are_those_of_each():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(50, 8)), rng.normal(size=(1030, 8))
    captions = [str(i) for i in range(50)]
    at_once = nearest_neighbour(train, captions, test)
    assert at_once == [nearest_neighbour(train, captions, row[None])[0] for row in test]


def test_features_of_zeros_have_a_neighbour_too():
    assert nearest_neighbour(np.zeros((2, 3)), ["first", "second"], np.zeros((1, 3))) == ["first"]


def test_the_prior_answers_by_exact_wording_and_else_with_the_usual_answer():
    train = [
        ("what color?", "red"),
        ("what color?", "teal"),
        ("what color?", "teal"),
        ("any?", "yes"),
        ("is it?", "yes"),
        ("is it?", "yes"),
    ]
    assert question_prior(train, ["what color?", "What color?", "any?"]) == ["teal", "yes", "yes"]


@given(labels)
def test_no_image_is_shown_for_itself_and_each_is_shown_once(of_images):
    keys = [str(i) for i in range(len(of_images))]
    shown = shuffle_images(keys, of_images)
    assert sorted(shown) == list(range(len(keys)))
    assert all(place != other for place, other in enumerate(shown))


@given(labels)
def test_equal_captions_are_exchanged_only_as_far_as_they_must(of_images):
    keys = [str(i) for i in range(len(of_images))]
    shown = shuffle_images(keys, of_images)
    unavoidable = max(0, 2 * max(Counter(of_images).values()) - len(of_images))
    assert sum(of_images[place] == of_images[other] for place, other in enumerate(shown)) == unavoidable


def test_questions_about_one_image_are_shown_the_same_other_image():
    keys = ["a", "a", "b", "b", "c"]
    shown = [keys[other] for other in shuffle_images(keys, keys)]
    assert shown[0] == shown[1] and shown[2] == shown[3]
    assert {shown[0], shown[2], shown[4]} == {"a", "b", "c"}


def test_another_seed_shuffles_otherwise():
    keys = [str(i) for i in range(40)]
    assert shuffle_images(keys, keys) == shuffle_images(keys, keys, seed=0) != shuffle_images(keys, keys, seed=1)


def test_one_image_cannot_be_shuffled():
    with pytest.raises(ValueError, match="two images at least"):
        shuffle_images(["a", "a"], ["x", "x"])
