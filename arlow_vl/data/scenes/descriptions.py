"""Descriptions of single things, for training: the steps between a look at the image and an answer in a word.

    What about cats?            cats blue two left            each part, and things of the twin alone: "dogs none"
    What about a green cat?     cats blue no                  a claim: what the scene shows there, and if it is true
    What about a green cat?     cats blue green the second    of two images: what each shows there, and which it is

Each comes with the name and without. A model that has just written the name can read it from its own answer when the
next word is due. "And cats?" is answered "blue two left", where the name, as in all other answers, must be carried over
from the question.
"""

from collections.abc import Iterable, Iterator

from arlow_vl.data.scenes.draws import Draws
from arlow_vl.data.scenes.questions import NONE, Compared, QuestionAnswer, called, seen, side, telling
from arlow_vl.data.scenes.scene import Part, Scene, Word
from arlow_vl.data.scenes.splits import Slot, Split, changed, may_show
from arlow_vl.data.scenes.vocabulary import NUMBERS

_CLAIMED: tuple[Slot, ...] = ("colour", "count", "relation", "word")


def parts_described(scene: Scene, twin: Scene) -> Iterator[QuestionAnswer]:
    """Yields each part in a few words, its position seen from the other one, and the things that only the twin has."""
    for place, part in enumerate(scene.parts):
        where = "" if scene.relation is None else f" {side(scene, place)}"
        yield from _description(_with_the(part), called(part), f"{_said(part)}{where}")
    for place in range(len(scene.parts) if scene.relation else 0):
        part, other = scene.parts[place], scene.parts[1 - place]
        yield from _description(f"{_with_the(part)}, seen from {_with_the(other)}", called(part), side(scene, place))
    for group in twin.groups:
        if scene.group_of(group.noun) is None:
            yield from _description(called(group), called(group), NONE)


def claims_described(draws: Draws, split: Split, scene: Scene) -> Iterator[QuestionAnswer]:
    """Yields for each slot the claims, true and false, that tell the scene from one with the slot drawn again."""
    for slot in _CLAIMED:
        other = changed(draws, split, scene, slot)
        if other != scene and may_show(split, other):
            for claim, is_of_other in telling(draws, scene, other):
                yield from _description(claim.shows, claim.of, f"{seen(claim, scene)} {'no' if is_of_other else 'yes'}")


def comparisons_described(comparisons: Iterable[Compared]) -> Iterator[QuestionAnswer]:
    """Yields what each of two images shows where they are compared, and which is asked for."""
    for compared in comparisons:
        yield from _description(compared.named, compared.of, f"{' '.join(compared.seen)} {compared.answer}")


def _description(named: str, name: str, said: str) -> Iterator[QuestionAnswer]:
    yield QuestionAnswer(f"What about {named}?", f"{name} {said}", "description")
    yield QuestionAnswer(f"And {named}?", said, "description")


def _with_the(part: Part) -> str:
    return f"the {called(part)}" if isinstance(part, Word) else called(part)


def _said(part: Part) -> str:
    return part.text if isinstance(part, Word) else f"{part.colour} {NUMBERS[part.count - 1]}"
