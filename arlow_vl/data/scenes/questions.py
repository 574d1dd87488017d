"""Questions about twins: two scenes of a split that are asked the same questions.

Every yes/no question is asked of both twins and is true of exactly one. So each wording has as many "yes" as "no", in
every shard, and nothing in it gives the answer away.

    scene a   a red car left of two blue cats       scene b   a red car left of two green cats
    Is there a blue cat?   a: yes, b: no            Is there a green cat?   a: no, b: yes
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from arlow_vl.data.scenes.draws import Draws
from arlow_vl.data.scenes.grammar import noun, part_name, part_phrase, with_article
from arlow_vl.data.scenes.scene import Part, Scene, Word
from arlow_vl.data.scenes.vocabulary import CONCEPTS, NUMBERS, OPPOSITE, Direction

NONE = "none"


class QuestionAnswer(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str
    kind: str
    """ "presence", "count yes/no", "relation yes/no", "count", "colour", "relation", "reading", "comparison" or
    "description"."""


class Claim(NamedTuple):
    """A statement that is true or false of a scene, as a question and as a phrase for what an image shows."""

    question: str
    shows: str
    kind: str
    of: str
    """Part that it is about, as `called` names it."""
    slot: Literal["count", "colour", "text", "side"]
    """Property of the part that it states."""
    about: frozenset[tuple[str, bool]] = frozenset()
    """The two parts of a relation: the name, and True for a plural ("the fish" may be either)."""


class Compared(NamedTuple):
    """A question about two images together."""

    question: str
    named: str
    """Phrase for what it asks for: "a blue cat", "more cats"."""
    of: str
    """Part that is compared, as `called` names it."""
    seen: tuple[str, str]
    """Word for what each of the two images shows there."""
    is_of_second: bool

    @property
    def answer(self) -> str:
        return ("the first", "the second")[self.is_of_second]


def questions_of_twins(draws: Draws, first: Scene, second: Scene) -> tuple[list[QuestionAnswer], list[QuestionAnswer]]:
    """Returns all questions about each of the two."""
    asked: tuple[list[QuestionAnswer], list[QuestionAnswer]] = ([], [])
    orders = [draws.coin() for _ in range(2)]
    for claim, is_of_second in telling(draws, first, second):
        for number, its in enumerate(asked):
            its.append(QuestionAnswer(claim.question, "yes" if number == is_of_second else "no", claim.kind))
    for its, scene, is_turned in zip(asked, (first, second), orders, strict=True):
        its.extend(open_questions(scene, is_turned))
    return asked


def comparisons(draws: Draws, first: Scene, second: Scene) -> list[Compared]:
    """Returns questions about the two images together, whose answer is "the first" or "the second"."""
    compared = [
        Compared(
            f"Which image shows {claim.shows}?",
            claim.shows,
            claim.of,
            (seen(claim, first), seen(claim, second)),
            is_of_second,
        )
        for claim, is_of_second in telling(draws, first, second)
    ]
    for group in first.groups:
        other = second.group_of(group.noun)
        if other is not None and other.count != group.count:
            more, counts = f"more {called(group)}", (NUMBERS[group.count - 1], NUMBERS[other.count - 1])
            is_of_second = other.count > group.count
            compared.append(Compared(f"Which image has {more}?", more, called(group), counts, is_of_second))
    return compared


def called(part: Part) -> str:
    """Returns the name of a part whatever its count: "cats", "word"."""
    return "word" if isinstance(part, Word) else CONCEPTS[part.noun].nouns


def seen(claim: Claim, scene: Scene) -> str:
    """Returns a word for what a scene shows of the claim's part; `NONE`: it lacks the part."""
    place = next((place for place, part in enumerate(scene.parts) if called(part) == claim.of), None)
    if place is None:
        return NONE
    if claim.slot == "side":
        return side(scene, place)
    part = scene.parts[place]
    if isinstance(part, Word):
        return part.text
    return part.colour if claim.slot == "colour" else NUMBERS[part.count - 1]


def direction(scene: Scene, part: int) -> Direction:
    """Returns the position of one of two parts as seen from the other one."""
    assert scene.relation is not None
    return scene.relation if part == 0 else OPPOSITE[scene.relation]


def side(scene: Scene, part: int) -> str:
    """Returns `direction` as one word: "left" for "left of"."""
    return direction(scene, part).removesuffix(" of")


def telling(draws: Draws, first: Scene, second: Scene) -> Iterator[tuple[Claim, bool]]:
    """Yields the claims that are true of only one of the two scenes, each with True if that is the second."""
    orders = [draws.coin() for _ in range(2)]
    claims = [list(_claims(scene, order)) for scene, order in zip((first, second), orders, strict=True)]
    for is_of_second in (False, True):
        other = (first, second)[not is_of_second]
        yield from ((claim, is_of_second) for claim in claims[is_of_second] if _is_false(claim, other))


def _claims(scene: Scene, is_turned: bool) -> Iterator[Claim]:
    for group in scene.groups:
        thing, of = with_article(group.noun), called(group)
        yield Claim(f"Is there {thing}?", thing, "presence", of, "count")
        coloured = f"{with_article(group.colour)} {group.noun}"
        yield Claim(f"Is there {coloured}?", coloured, "presence", of, "colour")
        number = f"exactly {NUMBERS[group.count - 1]} {noun(group)}"
        be = "Is" if group.count == 1 else "Are"
        yield Claim(f"{be} there {number}?", number, "count yes/no", of, "count")
    if scene.word is not None:
        written = part_phrase(Word(scene.word))
        yield Claim(f"Is {written} written?", written, "presence", called(Word(scene.word)), "text")
    if scene.relation is not None:
        part, other = scene.parts[is_turned], scene.parts[not is_turned]
        shows = f"{part_name(part)} {direction(scene, is_turned)} {part_name(other)}"
        question = f"{'Are' if _is_plural(part) else 'Is'} {shows}?"
        yield Claim(question, shows, "relation yes/no", called(part), "side", _named(scene))


def _is_false(claim: Claim, scene: Scene) -> bool:
    """Returns True if the scene contradicts the claim; one about parts that it lacks may be neither true nor false."""
    if claim.kind == "relation yes/no" and claim.about != _named(scene):
        return False
    if claim.kind == "count yes/no" and seen(claim, scene) == NONE:
        return False
    return all(claim != other for is_turned in (False, True) for other in _claims(scene, is_turned))


def _named(scene: Scene) -> frozenset[tuple[str, bool]]:
    return frozenset((part_name(part), _is_plural(part)) for part in scene.parts)


def open_questions(scene: Scene, is_turned: bool) -> Iterator[QuestionAnswer]:
    """Yields all questions but yes/no ones. `is_turned`: the position asked for is that of the second part."""
    for group in scene.groups:
        be = "is" if group.count == 1 else "are"
        yield QuestionAnswer(f"How many {called(group)} are there?", NUMBERS[group.count - 1], "count")
        yield QuestionAnswer(f"What colour {be} {part_name(group)}?", group.colour, "colour")
    if scene.word is not None:
        yield QuestionAnswer("Which word is written?", scene.word, "reading")
    if scene.relation is not None:
        part, other = scene.parts[is_turned], scene.parts[not is_turned]
        be = "are" if _is_plural(part) else "is"
        asked = f"Where {be} {part_name(part)}, seen from {part_name(other)}?"
        yield QuestionAnswer(asked, side(scene, is_turned), "relation")


def _is_plural(part: Part) -> bool:
    return not isinstance(part, Word) and part.count > 1
