"""Token counts of the texts of a data set, made once and then mapped, so that rows are planned without a tokenizer.

A file holds three arrays as `np.save` writes them: where the texts of each sample begin, the tokens of each text, and
the number of images of each sample.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from arlow_vl.data.index.writing import CANNOT_WRITE
from arlow_vl.data.processes import in_processes
from vision.whole_files import write_whole

SAMPLES_AT_ONCE = 1024
"""Samples that a process counts at a time."""
Length = tuple[tuple[int, ...], int]
"""Tokens of each text of a sample, and its number of images."""


class TokenLengths:
    """The lengths of a data set's samples, by their numbers."""

    def __init__(self, path: Path) -> None:
        """Maps a file. Raises ValueError or OSError if it is foreign or missing."""
        with open(path, "rb") as file:
            self.starts, self.tokens, self.images = (_mapped(path, file) for _ in range(3))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Length:
        start, end = self.starts[number], self.starts[number + 1]
        return tuple(self.tokens[start:end].tolist()), int(self.images[number])


def token_lengths(
    name: str,
    folders: Sequence[Path],
    samples: int,
    length: Callable[[int], Length],
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TokenLengths:
    """Returns the lengths from the first folder that has them, else counts them into the first that can be written.

    Args:
        name: Name of the lengths, which differs where any sample, text or setting does.
        length: Returns the length of a sample.
        workers: Processes that count.
        progress: Called with the number of samples counted so far, and of all.
    """
    paths = [folder / f"token-lengths-{name[:16]}.bin" for folder in folders]
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            if len(found := TokenLengths(path)) == samples:
                return found
    counted = _counted(samples, length, workers, progress)
    for path in paths[:-1]:
        try:
            write_whole(path, partial(_write, counted))
            return TokenLengths(path)
        except OSError as error:
            if error.errno not in CANNOT_WRITE:
                raise
    write_whole(paths[-1], partial(_write, counted))
    return TokenLengths(paths[-1])


def _counted(
    samples: int, length: Callable[[int], Length], workers: int, progress: Callable[[int, int], None]
) -> list[np.ndarray]:
    """Counts the texts of each sample, the tokens of each text and the images of each sample."""
    parts: dict[int, list[np.ndarray]] = {}
    starts = range(0, samples, SAMPLES_AT_ONCE)
    work, done = partial(_of_some, samples, length), 0
    for start, arrays in in_processes(work, starts, max(1, min(workers, len(starts)))):
        parts[start] = arrays
        done += len(arrays[0])
        progress(done, samples)
    return [np.concatenate(of_all) for of_all in zip(*(parts[start] for start in starts), strict=True)]


def _of_some(samples: int, length: Callable[[int], Length], start: int) -> list[np.ndarray]:
    lengths = [length(number) for number in range(start, min(start + SAMPLES_AT_ONCE, samples))]
    texts = [len(tokens) for tokens, _ in lengths]
    tokens, images = [count for tokens, _ in lengths for count in tokens], [count for _, count in lengths]
    return [np.array(numbers, dtype=np.int32) for numbers in (texts, tokens, images)]


def _write(counted: Sequence[np.ndarray], file: BinaryIO) -> None:
    texts, tokens, images = counted
    np.save(file, np.concatenate([np.zeros(1, np.int64), np.cumsum(texts, dtype=np.int64)]))
    np.save(file, tokens)
    np.save(file, images)


def _mapped(path: Path, file: BinaryIO) -> Any:
    """Maps the array at the file's position, and moves the file to the end of it."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"{path.name} is of another version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    start = file.tell()
    file.seek(start + shape[0] * dtype.itemsize)
    if not shape[0]:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, "r", start, shape).view(np.ndarray)
