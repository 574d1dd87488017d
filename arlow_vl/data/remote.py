"""Files at addresses: fetched whole into a bounded cache on this machine, and read from there.

    https://host/shards/train-{000000..000099}.tar     a hundred files
    s3://bucket/shards/*.tar                           what the file system lists
    https://host/a.tar#sha256=9f86d0...                other bytes are refused; pip's syntax

Any file system that fsspec knows will do. A file that is in the cache is read without asking its server. Only addresses
that a person has named are opened, and what belongs to them: the index.json beside a tar, the answers beside questions.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

import fsspec

from arlow_vl.data.remote_cache import DataCache, Held, full_disk, partial_file
from arlow_vl.data.remote_fetch import MissingFile, OtherBytes, Patience, fetch, glob_of, with_tries, without_secrets
from arlow_vl.data.shard_faults import INDEX_NAME, MAX_INDEX_BYTES
from arlow_vl.errors import DataError
from vision.whole_files import put_in_place, sha256_of_file

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://|pipe:", re.IGNORECASE)
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
PIN = "#sha256="
MOST_LISTED = 100_000
NO_SERVERS = frozenset(
    "arrow_hdfs async_wrapper asynclocal asyncwrapper blockcache cached data dir file filecache generic git jlab "
    "jupyter libarchive local memory pyscript reference simplecache tar zip".split()
)
"""Protocols of fsspec that are another view of files of this machine, or of other file systems."""
PATIENCE = Patience()


class Expected(NamedTuple):
    """Size and SHA-256 that a file must have; None: not known."""

    size: int | None = None
    sha256: str | None = None
    said_by: str = ""


def is_address(path: str | Path) -> bool:
    """Returns True for something like `https://` or `pipe:`, valid or not, that is not the name of a file."""
    return isinstance(path, str) and ADDRESS.match(path) is not None


def path_of_file_address(address: str) -> str:
    """Returns the path of a file: address. Raises DataError for one of another machine."""
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost"):
        raise DataError(
            f"{without_secrets(address)}: a file on another machine is not opened; write file:///folder/file"
        )
    return unquote(parts.path)


def is_file_address(path: str | Path) -> bool:
    return isinstance(path, str) and path[:7].lower() == "file://"


def listed(address: str) -> list[str]:
    """Expands the range or wildcard of an address, in sorted order; a plain address stands for itself.

    Only for a wildcard is the file system asked.

    Raises:
        DataError: the scheme is not one that is read, no file is named, or nothing matches.
    """
    scheme = checked_scheme(address)
    if RANGE.search(address):
        addresses = list(ranges(address))
    elif needs_listing(address):
        if scheme.startswith("http"):
            raise DataError(
                f"{without_secrets(address)}: web servers give no list; write a range as train-{{000000..000099}}.tar"
            )
        addresses = with_tries(address, lambda: glob_of(address, PATIENCE), PATIENCE)
        if not addresses:
            raise DataError(
                f"{without_secrets(address)}: no file is there by this name; see whether the wildcard is right"
            )
    else:
        addresses = [address]
    for one in addresses:
        name_of(one)
    return addresses


def needs_listing(address: str) -> bool:
    """Returns True if a file system must be listed for an address: for a wildcard, never for a range."""
    wild = r"\*" if address[:4].lower() == "http" else r"[*?\[]"
    return not RANGE.search(address) and re.search(wild, address) is not None


def ranges(text: str) -> Iterator[str]:
    """Expands `a-{08..10}` to a-08, a-09, a-10 and combines several ranges; numbers are as wide as they are written.

    Raises:
        DataError: a range counts down, or it would be over 100,000 names.
    """
    if math.prod(int(last) - int(first) + 1 for first, last in RANGE.findall(text)) > MOST_LISTED:
        raise DataError(f"{without_secrets(text)}: stands for over {MOST_LISTED:,} files; write a shorter range")
    if not (found := RANGE.search(text)):
        yield text
        return
    first, last = found.groups()
    if int(first) > int(last):
        raise DataError(f"{without_secrets(text)}: the range {found[0]} counts down; write the smaller number first")
    width = max(len(first), len(last)) if first[0] == "0" else 0
    for number in range(int(first), int(last) + 1):
        yield from ranges(f"{text[: found.start()]}{number:0{width}d}{text[found.end() :]}")


def checked_scheme(address: str) -> str:
    """Returns the scheme in lower case. Raises DataError for one that is not fetched from."""
    found = ADDRESS.match(address)
    scheme = (found[1] or "pipe").lower() if found else ""
    if scheme == "pipe":
        raise DataError(
            f"{without_secrets(address)}: no command is run to read data; name a file, a folder or an address"
        )
    if scheme in NO_SERVERS or scheme not in {*fsspec.available_protocols(), *fsspec.registry}:
        raise DataError(
            f"{without_secrets(address)}: {scheme}:// is not read from; write https://, s3:// or a path, for example"
        )
    return scheme


def name_of(address: str) -> str:
    """Returns the name of the file at an address, decoded for web servers: `a%20b.tar` is `a b.tar`.

    Raises:
        DataError: it names no file.
    """
    parts = urlsplit(address)
    name = parts.path.rpartition("/")[2]
    if parts.scheme.lower().startswith("http"):
        with contextlib.suppress(UnicodeDecodeError):
            name = name if "/" in (there := unquote(name, errors="strict")) else there
    if not name or name.startswith(".") or re.search(r"[\\\0-\x1f]", name) or len(name.encode()) > 180:
        raise DataError(
            f"{without_secrets(address)}: names no file; write the address of one, or a range or wildcard for many"
        )
    return name


def beside(address: str, name: str) -> str:
    """The address of a file in the folder of another one."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(path=f"{parts.path.rpartition('/')[0]}/{name}", fragment=""))


def pinned(address: str, sha256: str) -> str:
    """Returns the address with a SHA-256 that the bytes must have."""
    return f"{unpinned(address)[0]}{PIN}{sha256}"


def unpinned(address: str) -> tuple[str, str | None]:
    plain, pin, sha256 = address.partition(PIN)
    if pin and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise DataError(
            f"{without_secrets(address)}: a SHA-256 has 64 digits of 0-9 and a-f; write it in full or leave it out"
        )
    return plain, sha256 or None


def hold(address: str, *, cache: DataCache | None = None, patience: Patience = PATIENCE) -> Held:
    """Returns a file in the cache, fetched if it is not there; it stays until it is closed.

    Of several processes one fetches, and the others wait for it.

    Raises:
        DataError: it cannot be fetched, or other bytes come than the address, or the index.json beside a tar, says.
        ResourceError: there is no room for it.
    """
    held = _held(address, cache or DataCache.of_environment(), patience)
    held.address = without_secrets(address)
    return held


def _held(address: str, cache: DataCache, patience: Patience) -> Held:
    address, sha256, name = _parsed(address)
    path = cache.folder / name
    if held := cache.take(path, sha256):
        return held
    with cache.fetching(path):
        if held := cache.take(path, sha256):
            return held
        expected = (
            Expected(sha256=sha256, said_by="its index or address")
            if sha256
            else _of_index_json(address, path, patience)
        )
        with partial_file(path) as partial:

            def once() -> str:
                with full_disk(cache.folder):
                    fetch(address, partial, most_bytes=cache.most_bytes, patience=patience)
                return _checked(partial, expected)

            sha256 = with_tries(address, once, patience)
            return cache.put(partial, path, sha256, patience.retry_seconds)


@functools.lru_cache(maxsize=4096)  # every image of a shard is asked for by the same address
def _parsed(address: str) -> tuple[str, str | None, str]:
    """Returns an address without its SHA-256, the SHA-256, and its path in a cache. Raises DataError as `hold` does."""
    checked_scheme(address)
    plain, sha256 = unpinned(address)
    return plain, sha256, f"{folder_name(plain)}/{name_of(plain)}"


def folder_name(address: str) -> str:
    """Names the cache folder for the folder of an address; files that lie together there do so here."""
    parts = urlsplit(address)
    remote = urlunsplit(parts._replace(path=parts.path.rpartition("/")[0], fragment=""))
    return f"{re.sub(r'[^A-Za-z0-9.-]', '_', parts.hostname or parts.scheme)[:60]}-{_digest(remote)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _checked(partial: Path, expected: Expected) -> str:
    """Returns the SHA-256 of a fetched file. Raises OtherBytes if it is not the file that was expected."""
    size, sha256 = partial.stat().st_size, sha256_of_file(partial)
    if expected.size not in (None, size):
        raise OtherBytes(f"sent {size:,} bytes where {expected.said_by} says {expected.size:,}")
    if expected.sha256 not in (None, sha256):
        raise OtherBytes(
            f"sent other bytes than {expected.said_by} says "
            f"(SHA-256 {sha256[:12]}... instead of {str(expected.sha256)[:12]}...)"
        )
    return sha256


def _of_index_json(address: str, path: Path, patience: Patience) -> Expected:
    """Returns what the index.json beside a tar says of it; it is cached too, where readers of shards look for it."""
    if not path.name.endswith(".tar"):
        return Expected()
    _refresh_index_json(beside(address, INDEX_NAME), path.with_name(INDEX_NAME), patience, os.getpid())
    try:
        entry = json.loads(path.with_name(INDEX_NAME).read_bytes()).get(path.name, {})
        size, sha256 = entry.get("bytes"), entry.get("sha256")
    except (OSError, ValueError, AttributeError, RecursionError):  # the reader of the shard says what is wrong with it
        return Expected()
    return Expected(
        size if isinstance(size, int) else None,
        sha256.lower() if isinstance(sha256, str) else None,
        f"the {INDEX_NAME} beside it",
    )


@functools.lru_cache(maxsize=1024)
def _refresh_index_json(address: str, path: Path, patience: Patience, process: int) -> None:
    """Fetches an index.json, once a process; servers that have or show none say so at once."""
    with partial_file(path) as partial:
        try:
            most = MAX_INDEX_BYTES
            with_tries(address, lambda: fetch(address, partial, most_bytes=most, patience=patience), patience)
        except MissingFile:
            path.unlink(missing_ok=True)
            return
        put_in_place(partial, path)
