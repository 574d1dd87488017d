"""One process at a time in a folder, and in what has another name until it is whole."""

import contextlib
import errno
import fcntl
import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arlow_vl.errors import DataError
from arlow_vl.printing import print_line, visible

# NFS gives a lock for one process alone only on what is open for writing: EBADF.
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF)


def take_lock(file: Any, *, is_shared: bool = False, waits: bool = False) -> bool:
    """Locks an open file, or a descriptor, until it is closed; False where the file system has no locks.

    Raises:
        BlockingIOError: another process holds it. With `waits` that one is waited for.
    """
    how = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, how if waits else how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        return False
    return True


@functools.cache  # once of each place
def tell_unlocked(place: Path) -> None:
    """For who goes on without the lock where a second writer would do damage."""
    print_line(
        f"warning: {place} is on a file system without locks; see to it that no other process writes there",
        file=sys.stderr,
    )


@contextmanager
def one_process(path: Path, refusal: Callable[[str], Exception]) -> Iterator[None]:
    """Holds a lock file, in which the process's number stands, while the folder around it is written.

    The kernel lets go of it when the process ends, however that happens. A file system without locks holds nothing,
    which is told. Raises `refusal(number)` of the process that holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            if not take_lock(file):
                tell_unlocked(path.parent)
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

    The lock is the kernel's, on what is written itself, so that a kill leaves none behind. A file system without
    locks holds nothing, nor does NFS hold a folder. Raises `refusal` where another process holds it.
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
            descriptor = os.open(partial, os.O_RDONLY if is_folder else os.O_RDWR)
        except FileNotFoundError:  # renamed just now, by whom it belonged to
            continue
        try:
            if not take_lock(descriptor):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise refusal from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), partial.stat()):
                return descriptor
        os.close(descriptor)  # it was renamed or removed between the two


def being_written(final: Path) -> DataError:
    return DataError(f"{visible(str(final))} is being written by another process; wait for it or name another")
