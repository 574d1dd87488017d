"""Every question has one answer that the image shows, and yes is as frequent as no in every wording."""

import re
from collections import Counter, defaultdict

import pytest

from arlow_vl.data.scenes.descriptions import claims_described, comparisons_described, parts_described
from arlow_vl.data.scenes.draws import Draws
from arlow_vl.data.scenes.questions import comparisons, questions_of_twins
from arlow_vl.data.scenes.scene import Group, Scene, Word
from arlow_vl.data.scenes.splits import SPLITS, draw_scene, draw_twin
from arlow_vl.data.scenes.vocabulary import CONCEPTS, NUMBERS

RED_CAR, BLUE_CATS = Group("car", "red", 1), Group("cat", "blue", 2)


def twins(split, count):
    for number in range(count):
        draws = Draws("twins", split, number)
        scene = draw_scene(draws, split)
        yield draws, scene, draw_twin(draws, split, scene)


@pytest.mark.parametrize("split", SPLITS)
def test_yes_and_no_are_equally_frequent_in_every_wording(split):
    answers = defaultdict(Counter)
    for draws, *scenes in twins(split, 60):
        for asked in questions_of_twins(draws, *scenes):
            for question, answer, kind in asked:
                if kind == "presence" or kind.endswith("yes/no"):
                    answers[question][answer] += 1
    assert len(answers) > 50
    assert all(counts["yes"] == counts["no"] for counts in answers.values())


def truth(question, scene):
    """The answer by another road: from the words of the question and what the scene holds."""
    words = question.rstrip("?").replace('"', "").split()
    by_name = {name: g for g in scene.groups for name in (g.noun, CONCEPTS[g.noun].nouns)}
    places = {name: n for n, part in enumerate(scene.parts) for name in names(part)}
    if question == "Which word is written?":
        return scene.word
    if question.endswith("written?"):
        return "yes" if scene.word == words[-2] else "no"
    if question.startswith("How many"):
        return NUMBERS[by_name[words[2]].count - 1]
    if question.startswith("What colour"):
        return by_name[words[-1]].colour
    if "exactly" in words:
        return "yes" if NUMBERS[by_name[words[-1]].count - 1] == words[-2] else "no"
    if question.startswith("Is there"):
        group = by_name.get(words[-1])
        return "yes" if group and (len(words) == 4 or group.colour == words[3]) else "no"
    if question.startswith("Where"):
        part = words[words.index("seen") - 1].rstrip(",")
        return direction(scene, places[part]).removesuffix(" of")
    where = next(d for d in ("left of", "right of", "above", "below") if f" {d} " in question)
    part = question.replace('"', "").split(f" {where} ")[0].split()[-1]
    return "yes" if direction(scene, places[part]) == where else "no"


def names(part):
    return (part.text,) if isinstance(part, Word) else (part.noun, CONCEPTS[part.noun].nouns)


def direction(scene, place):
    return {("left of", 0): "left of", ("left of", 1): "right of", ("above", 0): "above", ("above", 1): "below"}[
        scene.relation, place
    ]


def test_every_answer_is_what_the_scene_shows():
    kinds = Counter()
    for draws, *scenes in twins("train", 150):
        for scene, asked in zip(scenes, questions_of_twins(draws, *scenes), strict=True):
            assert len({question for question, *_ in asked}) == len(asked)
            for question, answer, kind in asked:
                assert truth(question, scene) == answer, (question, scene)
                kinds[kind] += 1
    assert set(kinds) == {
        *("presence", "count yes/no", "relation yes/no"),
        *("count", "colour", "relation", "reading"),
    }


def test_questions_of_twins_that_differ_in_a_colour():
    green = Scene((RED_CAR, Group("cat", "green", 2)), "left of")
    first, second = questions_of_twins(Draws(1), Scene((RED_CAR, BLUE_CATS), "left of"), green)
    assert [(q, a) for q, a, kind in first if kind == "presence"] == [
        ("Is there a blue cat?", "yes"),
        ("Is there a green cat?", "no"),
    ]
    assert [(q, a) for q, a, kind in second if kind == "colour"] == [
        ("What colour is the car?", "red"),
        ("What colour are the cats?", "green"),
    ]


def test_a_description_says_everything_of_a_part_with_its_name_and_without():
    scene, other = Scene((RED_CAR, BLUE_CATS), "left of"), Scene((Word("moon"), BLUE_CATS), "above")
    assert [(asked.question, asked.answer) for asked in parts_described(scene, other)] == [
        ("What about cars?", "cars red one left"),
        ("And cars?", "red one left"),
        ("What about cats?", "cats blue two right"),
        ("And cats?", "blue two right"),
        ("What about cars, seen from cats?", "cars left"),
        ("And cars, seen from cats?", "left"),
        ("What about cats, seen from cars?", "cats right"),
        ("And cats, seen from cars?", "right"),
    ]
    assert [asked.answer for asked in parts_described(other, scene)] == [
        *("word moon above", "moon above"),
        *("cats blue two below", "blue two below"),
        *("word above", "above", "cats below", "below"),
        *("cars none", "none"),
    ]
    assert [asked.answer for asked in parts_described(Scene((RED_CAR,)), Scene((RED_CAR,)))] == [
        "cars red one",
        "red one",
    ]


def test_a_relation_is_asked_only_where_both_twins_have_the_same_parts_in_the_same_number():
    fish, key = Group("fish", "green", 2), Group("key", "orange", 1)
    one = Scene((key, fish._replace(count=1)), "above")
    turned = Scene((fish, key), "above")
    kinds = [[a.kind for a in questions_of_twins(Draws(1), Scene((key, fish), "above"), b)[0]] for b in (one, turned)]
    assert [of.count("relation yes/no") for of in kinds] == [0, 2]


def test_comparisons_say_which_of_the_two_images_shows_it():
    three = Scene((RED_CAR, Group("cat", "blue", 3)), "left of")
    asked = comparisons(Draws(1), Scene((RED_CAR, BLUE_CATS), "left of"), three)
    assert [(a.question, a.answer) for a in asked] == [
        ("Which image shows exactly two cats?", "the first"),
        ("Which image shows exactly three cats?", "the second"),
        ("Which image has more cats?", "the second"),
    ]


def test_what_is_compared_is_described_as_each_image_shows_it():
    three = Scene((RED_CAR, Group("cat", "blue", 3)), "left of")
    assert described(comparisons(Draws(1), Scene((RED_CAR, BLUE_CATS), "left of"), three)) == [
        ("What about exactly two cats?", "cats two three the first"),
        ("And exactly two cats?", "two three the first"),
        ("What about exactly three cats?", "cats two three the second"),
        ("And exactly three cats?", "two three the second"),
        ("What about more cats?", "cats two three the second"),
        ("And more cats?", "two three the second"),
    ]
    turned = described(
        comparisons(Draws(1), Scene((RED_CAR, BLUE_CATS), "above"), Scene((BLUE_CATS, RED_CAR), "left of"))
    )
    assert turned[::2] == [
        ("What about the cats below the car?", "cats below left the first"),
        ("What about the car right of the cats?", "cars above right the second"),
    ]
    first, second = Scene((Word("moon"),)), Scene((BLUE_CATS,))
    assert described(comparisons(Draws(1), first, second))[::2] == [
        ('What about the word "moon"?', "word moon none the first"),
        ("What about a cat?", "cats none two the second"),
        ("What about a blue cat?", "cats none blue the second"),
    ]


def described(compared):
    return [(asked.question, asked.answer) for asked in comparisons_described(compared)]


def test_claims_are_described_by_what_is_there_and_hold_as_often_as_not():
    verdicts = defaultdict(Counter)
    for number in range(150):
        draws = Draws("claims", number)
        scene = draw_scene(draws, "train")
        told = [(asked.question, asked.answer) for asked in claims_described(draws, "train", scene)]
        for (named, with_name), (bare, without) in zip(told[::2], told[1::2], strict=True):
            claim = named.removeprefix("What about ").rstrip("?")
            name, value, verdict = with_name.split()
            slot, question, shown = looked_up(claim, name, scene)
            assert (value, verdict) == (truth(shown, scene), truth(question, scene)), (claim, scene)
            assert (bare, without) == (f"And {claim}?", f"{value} {verdict}")
            verdicts[slot][verdict] += 1
    assert set(verdicts) == {"colour", "count", "relation", "word"}
    assert all(counts["yes"] == counts["no"] > 10 for counts in verdicts.values()), verdicts


def looked_up(claim, name, scene):
    """The slot that a claim tells, the question whose answer is whether it holds, and the one for what is there."""
    if "exactly" in claim:
        return "count", f"Are there {claim}?", f"How many {name} are there?"
    if claim.startswith("a"):
        return "colour", f"Is there {claim}?", f"What colour are the {name}?"
    if re.fullmatch('the word "[a-z]+"', claim):
        return "word", f"Is {claim} written?", "Which word is written?"
    part = re.split(" (?:left of|right of|above|below) ", claim)[0].replace('"', "")
    return "relation", f"Is {claim}?", f"Where is {part}, seen from the other?"


def test_the_first_and_the_second_image_are_equally_often_the_answer():
    answers = Counter(a.answer for draws, *scenes in twins("train", 150) for a in comparisons(draws, *scenes))
    assert abs(answers["the first"] - answers["the second"]) < 0.08 * answers.total()


def test_every_twin_has_something_to_compare():
    assert all(comparisons(draws, *scenes) for draws, *scenes in twins("test-new", 80))
