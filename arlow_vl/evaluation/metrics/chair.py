"""CHAIR: the things that a caption names and that are not in the image (Rohrbach et al., 2018, arXiv:1809.02156).

The inventory lists the words that name each thing, so it decides what can be found. The official one lists COCO's 80
objects (`data/synonyms.txt` beside the official code); any other works as well.

inventory  {"dog": ["puppy"], "hot dog": [], "bench": []}
in image   {"dog"}
caption    two puppies and a hot dog on a bench     named: dog, hot dog, bench; false: hot dog, bench
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from arlow_vl.evaluation.metrics.ptb import tokenize_caption


class Inventory:
    """Things, with the words that name them.

    Regular plurals need no synonym: -s, -es, -ies for -y, -ves for -f and -fe.
    """

    def __init__(self, synonyms: Mapping[str, Sequence[str]]) -> None:
        """Builds the inventory from the synonyms of each thing; its own name need not be among them.

        Raises:
            ValueError: there is no thing, a name has no words, or a name stands for two things.
        """
        if not synonyms:
            raise ValueError("the inventory holds no thing; give each thing with its synonyms")
        self._thing_of: dict[tuple[str, ...], str] = {}
        for thing, names in synonyms.items():
            for name in (thing, *names):
                self._add(name, thing)
        self._longest = max(map(len, self._thing_of))

    def _add(self, name: str, thing: str) -> None:
        words = tuple(tokenize_caption(name))
        if not words:
            raise ValueError(f"the inventory names {thing!r} as {name!r}, which has no word; take it out")
        if (other := self._thing_of.setdefault(words, thing)) != thing:
            raise ValueError(f"{name!r} names both {other!r} and {thing!r} in the inventory; leave it with one of them")

    def named(self, caption: str) -> list[str]:
        """Returns the things that a caption names, with repetitions; of overlapping names the longest counts."""
        words, things, place = tokenize_caption(caption), [], 0
        while place < len(words):
            lengths = range(min(self._longest, len(words) - place), 0, -1)
            found = ((length, self._find(tuple(words[place : place + length]))) for length in lengths)
            length, thing = next(((length, thing) for length, thing in found if thing is not None), (1, None))
            things += [] if thing is None else [thing]
            place += length
        return things

    def _find(self, words: tuple[str, ...]) -> str | None:
        """Returns the thing of a name whose last word is in the singular or the plural; None if there is none."""
        names = ((*words[:-1], last) for last in singulars(words[-1]))
        return next((self._thing_of[name] for name in names if name in self._thing_of), None)


def singulars(word: str) -> list[str]:
    """Returns the word, and the words of which it may be the regular plural."""
    found = [word]
    for plural, singular in (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe")):
        if word.endswith(plural) and len(word) > len(plural) + 1:
            found.append(word.removesuffix(plural) + singular)
    return found


@dataclass(frozen=True)
class ChairCounts:
    """Counts of the things that one caption names."""

    named: list[str]
    """Things named, with repetitions."""
    false: list[str]
    """Things of `named` that are not in the image."""
    found: int
    """Number of distinct things in the image that the caption names."""
    in_image: int
    """Number of distinct things in the image."""


def chair_counts(caption: str, in_image: Collection[str], inventory: Inventory) -> ChairCounts:
    """Counts the things that one caption names; `in_image` uses the names of the inventory.

    The official code passes the annotated objects and those that the reference captions name:
    `{*annotated, *(thing for caption in references for thing in inventory.named(caption))}`.
    """
    named, there = inventory.named(caption), set(in_image)
    return ChairCounts(named, [thing for thing in named if thing not in there], len(there & set(named)), len(there))
