"""Which other image a sample is shown."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.evaluation.shuffling import shuffle_images

labels = st.lists(st.sampled_from("abcde"), min_size=2, max_size=30)


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
