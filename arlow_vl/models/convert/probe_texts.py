"""Texts by which two tokenizers that should give the same ids are told apart."""

from collections.abc import Callable, Iterable, Sequence

Ids = list[list[int]]
PLAIN = (
    *("", " ", "   ", "the cat", " in front", "  two  spaces   here  ", "\n", "\ta\r\n\r\n  b", "\u2581a"),
    *("I'm It'LL", "in 1998, 12345 cats (x)!?\n", "漢字かな 한국어", "ünï ẞ", "\ufb01 \uff21 \u2460"),
    *("e\u0301 \u1112\u1161\u11ab", "🎉👩\u200d👧"),
)
# A character for every byte that UTF-8 can have.
CHARACTERS = (
    *map(chr, range(1, 0xC0)),
    *map(chr, range(0xC0, 0x800, 0x40)),
    *map(chr, (0x800, *range(0x1000, 0xD001, 0x1000), 0xE000, 0xF000)),
    *map(chr, range(0x10000, 0x110000, 0x40000)),
)


def around(token: str) -> tuple[str, ...]:
    """The token alone, inside a word, and between spaces."""
    return token, f"a{token}b", f"a {token} b", f"a  {token}  {token}\n"


def first_difference(
    texts: Iterable[str], encode: Callable[[list[str]], Ids], other: Callable[[list[str]], Ids]
) -> tuple[str, Sequence[int], Sequence[int]] | None:
    """The first text that two tokenizers encode differently, with the ids of each; None: there is none."""
    unique = list(dict.fromkeys(texts))
    rows = zip(unique, encode(unique), other(unique), strict=True)
    return next((row for row in rows if row[1] != row[2]), None)
