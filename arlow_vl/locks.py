"""Locks that let one process at a time write into a folder, or write a file that is renamed when it is complete."""

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

# EBADF: NFS gives an exclusive lock only on a file that is open for writing.
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF)


def take_lock(file: Any, *, is_shared: bool = False, waits: bool = False) -> bool:
    """Locks an open file, or a descriptor, until it is closed; returns False where the file system has no locks.

    Raises:
        BlockingIOError: another process holds the lock, and `waits` is False.
    """
    how = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, how if waits else how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        return False
    return True


@functools.cache  # once per place
def warn_unlocked(place: Path) -> None:
    """Warns that no lock keeps a second writer, which would do damage, out of a place."""
    print_line(
        f"warning: {place} is on a file system without locks; make sure that no other process writes there",
        file=sys.stderr,
    )


@contextmanager
def one_process(path: Path, refusal: Callable[[str], Exception]) -> Iterator[None]:
    """Holds a lock file with the id of this process in it while the folder around it is written.

    The kernel releases the lock when the process ends, however that happens. Where the file system has no locks, a
    warning is printed and nothing is held. Raises `refusal(id)` if another process, of this id, holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            if not take_lock(file):
                warn_unlocked(path.parent)
        except BlockingIOError:
            file.seek(0)
            raise refusal(file.read().strip() or "?") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextmanager
def one_writer(partial: Path, *, is_folder: bool, refusal: Exception) -> Iterator[None]:
    """Creates `partial`, a file or folder that is renamed when it is complete, and holds a lock on it until then.

    The lock is the kernel's and on `partial` itself, so a killed process leaves none behind. Nothing is held on a file
    system without locks, nor a folder on NFS. Raises `refusal` if another process holds the lock.
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
        except FileNotFoundError:  # its writer has just renamed it
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
        os.close(descriptor)  # it was renamed or removed between opening and locking


def being_written(final: Path) -> DataError:
    return DataError(f"{visible(str(final))} is being written by another process; wait for it or name another")
