"""Things named that are not there, by an inventory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.evaluation.metrics.chair import Inventory, chair_counts

INVENTORY = Inventory(
    {"dog": ["puppy"], "hot dog": [], "bench": [], "knife": [], "person": ["man", "men", "baby"], "cup": ["tea cup"]}
)


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("Two puppies and a hot dog on a bench.", ["dog", "hot dog", "bench"]),
        ("hot dogs, hot soup, dogs", ["hot dog", "dog"]),
        ("a hotdog", []),
        ("men with knives on benches", ["person", "knife", "bench"]),
        ("a dog, a DOG and another dog", ["dog"] * 3),
        ("a tea cup and tea", ["cup"]),
        ("babies", ["person"]),
        ("", []),
    ],
)
def test_things_are_named_by_their_synonyms_and_plurals_the_longest_name_first(caption, named):
    assert INVENTORY.named(caption) == named


def test_what_is_named_and_not_there_is_counted_as_often_as_it_is_named():
    counts = chair_counts("a puppy, a bench and two benches", {"dog", "cup"}, INVENTORY)
    assert (counts.named, counts.false) == (["dog", "bench", "bench"], ["bench", "bench"])
    assert (counts.found, counts.in_image) == (1, 2)


@given(st.lists(st.sampled_from(["dog", "bench", "knife", "cup"])), st.sets(st.sampled_from(["dog", "bench", "cup"])))
def test_words_apart_are_things_apart(things, there):
    counts = chair_counts(" and ".join(things), there, INVENTORY)
    assert counts.named == things
    assert counts.false == [thing for thing in things if thing not in there]
    assert counts.found == len(there & set(things))


@pytest.mark.parametrize(
    ("synonyms", "sentence"),
    [
        ({}, "the inventory holds no thing"),
        ({"dog": ["puppy"], "cat": ["Puppy"]}, "'Puppy' names both 'dog' and 'cat'"),
        ({"dog": ["..."]}, "names 'dog' as '...', which has no word"),
    ],
)
def test_an_inventory_that_cannot_be_used_is_refused(synonyms, sentence):
    with pytest.raises(ValueError, match=sentence):
        Inventory(synonyms)
