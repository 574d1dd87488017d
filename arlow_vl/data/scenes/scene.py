"""A scene in words: one or two parts, and the position of the first as seen from the second.

    Scene((Group("car", "red", 1), Group("cat", "blue", 2)), "left of")     a red car left of two blue cats
    Scene((Word("moon"),))                                                  the word "moon"

"A left of B" and "B right of A" show the same, so the part on the left or on top always comes first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from arlow_vl.data.scenes.vocabulary import Colour, Relation

MOST = 5
"""Maximum number of things in a group."""


class Group(NamedTuple):
    """Things of one kind and colour that lie together."""

    noun: str
    colour: Colour
    count: int


class Word(NamedTuple):
    """A written word."""

    text: str


Part = Group | Word


@dataclass(frozen=True)
class Scene:
    parts: tuple[Part, ...]
    relation: Relation | None = None
    """Position of the first part as seen from the second; None: there is one part."""

    @property
    def groups(self) -> Iterator[Group]:
        return (part for part in self.parts if isinstance(part, Group))

    @property
    def word(self) -> str | None:
        return next((part.text for part in self.parts if isinstance(part, Word)), None)

    def group_of(self, noun: str) -> Group | None:
        return next((group for group in self.groups if group.noun == noun), None)
