"""Damage to a shard as a whole, and its differences from the index.json beside it."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arlow_vl.data.remote_cache import Held, mark_damaged, with_addresses
from arlow_vl.data.text import Unusable, parse_object
from vision.whole_files import sha256_of_file, write_whole

INDEX_NAME = "index.json"
MAX_INDEX_BYTES = 16 * 2**20


@dataclass(frozen=True)
class ShardFault:
    """Damage to a shard as a whole; the samples before it are used."""

    shard: str
    reason: str
    missing: int = 0
    """Samples that index.json counts and that were not found in the shard, neither usable nor bad."""


def shard_fault(path: Path, damage: list[str], usable: int, bad: int) -> ShardFault | None:
    """Returns the damage and the differences from the index.json beside a shard as one fault; None: there is none."""
    differences, missing = _differences_from_index(path, usable, usable + bad)
    reasons = [*damage, *differences]
    return ShardFault(str(path), "; ".join(reasons), missing) if reasons else None


def _index_entry(path: Path) -> dict[str, Any]:
    """Returns the entry of a shard in the index.json beside it, if any. Raises ValueError if it is unreadable."""
    index = path.with_name(INDEX_NAME)
    if not index.is_file():
        return {}
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise Unusable("too_large")
        entry = parse_object(index.read_bytes()).get(path.name, {})
    except Unusable as fault:
        raise ValueError(f"the {INDEX_NAME} beside it is unreadable ({fault})") from None
    types = {"samples": int, "bytes": int, "sha256": str}
    if not isinstance(entry, dict) or any(not isinstance(entry.get(key, kind()), kind) for key, kind in types.items()):
        raise ValueError(f"the {INDEX_NAME} beside it has no readable entry for it")
    return entry


def _differences_from_index(path: Path, usable: int, seen: int) -> tuple[list[str], int]:
    """Returns the differences in words, and the number of samples that only the index.json counts."""
    try:
        entry = _index_entry(path)
    except ValueError as error:
        return [str(error)], 0
    found, differences = {"samples": usable, "bytes": path.stat().st_size}, []
    for what, count in found.items():
        if entry.get(what, count) != count:
            differences.append(f"{INDEX_NAME} says {entry[what]:,} {what}, read {count:,}")
    return differences, max(0, entry.get("samples", seen) - seen)


def read_entries(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Returns the entries that a folder's index.json has for these shards; none if it is missing or unreadable."""
    try:
        found = json.loads((folder / INDEX_NAME).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return {name: found[name] for name in names if isinstance(found, dict) and name in found}


def write_entries(folder: Path, entries: Mapping[str, Any], **facts: str) -> None:
    """Writes index.json, which has a few facts and an entry a shard. `is_whole` knows a shard by its entry."""
    write_whole(folder / INDEX_NAME, json.dumps({**facts, **dict(sorted(entries.items()))}, indent=1) + "\n")


def is_whole(path: Path) -> bool:
    """Returns True if a shard has the bytes that the index.json beside it says, False if that says nothing of it."""
    return path.is_file() and recorded_sha256(path) == sha256_of_file(path)


def recorded_sha256(path: Path) -> str | None:
    """Returns the SHA-256 that the index.json beside a shard says; None: it says none, or cannot be read."""
    try:
        return _index_entry(path).get("sha256")
    except ValueError:
        return None  # shard_fault names it


def other_sha256(path: Path) -> bool:
    """Returns True if a shard does not have the SHA-256 of the index.json beside it; without one it is not read."""
    expected = recorded_sha256(path)
    return expected is not None and sha256_of_file(path) != expected


def faults_at_addresses(faults: Iterable[ShardFault], held: Collection[Held]) -> list[ShardFault]:
    """Returns the faults with addresses for cached files, which are marked as damaged."""
    at_addresses = []
    for fault in faults:
        mark_damaged(fault.shard, held)
        at_addresses.append(replace(fault, shard=with_addresses(fault.shard, held)))
    return at_addresses
