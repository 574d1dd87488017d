"""JSON of annotation files: one large object or list, or a record on each line."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from arlow_vl.data.formats.tally import Tally
from arlow_vl.data.text import (
    LONE_SURROGATE,
    MAX_FILE_BYTES,
    MAX_LINE_BYTES,
    Unusable,
    has_lone_surrogate,
    open_regular,
    parse_object,
    refuse_utf16,
)
from arlow_vl.errors import DataError
from arlow_vl.printing import visible

LINE_SUFFIXES = (".jsonl", ".ndjson")
Record = tuple[str, dict[str, Any]]
"""Name of a record in messages, as `a.jsonl: line 3`, and its value."""


def load_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Reads a whole JSON file of at most 1 GiB; parsed it takes up to 10 times its size in memory until it is read.

    Args:
        object_hook: As of `json.loads`: returns what replaces each object.

    Raises:
        DataError: it is missing, too large, or no JSON in UTF-8.
    """
    with open_regular(path) as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise DataError(f"{visible(str(path))}: over {MAX_FILE_BYTES:,} bytes; write JSON lines, which are read singly")
    refuse_utf16(path, raw)
    try:
        value = json.loads(raw.decode("utf-8-sig"), object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{visible(str(path))}: no JSON in UTF-8 ({visible(str(error))}); write it again") from None
    return _without_lone_surrogates(value) if LONE_SURROGATE.search(raw) else value


def entries_under(path: Path, value: Any, key: str) -> list[Any]:
    """Returns the list under a key of an annotation file. Raises DataError if there is none."""
    entries = value.get(key) if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{visible(str(path))}: no list under {key!r}; name an annotation file that has one")
    return entries


def read_records(path: Path, called: str, tally: Tally) -> Iterator[Record]:
    """Yields the objects of a .jsonl, one a line, or of the list in a .json; counts other values as bad samples."""
    if path.suffix.lower() in LINE_SUFFIXES:
        yield from read_lines(path, called, tally)
        return
    entries = load_json(path)
    if not isinstance(entries, list):
        raise DataError(f"{visible(str(path))}: no list of records; write a list, or JSON lines in a .jsonl")
    for number, entry in enumerate(entries, start=1):
        name = f"{called}: record {number:,}"
        if isinstance(entry, dict):
            yield name, entry
        else:
            tally.leave_out(name, Unusable("record_not_an_object", f": {type(entry).__name__}"))


def read_lines(path: Path, called: str, tally: Tally) -> Iterator[Record]:
    """Yields the objects of a file with one a line, whatever its suffix; counts other lines as bad samples."""
    with open_regular(path) as file:
        refuse_utf16(path, file.peek(2))
        for number in itertools.count(1):
            line, name = file.readline(MAX_LINE_BYTES + 1), f"{called}: line {number:,}"
            if not line:
                return
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                tally.leave_out(name, Unusable("line_too_long", f": over {MAX_LINE_BYTES:,} bytes"))
                while (rest := file.readline(2**20)) and not rest.endswith(b"\n"):
                    pass
                continue
            if not line.strip():
                continue
            try:
                record = parse_object(line)
                if has_lone_surrogate(line, record):
                    raise Unusable("lone_surrogate")
            except Unusable as fault:
                tally.leave_out(name, fault)
                continue
            yield name, record


def id_of(entry: dict[str, Any], key: str) -> str:
    """Returns an id, which is a string or a whole number. Raises Unusable, as `missing_image_id`, for anything else."""
    value = entry.get(key)
    what = {"imageId": "image_id"}.get(key, key)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Unusable(f"missing_{what}" if value is None else f"bad_{what}", f": {type(value).__name__}")
    text = str(value)
    if not text or len(text) > 1000 or "\0" in text:
        raise Unusable(f"bad_{what}")
    return text


def objects_by_id(
    entries: Iterable[Any], key: str, what: str, leave_out: Callable[[str, Unusable], None]
) -> dict[str, dict[str, Any]]:
    """Returns the objects of a list by id, the first of each; calls `leave_out` for all others, named `{what} 3`."""
    found: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries, start=1):
        try:
            if not isinstance(entry, dict):
                raise Unusable("entry_not_an_object", f": {type(entry).__name__}")
            name = id_of(entry, key)
            if name in found:
                raise Unusable("duplicate_id", f": {key} {name[:40]} comes twice")
            found[name] = entry
        except Unusable as fault:
            leave_out(f"{what} {number:,}", fault)
    return found


def _without_lone_surrogates(value: Any) -> Any:
    """Replaces strings that UTF-8 cannot encode by None, so that they count as missing where they matter."""
    if isinstance(value, dict):
        return {str(_without_lone_surrogates(k)): _without_lone_surrogates(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_lone_surrogates(entry) for entry in value]
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return None
    return value
