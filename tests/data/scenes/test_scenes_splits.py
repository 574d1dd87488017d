"""What a split tests is never trained, all that it is made of is, and it breaks one rule alone."""

from collections import Counter
from itertools import combinations

import pytest

from arlow_vl.data.scenes.draws import Draws
from arlow_vl.data.scenes.scene import MOST, Group, Scene
from arlow_vl.data.scenes.splits import (
    SPLITS,
    draw_scene,
    draw_twin,
    held_out_colour,
    held_out_count,
    is_held_out_pair,
    may_show,
)
from arlow_vl.data.scenes.vocabulary import COLOURS, NOUNS, OPPOSITE


def drawn(split, count=80):
    scenes = []
    for number in range(count):
        draws = Draws(split, number)
        scene = draw_scene(draws, split)
        scenes += [scene, draw_twin(draws, split, scene)]
    return scenes


def combinations_of(scenes):
    groups = [group for scene in scenes for group in scene.groups]
    pairs = {frozenset(g.noun for g in s.groups) for s in scenes if len(list(s.groups)) == 2}
    return {(g.noun, g.colour) for g in groups}, {(g.noun, g.count) for g in groups}, pairs


@pytest.fixture(scope="module")
def training():
    return drawn("train", 900)


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_and_twins_keep_the_rules_of_their_split(split):
    scenes = drawn(split, 50)
    assert all(may_show(split, scene) for scene in scenes)
    assert all(first != second for first, second in zip(scenes[::2], scenes[1::2], strict=True))


def test_what_a_split_tests_is_never_trained_and_the_rest_always(training):
    colours, counts, pairs = combinations_of(training)
    for split in SPLITS:
        its_colours, its_counts, its_pairs = combinations_of(drawn(split))
        assert not its_colours & colours if split == "test-colours" else its_colours <= colours
        assert not its_counts & counts if split == "test-counts" else its_counts <= counts
        held_out = {pair for pair in its_pairs if is_held_out_pair(*pair)}
        assert its_pairs and held_out == (its_pairs if split == "test-pairs" else set())
    assert not {pair for pair in pairs if is_held_out_pair(*pair)}


def test_every_thing_colour_count_and_relation_is_trained(training):
    groups = [group for scene in training for group in scene.groups]
    assert {g.noun for g in groups} == set(NOUNS)
    assert {g.colour for g in groups} == set(COLOURS)
    assert {g.count for g in groups} == set(range(1, MOST + 1))
    assert {scene.relation for scene in training} == {*OPPOSITE, None}
    assert {scene.word is None for scene in training} == {True, False}


def test_every_thing_has_trained_partners_and_held_out_ones():
    for noun in NOUNS:
        held_out = sum(is_held_out_pair(noun, other) for other in NOUNS if other != noun)
        assert 4 <= held_out <= 7
    assert all(is_held_out_pair(a, b) == is_held_out_pair(b, a) for a, b in combinations(NOUNS, 2))


def test_each_colour_and_count_is_held_out_of_some_thing():
    assert {held_out_colour(noun) for noun in NOUNS} == set(COLOURS)
    assert {held_out_count(noun) for noun in NOUNS} == set(range(2, MOST + 1))


def test_each_place_and_relation_is_equally_likely(training):
    relations = Counter(scene.relation for scene in training if scene.relation)
    assert abs(relations["left of"] - relations["above"]) < 0.15 * relations.total()
    firsts = Counter(scene.parts[0].noun for scene in training if isinstance(scene.parts[0], Group))
    assert max(firsts.values()) < 3 * min(firsts.values())


def test_many_twins_differ_in_one_slot_only():
    scenes = drawn("train", 120)
    kinds = Counter(differing(*pair) for pair in zip(scenes[::2], scenes[1::2], strict=True))
    assert set(kinds) >= {("noun",), ("colour",), ("count",), ("relation",), ("parts",)}


def differing(first: Scene, second: Scene) -> tuple[str, ...]:
    if sorted(map(str, first.parts)) == sorted(map(str, second.parts)):
        return ("relation",)
    if first.relation != second.relation or list(map(type, first.parts)) != list(map(type, second.parts)):
        return ("parts",)
    slots = {
        slot
        for a, b in zip(first.parts, second.parts, strict=True)
        for slot, x, y in zip(a._fields, a, b, strict=True)
        if x != y
    }
    return tuple(sorted(slots))


def test_a_scene_depends_on_its_number_alone():
    assert draw_scene(Draws("a", 7), "train") == draw_scene(Draws("a", 7), "train")
    assert len({draw_scene(Draws("a", n), "train") for n in range(50)}) > 45


def test_draws_are_those_of_every_machine():
    draws = Draws("scenes", 0, "train", 0)
    assert [draws.below(1000) for _ in range(4)] == [476, 230, 790, 446]
    assert sorted(draws.shuffled(range(9))) == list(range(9))
