"""Questions about twins: two scenes of a split that are asked the same.

Every yes/no question is asked of both twins and is true of exactly one. So each wording has as many "yes" as "no", in
every shard, and nothing in it gives the answer away.

    scene a   a red car left of two blue cats       scene b   a red car left of two green cats
    Is there a blue cat?   a: yes, b: no            Is there a green cat?   a: no, b: yes
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from arlow_vl.data.scenes.draws import Draws
from arlow_vl.data.scenes.grammar import noun, part_name, part_phrase, with_article
from arlow_vl.data.scenes.scene import Part, Scene, Word
from arlow_vl.data.scenes.vocabulary import CONCEPTS, NUMBERS, OPPOSITE, Direction


class Asked(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str
    kind: str
    """ "presence", "count yes/no", "relation yes/no", "count", "colour", "relation", "reading", "comparison" or
    "description"."""


class Claim(NamedTuple):
    """Something that is true of a scene or not, as a question and as what an image shows."""

    question: str
    shows: str
    kind: str
    about: frozenset[tuple[str, bool]] = frozenset()
    """The two parts of a relation, by name and whether it is a plural ("the fish" may be either)."""


def questions_of_twins(draws: Draws, first: Scene, second: Scene) -> tuple[list[Asked], list[Asked]]:
    """All questions about each of the two."""
    asked: tuple[list[Asked], list[Asked]] = ([], [])
    orders = [draws.coin() for _ in range(2)]
    for claim, is_of_second in _telling(draws, first, second):
        for number, its in enumerate(asked):
            its.append(Asked(claim.question, "yes" if number == is_of_second else "no", claim.kind))
    for its, scene, is_turned in zip(asked, (first, second), orders, strict=True):
        its.extend(open_questions(scene, is_turned))
    return asked


def comparisons(draws: Draws, first: Scene, second: Scene) -> list[Asked]:
    """Questions about the two images together, whose answer is "the first" or "the second"."""
    answers = ("the first", "the second")
    asked = [
        Asked(f"Which image shows {claim.shows}?", answers[is_of_second], "comparison")
        for claim, is_of_second in _telling(draws, first, second)
    ]
    for group in first.groups:
        other = second.group_of(group.noun)
        if other is not None and other.count != group.count:
            more = answers[other.count > group.count]
            asked.append(Asked(f"Which image has more {CONCEPTS[group.noun].nouns}?", more, "comparison"))
    return asked


def descriptions(scene: Scene, twin: Scene) -> Iterator[Asked]:
    """All of each part in a few words, where it lies seen from the other one, and of the twin's things those that are
    not there: with the name, and without.

    "What about cats?" has "cats blue two right". Whoever has just written the thing has it at hand where the next word
    is due. "And cats?" has "blue two right", and here, as in all other answers, it must be carried from the question.
    """
    for place, part in enumerate(scene.parts):
        where = "" if scene.relation is None else " " + _side(scene, place)
        yield from _description(_called(part), f"{_said(part)}{where}")
    for place in range(len(scene.parts) if scene.relation else 0):
        part, other = scene.parts[place], scene.parts[1 - place]
        yield from _description(_called(part), _side(scene, place), behind=f", seen from {_called(other)}")
    for group in twin.groups:
        if scene.group_of(group.noun) is None:
            yield from _description(_called(group), "none")


def comparisons_described(compared: Iterable[Asked]) -> Iterator[Asked]:
    """As `descriptions`, of what `comparisons` ask for: "What about a blue cat?" has "a blue cat the first"."""
    for asked in compared:
        named = asked.question.removesuffix("?").split(maxsplit=3)[3]  # "Which image shows", "Which image has"
        yield from _description(named, asked.answer)


def direction(scene: Scene, part: int) -> Direction:
    """Where a part of a scene with two lies, seen from the other one."""
    assert scene.relation is not None
    return scene.relation if part == 0 else OPPOSITE[scene.relation]


def _telling(draws: Draws, first: Scene, second: Scene) -> Iterator[tuple[Claim, bool]]:
    """Claims that are true of one of the two alone; the second value is True where that is the second."""
    orders = [draws.coin() for _ in range(2)]
    claims = [list(_claims(scene, order)) for scene, order in zip((first, second), orders, strict=True)]
    for is_of_second in (False, True):
        other = (first, second)[not is_of_second]
        yield from ((claim, is_of_second) for claim in claims[is_of_second] if _is_false(claim, other))


def _claims(scene: Scene, is_turned: bool) -> Iterator[Claim]:
    for group in scene.groups:
        thing = with_article(group.noun)
        yield Claim(f"Is there {thing}?", thing, "presence")
        coloured = f"{with_article(group.colour)} {group.noun}"
        yield Claim(f"Is there {coloured}?", coloured, "presence")
        number = f"exactly {NUMBERS[group.count - 1]} {noun(group)}"
        yield Claim(f"{'Is' if group.count == 1 else 'Are'} there {number}?", number, "count yes/no")
    if scene.word is not None:
        written = part_phrase(Word(scene.word))
        yield Claim(f"Is {written} written?", written, "presence")
    if scene.relation is not None:
        part, other = scene.parts[is_turned], scene.parts[not is_turned]
        where = direction(scene, is_turned)
        question = f"{'Are' if _is_plural(part) else 'Is'} {part_name(part)} {where} {part_name(other)}?"
        yield Claim(question, f"{part_name(part)} {where} {part_name(other)}", "relation yes/no", _named(scene))


def _is_false(claim: Claim, scene: Scene) -> bool:
    """Whether the scene denies the claim. It says nothing of one about parts that it hasn't."""
    if claim.kind == "relation yes/no" and claim.about != _named(scene):
        return False
    if claim.kind == "count yes/no":
        thing = claim.shows.split()[-1]
        if thing not in {spelled for group in scene.groups for spelled in (group.noun, CONCEPTS[group.noun].nouns)}:
            return False
    return all(claim != other for is_turned in (False, True) for other in _claims(scene, is_turned))


def _named(scene: Scene) -> frozenset[tuple[str, bool]]:
    return frozenset((part_name(part), _is_plural(part)) for part in scene.parts)


def open_questions(scene: Scene, is_turned: bool) -> Iterator[Asked]:
    """All but yes/no questions; turned, it is asked where the second part lies, seen from the first."""
    for group in scene.groups:
        be = "is" if group.count == 1 else "are"
        yield Asked(f"How many {CONCEPTS[group.noun].nouns} are there?", NUMBERS[group.count - 1], "count")
        yield Asked(f"What colour {be} {part_name(group)}?", group.colour, "colour")
    if scene.word is not None:
        yield Asked("Which word is written?", scene.word, "reading")
    if scene.relation is not None:
        part, other = scene.parts[is_turned], scene.parts[not is_turned]
        be = "are" if _is_plural(part) else "is"
        asked = f"Where {be} {part_name(part)}, seen from {part_name(other)}?"
        yield Asked(asked, _side(scene, is_turned), "relation")


def _description(name: str, said: str, *, behind: str = "") -> Iterator[Asked]:
    yield Asked(f"What about {name}{behind}?", f"{name.removeprefix('the ')} {said}", "description")
    yield Asked(f"And {name}{behind}?", said, "description")


def _called(part: Part) -> str:
    return "the word" if isinstance(part, Word) else CONCEPTS[part.noun].nouns


def _said(part: Part) -> str:
    return part.text if isinstance(part, Word) else f"{part.colour} {NUMBERS[part.count - 1]}"


def _side(scene: Scene, place: int) -> str:
    return direction(scene, place).removesuffix(" of")


def _is_plural(part: Part) -> bool:
    return not isinstance(part, Word) and part.count > 1
