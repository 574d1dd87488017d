"""Rules of the splits: what a test shows is never trained on, but everything that it is made of is.

    train, validation, test-new    scenes by the rules of training, new draws
    test-pairs                     two things that no training image shows together
    test-colours                   every thing in the one colour that it never has in training
    test-counts                    every thing in the one count that it never has in training
    test-style                     things drawn in a style that training never shows
    test-drawings                  stamps and clip art of known things that training never shows

A test breaks one rule of training and keeps the others, so its score has one cause.
"""

from typing import Literal

from arlow_vl.data.scenes.draws import Draws
from arlow_vl.data.scenes.scene import MOST, Group, Part, Scene, Word
from arlow_vl.data.scenes.vocabulary import COLOURS, NOUNS, OPPOSITE, WORDS, Colour, Relation

Split = Literal[
    "train", "validation", "test-new", "test-pairs", "test-colours", "test-counts", "test-style", "test-drawings"
]
SPLITS: tuple[Split, ...] = (
    "train",
    "validation",
    "test-new",
    "test-pairs",
    "test-colours",
    "test-counts",
    "test-style",
    "test-drawings",
)
RELATIONS: tuple[Relation, ...] = tuple(OPPOSITE)
_COLOURS: tuple[Colour, ...] = tuple(COLOURS)
_NUMBER_OF = {noun: number for number, noun in enumerate(NOUNS)}
_SHAPES = ("two groups",) * 6 + ("group and word",) * 2 + ("group",) * 2
Slot = Literal["all", "noun", "colour", "count", "relation", "word"]
_CHANGES: tuple[Slot, ...] = ("all", "all", "noun", "colour", "count", "relation", "relation", "word")
_TRIES = 20


def held_out_colour(noun: str) -> Colour:
    """Returns the colour that the thing never has in training."""
    return _COLOURS[3 * _NUMBER_OF[noun] % len(_COLOURS)]


def held_out_count(noun: str) -> int:
    """Returns the count, two to five, that the thing never has in training."""
    return 2 + _NUMBER_OF[noun] % (MOST - 1)


def is_held_out_pair(first: str, second: str) -> bool:
    """Returns True if no training image shows both, as for a sixth of all pairs, and of each thing's pairs."""
    return (_NUMBER_OF[first] + _NUMBER_OF[second]) % 6 == 5


def may_show(split: Split, scene: Scene) -> bool:
    """Returns True if the scene keeps the rules of the split."""
    groups = list(scene.groups)
    nouns = [group.noun for group in groups]
    if not groups or len(set(nouns)) < len(nouns):
        return False
    is_pair = len(groups) == 2 and is_held_out_pair(*nouns)
    return (
        is_pair == (split == "test-pairs")
        and all((group.colour == held_out_colour(group.noun)) == (split == "test-colours") for group in groups)
        and all((group.count == held_out_count(group.noun)) == (split == "test-counts") for group in groups)
    )


def draw_scene(draws: Draws, split: Split, nouns: tuple[str, ...] = NOUNS) -> Scene:
    """Draws a scene of the split; things, colours, counts and relations are as uniform as its rules allow.

    Args:
        nouns: Things that can be drawn; those without a held-out drawing cannot in `test-drawings`.
    """
    shape = "two groups" if split == "test-pairs" else draws.choose(_SHAPES)
    parts: list[Part] = [_draw_group(draws, split, draws.choose(nouns))]
    if shape == "two groups":
        known = parts[0].noun if isinstance(parts[0], Group) else ""
        partners = [n for n in nouns if n != known and is_held_out_pair(known, n) == (split == "test-pairs")]
        parts.append(_draw_group(draws, split, draws.choose(partners)))
    elif shape == "group and word":
        parts.append(Word(draws.choose(WORDS)))
    scene = Scene(tuple(draws.shuffled(parts)), draws.choose(RELATIONS) if len(parts) > 1 else None)
    assert may_show(split, scene), scene
    return scene


def draw_twin(draws: Draws, split: Split, scene: Scene, nouns: tuple[str, ...] = NOUNS) -> Scene:
    """Draws another scene of the split that differs in one slot, or in all of them, so that a question asked of both
    has two answers."""
    for _ in range(_TRIES):
        twin = changed(draws, split, scene, draws.choose(_CHANGES), nouns)
        if twin != scene and may_show(split, twin):
            return twin
    while (twin := draw_scene(draws, split, nouns)) == scene:
        pass
    return twin


def changed(draws: Draws, split: Split, scene: Scene, what: Slot, nouns: tuple[str, ...] = NOUNS) -> Scene:
    """Returns the scene with one slot drawn again.

    It may come out the same, as it does if the scene lacks the slot, and it may break the rules of the split.
    """
    place = draws.below(len(scene.parts))
    part = scene.parts[place]
    if what == "all":
        return draw_scene(draws, split, nouns)
    if what == "relation" and scene.relation is not None:
        order = scene.parts[::-1] if draws.coin() else scene.parts
        return Scene(order, draws.choose(RELATIONS))
    if what == "word" and isinstance(part, Word):
        return _with_part(scene, place, Word(draws.choose(WORDS)))
    if isinstance(part, Word):
        return scene
    if what == "noun":
        fresh = _draw_group(draws, split, draws.choose(nouns))
        colour = part.colour if _fits_colour(split, fresh.noun, part.colour) else fresh.colour
        count = part.count if _fits_count(split, fresh.noun, part.count) else fresh.count
        return _with_part(scene, place, Group(fresh.noun, colour, count))
    if what in ("colour", "count"):
        fresh = _draw_group(draws, split, part.noun)
        return _with_part(scene, place, part._replace(**{what: getattr(fresh, what)}))
    return scene


def _with_part(scene: Scene, place: int, part: Part) -> Scene:
    return Scene((*scene.parts[:place], part, *scene.parts[place + 1 :]), scene.relation)


def _draw_group(draws: Draws, split: Split, noun: str) -> Group:
    colours = [colour for colour in _COLOURS if _fits_colour(split, noun, colour)]
    counts = [count for count in range(1, MOST + 1) if _fits_count(split, noun, count)]
    return Group(noun, draws.choose(colours), draws.choose(counts))


def _fits_colour(split: Split, noun: str, colour: Colour) -> bool:
    return (colour == held_out_colour(noun)) == (split == "test-colours")


def _fits_count(split: Split, noun: str, count: int) -> bool:
    return (count == held_out_count(noun)) == (split == "test-counts")
