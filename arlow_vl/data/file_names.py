"""The files of a source: those under a folder or that a glob matches, and what each is called in keys and messages."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from arlow_vl.errors import DataError
from arlow_vl.printing import visible


def files_under(folder: str | Path, *, hidden: bool = True) -> Iterator[str]:
    """Paths of the files, sorted, so that every machine sees one order. Linked folders are entered, each folder once.

    `hidden=False` leaves out hidden folders and `__MACOSX`: operating systems make some that no user may list.

    Raises:
        DataError: a folder cannot be listed.
    """
    met = set()
    for parent, folders, names in os.walk(os.path.abspath(folder), onerror=_refuse, followlinks=True):
        state = os.stat(parent)
        if (state.st_dev, state.st_ino) in met:
            folders.clear()
            continue
        met.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if hidden or not name.startswith((".", "__MACOSX")))
        yield from (os.path.join(parent, name) for name in sorted(names))


def _refuse(error: OSError) -> None:
    raise DataError(
        f"{visible(str(error.filename))}: cannot be listed ({error.strerror}); let it be read or move it away"
    )


def globbed(pattern: str) -> list[str]:
    """Returns the paths that match a glob, sorted. A path that exists as written, as `run[1]`, is no glob."""
    start = literal_start(pattern)
    return sorted(glob.glob(glob.escape(start) + pattern[len(start) :], recursive=True))


def literal_start(pattern: str) -> str:
    """Returns the longest existing path that a pattern begins with; empty where a relative pattern has none."""
    while pattern and not os.path.lexists(pattern):
        pattern = os.path.dirname(pattern)
    return pattern


def names_of(files: Iterable[str | Path]) -> dict[Path, str]:
    """Each file's name; where two have one name, with the folders that tell them apart: `a/0.tar` and `b/0.tar`."""
    paths = {Path(file): Path(os.path.abspath(file)) for file in files}
    uses = Counter(path.name for path in paths)
    common = Path(os.path.commonpath([path.parent for path in paths.values()])) if paths else Path()
    return {path: path.name if uses[path.name] == 1 else str(full.relative_to(common)) for path, full in paths.items()}
