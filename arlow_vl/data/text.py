"""Readers of text: captions, JSON objects, files of JSON lines with a document each, whole UTF-8 files."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from arlow_vl.errors import DataError

MAX_LINE_BYTES = 16 * 2**20
MAX_FILE_BYTES = 2**30
MAX_JSON_MEMORY = 128 * 2**20
VALUE_BYTES = 64  # of memory that a parsed JSON value takes beside its characters, roughly
LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # or half of a pair
JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # matches at every quote: linear time


class Unusable(ValueError):
    """Why a line, a text or a sample is skipped, as one stable snake_case word."""


def read_jsonl(path: str | Path, skipped: Counter[str], *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[str]:
    """The string under "text" of every line; bad lines are counted in `skipped` by reason, blank ones are no lines.

    A line over `max_line_bytes` is passed by without being held in memory.
    """
    with open_regular(path) as file:
        while line := file.readline(max_line_bytes + 1):
            if len(line) > max_line_bytes and not line.endswith(b"\n"):
                skipped["line_too_long"] += 1
                while (rest := file.readline(2**20)) and not rest.endswith(b"\n"):
                    pass
                continue
            if not line.strip():
                continue
            try:
                yield _document(line)
            except Unusable as fault:
                skipped[str(fault)] += 1


def read_text_file(path: str | Path, *, max_bytes: int = MAX_FILE_BYTES) -> str:
    """A whole file, strictly UTF-8, without a byte-order mark. Raises DataError that names the first bad byte."""
    with open_regular(path) as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise DataError(f"{path}: over {max_bytes:,} bytes; write JSON lines instead, which are read one by one")
    try:
        return raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        seen = f"0x{raw[error.start]:02x}"
        raise DataError(f"{path}: byte {error.start:,}: not UTF-8 ({seen}); save the file as UTF-8") from None


def open_regular(path: str | Path) -> BinaryIO:
    """Raises DataError for what is missing or no regular file, so that no pipe or device is ever waited for."""
    if not Path(path).exists():
        raise DataError(f"no such file: {path}; `arlow data fetch` gets the real data")
    if not Path(path).is_file():
        raise DataError(f"{path} is not a regular file; name a file")
    return open(path, "rb")


def clean_caption(raw: bytes | str) -> str:
    """The caption without a byte-order mark and surrounding white space. Special-token strings in it stay plain text.

    Raises:
        Unusable: it is not UTF-8, holds a NUL or is empty.
    """
    text = (_decode(raw) if isinstance(raw, bytes) else raw).removeprefix("\ufeff").strip()
    if "\0" in text:
        raise Unusable("nul_in_text")
    if not text:
        raise Unusable("empty_text")
    return text


def parse_object(raw: bytes) -> dict[str, Any]:
    """A JSON object. Raises Unusable for anything else, and for one that would take too much memory."""
    if json_memory(raw) > MAX_JSON_MEMORY:
        raise Unusable("bad_json")
    text = _decode(raw)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Unusable("bad_json") from None
    if not isinstance(value, dict):
        raise Unusable("bad_json")
    return value


def json_memory(raw: bytes) -> int:
    """Bytes that a JSON value takes once it is parsed, roughly. Commas and brackets inside its strings do not count."""
    bare = JSON_STRING.sub(b"", raw)
    values = bare.count(b",") + bare.count(b":") + bare.count(b"[") + 3 * bare.count(b"{")
    return len(raw) + VALUE_BYTES * values


def has_lone_surrogate(raw: bytes, value: Any) -> bool:
    """Whether the value parsed from `raw` holds half a surrogate pair, which no UTF-8 can write."""
    if not LONE_SURROGATE.search(raw):
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return True
    return False


def _decode(raw: bytes) -> str:
    try:
        return raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise Unusable("not_utf8") from None


def _document(line: bytes) -> str:
    text = parse_object(line).get("text")
    if not isinstance(text, str):
        raise Unusable("missing_text")
    if "\0" in text:
        raise Unusable("nul_in_text")
    if has_lone_surrogate(line, text):
        raise Unusable("lone_surrogate")
    if not text.strip():
        raise Unusable("empty_text")
    return text
