"""Bounded cache of remote files on this machine: whole files only; the least recently used leave first.

Any number of processes share it. A file that is being read holds a shared lock on itself; one that is to leave is
locked exclusively first, so that no file leaves while it is read, and a process that is killed holds none. On a file
system without locks nothing leaves, as no process knows what is being read, and two may fetch the same file.

    <cache>/host-9f86d081884c/train-000017.tar           the file
                              .train-000017.tar.sha256   its bytes and SHA-256 as it came
                              .train-000017.tar.lock     held by the process that fetches it
"""

import contextlib
import errno
import glob
import os
import time
import uuid
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from arlow_vl.data.heartbeat import beat
from arlow_vl.errors import DataError, ResourceError
from arlow_vl.locks import take_lock
from arlow_vl.printing import visible
from vision.whole_files import put_in_place, remove_remains, write_whole

FOLDER_VARIABLE, SIZE_VARIABLE = "ARLOW_DATA_CACHE", "ARLOW_DATA_CACHE_GIB"
DEFAULT_GIB = 64.0
GIB = 2**30
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
POLL_SECONDS = 0.1


class Held:
    """A file of the cache that stays in it until this object is closed or garbage-collected."""

    address = ""
    """For messages."""
    is_damaged = False
    """True: it leaves the cache once it is closed. It may be the page of a login, or half of the file, and its server
    may give other bytes next time."""
    _descriptor = -1

    def __init__(self, path: Path, descriptor: int, sha256: str) -> None:
        self.path, self.sha256, self._descriptor = path, sha256, descriptor

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if self.is_damaged:
                _left(self.path)

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    __del__ = close


def with_addresses(message: str, held: Iterable[Held]) -> str:
    """Returns the message with addresses for paths in the cache."""
    for one in sorted(held, key=lambda one: -len(one.path.name)):  # a.jsonl.gz before a.jsonl
        message = message.replace(visible(str(one.path)), one.address)
    return message


def mark_damaged(message: str, held: Iterable[Held]) -> None:
    """Marks the file that a reader's message is about, so that it leaves the cache.

    Such a message is the file's path, or begins with it: `/cache/host-9f86/a.jsonl: is UTF-16 text; save it as UTF-8`.
    """
    for one in held:
        one.is_damaged |= f"{message}: ".startswith(f"{visible(str(one.path))}: ")


@contextlib.contextmanager
def naming_addresses(held: Collection[Held]) -> Iterator[None]:
    """Names addresses instead of cached files in a DataError, and closes the file that it is about."""
    try:
        yield
    except DataError as error:
        mark_damaged(str(error), held)
        for one in held:
            if one.is_damaged:
                one.close()
        raise type(error)(with_addresses(str(error), held)) from None


class _Entry(NamedTuple):
    used_at: int
    size: int
    path: Path


@dataclass(frozen=True)
class DataCache:
    """Cache folder of remote files, and its limit."""

    folder: Path
    most_bytes: int
    """Limit on the bytes of all files; files that are being fetched come on top."""

    @classmethod
    def of_environment(cls) -> "DataCache":
        """Makes the cache in ARLOW_DATA_CACHE (else XDG_CACHE_HOME/arlow/data) of ARLOW_DATA_CACHE_GIB GiB (else 64).

        Raises:
            DataError: the size is no number over 0.
        """
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arlow" / "data"
        size = os.environ.get(SIZE_VARIABLE, DEFAULT_GIB)
        try:
            most_bytes = int(float(size) * GIB)
        except (ValueError, OverflowError):
            most_bytes = 0
        if most_bytes <= 0:
            raise DataError(f"{SIZE_VARIABLE} is {visible(repr(size))}; set it to a number of GiB, as 200")
        return cls(Path(os.environ.get(FOLDER_VARIABLE) or home).absolute(), most_bytes)

    def take(self, path: Path, sha256: str | None = None) -> Held | None:
        """Returns the file if it is there whole, is not about to leave and has this SHA-256, if any; else None."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        held = Held(path, descriptor, "")
        try:
            take_lock(descriptor, is_shared=True)
            size, held.sha256 = _stamp_of(path).read_text().split()
            state = os.fstat(descriptor)
            is_whole = state.st_size == int(size) and os.path.samestat(state, path.stat())
            if is_whole and sha256 in (None, held.sha256):
                # Sets the time of last use, which few systems keep, and leaves that of the last change. Only the
                # owner can set it, and nobody where the file system is read-only.
                with contextlib.suppress(OSError):
                    os.utime(path, ns=(time.time_ns(), state.st_mtime_ns))
                return held
        except (OSError, ValueError):  # it is on its way out, or being replaced
            pass
        held.close()
        return None

    @contextlib.contextmanager
    def fetching(self, path: Path) -> Iterator[None]:
        """Waits until no other process fetches this file. Raises ResourceError where the cache cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_remains(path.parent, path.name)
            lock = open(path.with_name(f".{path.name}.lock"), "wb")  # noqa: SIM115
        except OSError as error:
            raise ResourceError(
                f"{visible(str(self.folder))}: remote data cannot be kept there ({error.strerror}); "
                f"set {FOLDER_VARIABLE} to a folder that can be written"
            ) from None
        with lock:
            _wait_for(lock, path)
            yield

    def put(self, partial: Path, path: Path, sha256: str, wait_seconds: float) -> Held:
        """Moves a fetched file into its place, once others have left to make room.

        Raises:
            ResourceError: all the others are still being read after so many seconds, or the disk is full.
        """
        size, began = partial.stat().st_size, time.monotonic()
        while True:
            with _locked(self.folder / ".lock") as has_locks, full_disk(self.folder):
                if self._make_room(size):
                    held = Held(path, os.open(partial, os.O_RDONLY), sha256)
                    take_lock(held._descriptor, is_shared=True, waits=True)
                    path.unlink(missing_ok=True)  # first: no reader may see old bytes under the new SHA-256
                    write_whole(_stamp_of(path), f"{size} {sha256}\n")
                    put_in_place(partial, path)
                    return held
            if not has_locks or time.monotonic() - began >= wait_seconds:
                reason = "all that is there is" if has_locks else "a file system without locks does not tell what is"
                raise ResourceError(
                    f"{visible(str(self.folder))}: no room for the {size:,} bytes of {visible(path.name)}, as {reason} "
                    f"being read; its limit is {self.most_bytes / GIB:.3g} GiB, raise {SIZE_VARIABLE}"
                    + ("" if has_locks else f" or set {FOLDER_VARIABLE} to a folder on a disk of this machine")
                )
            time.sleep(POLL_SECONDS)

    def _make_room(self, size: int) -> bool:
        """Removes the least recently used files until `size` more bytes fit; returns True if they do."""
        entries = sorted(self._entries())
        total = sum(entry.size for entry in entries) + size
        for entry in entries:
            if total <= self.most_bytes:
                break
            if _left(entry.path):
                total -= entry.size
        return total <= self.most_bytes

    def _entries(self) -> Iterator[_Entry]:
        for stamp in self.folder.glob("*/.*.sha256"):
            path = stamp.with_name(stamp.name.removeprefix(".").removesuffix(".sha256"))
            with contextlib.suppress(OSError):  # it has left
                state = path.stat()
                yield _Entry(state.st_atime_ns, state.st_size, path)


def _left(path: Path) -> bool:
    """Removes a file that no process reads; returns False if one does or may, or where it cannot be removed."""
    try:
        descriptor = _opened(path)
    except OSError:
        return True
    try:
        if not take_lock(descriptor):
            return False
        path.unlink(missing_ok=True)
        _stamp_of(path).unlink(missing_ok=True)
    except OSError as error:
        if not isinstance(error, (BlockingIOError, PermissionError)) and error.errno != errno.EROFS:
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def _opened(path: Path) -> int:
    """Opens a file for writing, as NFS grants exclusive locks on no other, though nothing is written; a file of another
    user for reading."""
    try:
        return os.open(path, os.O_RDWR)
    except PermissionError:
        return os.open(path, os.O_RDONLY)


def _wait_for(lock: BinaryIO, path: Path) -> None:
    """Takes the lock of a file once no other process fetches it; beats while the file of that process grows."""
    seen = -1
    while True:
        with contextlib.suppress(BlockingIOError):
            take_lock(lock)
            return
        if (arrived := _arrived(path)) != seen:
            seen = arrived
            beat()
        time.sleep(POLL_SECONDS)


def _arrived(path: Path) -> int:
    """Counts the bytes of the file that other processes have fetched so far."""
    size = 0
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError):  # it is whole
            size += partial.stat().st_size
    return size


def _stamp_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Holds a lock; yields False where the file system has no locks."""
    with open(path, "wb") as lock:
        yield take_lock(lock, waits=True)


@contextlib.contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` for bytes that arrive; a file left there afterwards is removed."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
    finally:
        with contextlib.suppress(OSError):  # what ended the fetching is what is told
            partial.unlink()


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, ResourceError) or error.errno not in FULL:
            raise
        raise ResourceError(
            f"{visible(str(folder))}: the disk that remote data are kept on is full ({error.strerror}); make room, "
            f"or set {FOLDER_VARIABLE} to a folder with room"
        ) from None
