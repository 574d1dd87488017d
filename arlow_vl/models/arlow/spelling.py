# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Parts of messages: suggestions for an unknown word, and counts."""

import difflib
from collections.abc import Iterable


def number_of(count: int, noun: str) -> str:
    """The count and its noun, as "1 image" and "2,048 images"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def did_you_mean(word: object, known: Iterable[str], *, before: str = "") -> str:
    """Returns the known word closest to a misspelt one as a question, else the list of all; `before` leads to each."""
    known = list(known)
    if (close := closest(word, known)) is not None:
        return f"did you mean {before}{close}?"
    return f"known are {', '.join(before + name for name in known)}"


def closest(word: object, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Returns the known word that is most like `word`, None where none is; `cutoff` in [0, 1], 1 is equal (difflib)."""
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=cutoff)
    return close[0] if close else None
