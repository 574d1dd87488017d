# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""The end of a sentence about a word that nobody knows."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: object, known: Iterable[str], *, before: str = "") -> str:
    """Returns the known word closest to a misspelt one as a question, else the list of all; `before` leads to each."""
    known = list(known)
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"did you mean {before}{close[0]}?" if close else f"known are {', '.join(before + name for name in known)}"
