"""One process at a time in a folder, and in what has another name until it is whole."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from arlow_vl.errors import DataError
from arlow_vl.printing import visible


@contextmanager
def one_process(path: Path, refusal: Callable[[str], Exception]) -> Iterator[None]:
    """Holds a lock file, in which the process's number stands, while the folder around it is written.

    The kernel lets go of it when the process ends, however that happens. Raises `refusal(number)` of the process that
    holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise refusal(file.read().strip() or "?") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextmanager
def one_writer(partial: Path, *, is_folder: bool, refusal: Exception) -> Iterator[None]:
    """Makes `partial`, a file or folder that gets its final name once it is whole, and holds it until then.

    The lock is the kernel's, on what is written itself, so that a kill leaves none behind. A file system without such
    locks holds nothing. Raises `refusal` where another process holds it.
    """
    descriptor = _held(partial, is_folder, refusal)
    try:
        yield
    finally:
        os.close(descriptor)


def _held(partial: Path, is_folder: bool, refusal: Exception) -> int:
    while True:
        partial.parent.mkdir(parents=True, exist_ok=True)
        if is_folder:
            partial.mkdir(exist_ok=True)
        else:
            partial.touch()
        try:
            descriptor = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:  # renamed just now, by whom it belonged to
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise refusal from None
        except OSError:  # the file system has no locks
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), partial.stat()):
                return descriptor
        os.close(descriptor)  # it was renamed or removed between the two


def being_written(final: Path) -> DataError:
    return DataError(f"{visible(str(final))} is being written by another process; wait for it or name another")
