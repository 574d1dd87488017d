"""The controls without a model: what is answered without seeing, or by looking up."""

import numpy as np
import pytest

from experiments.plain_controls import most_frequent, nearest_neighbour, question_prior


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
