"""Each scene has one caption, and each caption one scene."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.data.scenes.font import word_dots
from arlow_vl.data.scenes.grammar import caption_of, groups_named, nouns_named, parse_caption, part_name
from arlow_vl.data.scenes.layout import MARGIN, SIDE
from arlow_vl.data.scenes.scene import MOST, Group, Scene, Word
from arlow_vl.data.scenes.vocabulary import COLOURS, CONCEPTS, NOUNS, NUMBERS, OPPOSITE, WORDS

pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
GROUPS = st.builds(Group, st.sampled_from(NOUNS), st.sampled_from(list(COLOURS)), st.integers(1, MOST))
PARTS = GROUPS | st.builds(Word, st.sampled_from(WORDS))
SCENES = st.builds(lambda part: Scene((part,)), PARTS) | st.builds(
    lambda first, second, relation: Scene((first, second), relation), PARTS, PARTS, st.sampled_from(list(OPPOSITE))
)


@given(SCENES)
def test_a_caption_is_read_as_the_scene_that_it_was_written_of(scene):
    assert parse_caption(caption_of(scene)) == scene


@given(SCENES, SCENES)
def test_two_scenes_never_have_one_caption(first, second):
    assert (caption_of(first) == caption_of(second)) == (first == second)


@given(SCENES)
def test_things_and_groups_are_found_in_a_caption(scene):
    assert groups_named(caption_of(scene)) == list(scene.groups)
    assert nouns_named(caption_of(scene)) == [group.noun for group in scene.groups]


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (Scene((Group("car", "red", 1), Group("cat", "blue", 2)), "left of"), "a red car left of two blue cats"),
        (Scene((Group("apple", "orange", 1),)), "an orange apple"),
        (Scene((Word("moon"), Group("butterfly", "pink", 5)), "above"), 'the word "moon" above five pink butterflies'),
        (Scene((Group("fish", "green", 3),)), "three green fish"),
    ],
)
def test_captions_are_sentences_of_the_grammar(scene, caption):
    assert caption_of(scene) == caption


@pytest.mark.parametrize(
    ("caption", "plain"),
    [
        ("A red car left of two blue cats.", "a red car left of two blue cats"),
        ("a orange apple", "an orange apple"),
        ("the word moon", 'the word "moon"'),
        ("two blue cat", "two blue cats"),
    ],
)
def test_small_slips_of_spelling_do_not_change_the_scene(caption, plain):
    assert parse_caption(caption) == parse_caption(plain) is not None


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a car",
        "a red",
        "a red car left of",
        "six red cars",
        "a red car beside a cat",
        "a red car above a b c above x",
    ],
)
def test_what_is_no_sentence_of_the_grammar_is_no_scene(caption):
    assert parse_caption(caption) is None


def test_quoted_words_name_no_things():
    assert nouns_named('the word "car" above a cat') == ["cat"]


def test_no_word_of_the_vocabulary_is_in_two_roles():
    nouns = [spelled for concept in CONCEPTS.values() for spelled in {concept.noun, concept.nouns}]
    words = [*nouns, *COLOURS, *NUMBERS, *WORDS, "word", "above", "left"]
    assert len(words) == len(set(words))


def test_every_word_fits_into_half_an_image():
    assert max(word_dots(word, 2).shape[1] for word in WORDS) <= SIDE // 2 - 2 * MARGIN


def test_questions_name_a_part_by_its_noun_in_its_number():
    parts = Group("cat", "red", 1), Group("cat", "red", 2), Word("moon")
    assert [part_name(part) for part in parts] == ["the cat", "the cats", 'the word "moon"']
