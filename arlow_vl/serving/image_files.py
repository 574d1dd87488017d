"""Many image files: found in folders and by globs, and read ahead in the background."""

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from arlow_vl.cores import cores
from arlow_vl.data.file_names import files_under, globbed
from arlow_vl.data.member_names import IMAGE_SUFFIXES, system_file
from arlow_vl.printing import number_of, visible
from vision.decoding.header import is_image
from vision.decoding.image import ImageError

BEGINNING = 4096
"""Bytes at the start of a file without a known suffix that show whether it is an image."""
UNREADABLE = (ImageError, OSError)
"""Errors of one image, after which the others are still read."""

T = TypeVar("T")


class FoundImages(NamedTuple):
    paths: list[str]
    """Paths as typed, or below the folder that was typed; the files of a folder are sorted."""
    others: int
    """Number of files in folders and globs that are not images."""


def find_images(sources: Sequence[str]) -> FoundImages:
    """Finds the images of files, folders with all below them, and globs. A file that is named is taken unchecked.

    Raises:
        ValueError: a glob matches nothing, or a folder holds no image.
        DataError: a folder cannot be listed.
    """
    paths: list[str] = []
    others = 0
    for source in sources:
        is_glob = not os.path.lexists(source) and glob.has_magic(source)
        if is_glob:
            files = list(dict.fromkeys(_files_of_glob(source)))  # a folder may match beside what is in it
        elif os.path.isdir(source):
            files = list(_files_below(source))
        else:
            paths.append(source)
            continue
        images = [file for file in files if _is_image(file)]
        if not images:
            what = "matches no image" if is_glob else "is a folder without an image"
            beside = f" ({number_of(len(files), 'other file')})" if files else ""
            raise ValueError(f"{visible(source)} {what}{beside}; name image files, folders or globs")
        paths += images
        others += len(files) - len(images)
    return FoundImages(paths, others)


def _files_of_glob(source: str) -> Iterator[str]:
    for path in globbed(source):
        if os.path.isfile(path):
            yield path
        elif os.path.isdir(path):
            yield from _files_below(path)


def _files_below(folder: str) -> Iterator[str]:
    """Yields regular files, without hidden ones and those of operating systems and editors."""
    root = os.path.abspath(folder)
    for path in files_under(root, hidden=False):
        if system_file(os.path.basename(path)) in (None, "no_extension") and os.path.isfile(path):
            yield os.path.join(folder, os.path.relpath(path, root))


def _is_image(path: str) -> bool:
    """Decides by the suffix, else by the first bytes."""
    if Path(path).suffix.lower().removeprefix(".") in IMAGE_SUFFIXES:
        return True
    try:
        with open(path, "rb") as file:
            return is_image(file.read(BEGINNING))
    except OSError:
        return False


def read_ahead(
    read: Callable[[str], T], paths: Iterable[str], *, ahead: int, threads: int | None = None
) -> Iterator[tuple[str, T | ImageError | OSError]]:
    """Yields each path with the result of `read`, or with the error that it raised, in order.

    At most `ahead` results wait to be taken, so memory does not grow with the number of files.
    """
    waiting: deque[tuple[str, Future[T]]] = deque()
    pool = ThreadPoolExecutor(threads or min(4, cores()))
    try:
        for path in paths:
            waiting.append((path, pool.submit(read, path)))
            if len(waiting) >= ahead:
                yield _taken(*waiting.popleft())
        while waiting:
            yield _taken(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _taken(path: str, future: Future[T]) -> tuple[str, T | ImageError | OSError]:
    try:
        return path, future.result()
    except UNREADABLE as error:
        return path, error


def sentence_of(path: str, error: Exception) -> str:
    """Returns the sentence about an image that cannot be read, which begins with its path."""
    if isinstance(error, OSError) and error.strerror:
        return f"{visible(path)}: cannot be read ({error.strerror})"
    return str(error)
