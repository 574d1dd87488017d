"""Fetching of one file from an address: bounded in time and bytes, retried while that can help."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec
from fsspec.asyn import get_loop, sync
from fsspec.callbacks import Callback

from arlow_vl.data.heartbeat import BEAT
from arlow_vl.errors import DataError, ResourceError
from arlow_vl.printing import visible

LONGEST_PAUSE = 10.0
TRIES_OF_OTHER_BYTES = 3
"""Tries after which the file is taken to differ, rather than the transfer to be broken; shards are large."""
TRANSIENT = (408, 425, 429)
"""HTTP statuses 4xx that another try may change."""
PACKED = (".gz", ".tgz", ".zst", ".br")
"""Endings of files that are compressed themselves: a server's Content-Encoding does not apply to them."""
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Time limits of fetching, in seconds."""

    stall_seconds: float = 20.0
    """Time without a byte after which a try ends."""
    try_seconds: float = 3600.0
    """Time after which a try ends in any case."""
    retry_seconds: float = 60.0
    """Time since the first try within which another one may begin."""
    first_pause: float = 0.5
    """Pause before the second try; each further pause is twice as long, up to 10."""


class OtherBytes(Exception):
    """The bytes that came are not those that were expected."""


class MissingFile(DataError):
    """The server has no such file, or does not show it."""


class _Stalled(Exception):
    pass


def without_secrets(address: str) -> str:
    """Returns the address for messages, without password, query and fragment, which may hold secrets."""
    shown = address.partition("#")[0]
    if "://" in shown:
        scheme, _, rest = shown.partition("://")
        host, slash, path = rest.partition("?")[0].partition("/")
        shown = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return visible(shown)


def with_tries(address: str, once: Callable[[], Result], patience: Patience) -> Result:
    """Returns the result of `once`, which is tried again while that can help.

    Raises:
        DataError: no try succeeded; the error names the address, the reason, the tries and the seconds.
        MissingFile: the server says that there is no such file.
    """
    began, tries, pause = time.monotonic(), 0, patience.first_pause
    while True:
        tries += 1
        try:
            return once()
        except (DataError, ResourceError):
            raise
        except Exception as error:  # each file system has exceptions of its own
            reason, kind = _reason(error, address), _kind(error)
            is_final = _is_final(error) or (isinstance(error, OtherBytes) and tries == TRIES_OF_OTHER_BYTES)
        seconds = time.monotonic() - began
        if is_final or seconds + pause > patience.retry_seconds:
            count = f"{tries} {'try' if tries == 1 else 'tries'} in {seconds:.1f} s"
            raise kind(f"{without_secrets(address)}: {reason} ({count}); {_advice(kind, reason)}")
        time.sleep(pause * random.uniform(0.5, 1.0))  # not all processes at once
        pause = min(2 * pause, LONGEST_PAUSE)


def fetch(address: str, partial: Path, *, most_bytes: int, patience: Patience) -> None:
    """Writes the bytes at an address to a path, in one try.

    Raises:
        ResourceError: they are more than `most_bytes`, or the disk is full. Else whatever the file system raises.
    """
    files, path = _file_system(address)
    arrivals = _Arrivals(address, most_bytes)
    _bounded(files, "get_file", (path, str(partial)), {"callback": arrivals}, arrivals, patience)
    if partial.is_dir():  # which file systems make where a folder lies
        partial.rmdir()
        raise DataError(f"{without_secrets(address)}: is a folder; name a file in it, or write a wildcard as *.tar")


def glob_of(address: str, patience: Patience) -> list[str]:
    """Returns the addresses of the files that match, in sorted order."""
    files, path = _file_system(address)
    found = _bounded(files, "glob", (path,), {"detail": True}, _Arrivals(address, 0), patience)
    return sorted(files.unstrip_protocol(match) for match, entry in found.items() if entry["type"] != "directory")


class _Arrivals(Callback):
    """Counts bytes as they arrive; ends a transfer that is too large or was given up."""

    def __init__(self, address: str, most_bytes: int) -> None:
        super().__init__()
        self.address, self.most_bytes = address, most_bytes
        self.bytes, self.last = 0, time.monotonic()
        self.beat = BEAT.get()  # of the thread that asks; bytes arrive in another one
        self.is_over = False

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        if self.is_over:
            raise _Stalled("given up")
        self.bytes += inc
        if inc:
            self.last = time.monotonic()
            self.beat()
        if self.bytes > self.most_bytes:
            raise ResourceError(
                f"{without_secrets(self.address)}: is over {self.most_bytes:,} bytes, the limit; "
                "ARLOW_DATA_CACHE_GIB sets it for shards and annotations"
            )


def _bounded(
    files: Any, what: str, given: tuple, named: dict[str, Any], arrivals: _Arrivals, patience: Patience
) -> Any:
    """Calls a method of a file system within the time limits; one without an asynchronous form runs in a thread."""
    if files.async_impl:
        return sync(files.loop, _watched, getattr(files, f"_{what}")(*given, **named), arrivals, patience)
    work = asyncio.to_thread(getattr(files, what), *given, **named)
    return sync(get_loop(), _watched, work, arrivals, patience)


async def _watched(work: Coroutine[Any, Any, Any], arrivals: _Arrivals, patience: Patience) -> Any:
    """Awaits the result; work that stalls is cancelled, and its connection closed with it."""
    began = arrivals.last = time.monotonic()
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            now = time.monotonic()
            if now - arrivals.last >= patience.stall_seconds:
                raise _Stalled(f"sent nothing for {patience.stall_seconds:g} s")
            if now - began >= patience.try_seconds:
                raise _Stalled(f"was not ready after {patience.try_seconds:g} s")
            left = min(arrivals.last + patience.stall_seconds, began + patience.try_seconds) - now
            await asyncio.wait({task}, timeout=left)
        return task.result()
    finally:
        arrivals.is_over = True
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=1)


def _file_system(address: str) -> tuple[Any, str]:
    """Returns the file system of an address, and the path in it.

    Raises:
        DataError: it needs a package that is not installed.
    """
    scheme = urlsplit(address).scheme.lower()
    try:
        kind = fsspec.get_filesystem_class(scheme)
        options = kind._get_kwargs_from_urls(address) | (_http_options(address) if scheme in ("http", "https") else {})
        return kind(**options), kind._strip_protocol(address)
    except ImportError as error:
        raise DataError(
            f"{without_secrets(address)}: cannot be read ({visible(str(error))}); install what it names"
        ) from None


def _http_options(address: str) -> dict[str, Any]:
    """Takes the proxy of the environment, and lifts aiohttp's limit of 300 s a file: times are bounded here.

    A compressed file is never unpacked on the way, as some servers ask for by calling a .gz encoded.
    """
    import aiohttp

    is_packed = urlsplit(address).path.lower().endswith(PACKED)
    client = {"timeout": aiohttp.ClientTimeout(total=None), "trust_env": True, "auto_decompress": not is_packed}
    return {"client_kwargs": {**client, "headers": {"Accept-Encoding": "identity"}}}


def _kind(error: Exception) -> type[DataError]:
    status = getattr(error, "status", None)
    is_missing = isinstance(error, FileNotFoundError | PermissionError) or status in (401, 403, 404, 410)
    return MissingFile if is_missing else DataError


def _is_final(error: Exception) -> bool:
    status = getattr(error, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in TRANSIENT
    return refused or type(error).__name__ == "TooManyRedirects" or _kind(error) is MissingFile


def _reason(error: Exception, address: str) -> str:
    status, name = getattr(error, "status", None), type(error).__name__
    if isinstance(error, OtherBytes | _Stalled):
        return str(error)
    if name == "TooManyRedirects":
        return "redirects in a circle"
    if isinstance(status, int):
        return visible(f"answered {status} {getattr(error, 'message', '')}".rstrip())
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if name == "ClientPayloadError":
        return "broke off in the middle"
    if name == "ServerDisconnectedError":
        return "closed the connection without an answer"
    text = str(error).partition("\n")[0].replace(address, without_secrets(address))[:200]
    return visible(f"failed ({name}{': ' if text else ''}{text})")


def _advice(kind: type[DataError], reason: str) -> str:
    if kind is MissingFile:
        return "see whether the address is right and you may read it"
    if "its index" in reason:
        return "put the old bytes back, or remove its index under the cache's arlow/index to take the new ones"
    return "see whether address and server are right, and run again; what has been fetched is kept"
