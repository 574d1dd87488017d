"""Suggestions for the path of a file that is not there."""

import contextlib
import difflib
import itertools
import os
import re
from pathlib import Path

MOST_NAMES = 1000
"""Names of a folder that are compared, so that a message takes no time in a folder of many files."""
LONGEST = 255
"""Characters that a file name can have; a longer string was not meant as one."""
WILD = re.compile(r"[*?{\[]")
"""A pattern for many names, which is no misspelt name."""
ALIKE = 0.6
"""Share of letters in common, as difflib counts them."""


def did_you_mean_file(path: str | Path, otherwise: str) -> str:
    """`did you mean photos/fox.jpg?`, or `otherwise` where no name is similar; for a broken link, that it is one."""
    with contextlib.suppress(OSError, ValueError):  # no link
        return f"it is a link that leads nowhere, to {os.readlink(path)}"
    near = near_file(path)
    return otherwise if near is None else f"did you mean {near}?"


def near_file(path: str | Path) -> str | None:
    """The path with its first missing name replaced by the most similar one beside it; None: there is none.

    The path ends there if its rest does not exist. Upper and lower case are the same.
    """
    path = Path(path)
    try:
        missing = next((place for place in (*reversed(path.parents), path) if not place.exists()), None)
        if missing is None or len(missing.name) > LONGEST or WILD.search(missing.name):
            return None
        with os.scandir(missing.parent) as entries:
            names = {entry.name.lower(): entry.name for entry in itertools.islice(entries, MOST_NAMES)}
    except (OSError, ValueError):  # a folder that may not be read; a string that can be no path
        return None
    if names.get(missing.name.lower()) == missing.name:
        return None  # a link that leads nowhere
    close = difflib.get_close_matches(missing.name.lower(), names, n=5, cutoff=ALIKE)
    near = next((name for name in close if _is_like(Path(name).stem, missing.stem.lower())), None)
    if near is None:
        return None
    place = missing.with_name(names[near])
    whole = place / path.relative_to(missing)
    return str(whole if whole.exists() else place)


def _is_like(stem: str, other: str) -> bool:
    """True for similar stems; a suffix is shared by many files of a folder."""
    return difflib.SequenceMatcher(None, stem, other).ratio() >= ALIKE
