"""The grammar of captions: each scene has one caption, and each caption one scene.

caption   = part | part relation part
relation  = "left of" | "above"
part      = "a" colour noun | number colour nouns | "the word" quoted
number    = "two" | "three" | "four" | "five"
"""

import re
from typing import cast

from arlow_vl.data.scenes.scene import Group, Part, Scene, Word
from arlow_vl.data.scenes.vocabulary import COLOURS, CONCEPTS, NUMBERS, OPPOSITE, Relation

_NOUN_OF = {spelled: concept.noun for concept in CONCEPTS.values() for spelled in (concept.noun, concept.nouns)}
_COUNT_OF = {"a": 1, "an": 1} | {number: count for count, number in enumerate(NUMBERS, 1)}
_RELATION = re.compile(rf"\s+({'|'.join(OPPOSITE)})\s+")
_WORD = re.compile(r"(?:the )?word \"?([a-z]+)\"?")


def caption_of(scene: Scene) -> str:
    return f" {scene.relation} ".join(part_phrase(part) for part in scene.parts)


def part_phrase(part: Part) -> str:
    """Returns a part as in captions: "a red car", "two blue cats", 'the word "moon"'."""
    if isinstance(part, Word):
        return f'the word "{part.text}"'
    return (
        f"{with_article(part.colour) if part.count == 1 else f'{NUMBERS[part.count - 1]} {part.colour}'} {noun(part)}"
    )


def part_name(part: Part) -> str:
    """Returns a part's name as in questions: "the car", "the cats", 'the word "moon"'."""
    return part_phrase(part) if isinstance(part, Word) else f"the {noun(part)}"


def noun(group: Group) -> str:
    concept = CONCEPTS[group.noun]
    return concept.noun if group.count == 1 else concept.nouns


def with_article(words: str) -> str:
    """Returns "a car" or "an apple"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def parse_caption(caption: str) -> Scene | None:
    """Returns the scene of a caption; None: it is not a sentence of the grammar.

    Case, full stops, "a" for "an" and missing quotes do not matter, nor does a noun's singular or plural, as the number
    word gives the count.
    """
    text = " ".join(caption.lower().replace(".", " ").split())
    first, *more = _RELATION.split(text)
    if len(more) not in (0, 2):
        return None
    parts = [parse_part(phrase) for phrase in (first, *more[1:])]
    if None in parts:
        return None
    return Scene(tuple(part for part in parts if part is not None), cast(Relation, more[0]) if more else None)


def parse_part(phrase: str) -> Part | None:
    if match := _WORD.fullmatch(phrase):
        return Word(match[1])
    words = phrase.split()
    if len(words) != 3 or words[0] not in _COUNT_OF or words[1] not in COLOURS or words[2] not in _NOUN_OF:
        return None
    return Group(_NOUN_OF[words[2]], words[1], _COUNT_OF[words[0]])


def groups_named(text: str) -> list[Group]:
    """Returns every group of things that a text mentions in the words of the grammar."""
    words = re.findall(r"[a-z]+", _without_quoted(text))
    found = (parse_part(" ".join(words[start : start + 3])) for start in range(len(words) - 2))
    return [group for group in found if isinstance(group, Group)]


def nouns_named(text: str) -> list[str]:
    """Returns every thing that a text of any kind names, in order and in the singular; quoted words do not count."""
    words = re.findall(r"[a-z]+", _without_quoted(text))
    return [_NOUN_OF[word] for word in words if word in _NOUN_OF]


def _without_quoted(text: str) -> str:
    return re.sub(r'"[^"]*"', " ", text.lower())
