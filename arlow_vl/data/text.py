"""Readers of text: captions, JSON objects, files of JSON lines with a document each."""

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

from arlow_vl.data.bad_share import format_reasons, refuse_bad_share
from arlow_vl.errors import DataError
from arlow_vl.printing import visible
from vision.near_names import did_you_mean_file

MAX_LINE_BYTES = 16 * 2**20
MAX_FILE_BYTES = 2**30
MAX_JSON_MEMORY = 128 * 2**20
VALUE_BYTES = 64  # memory that a parsed JSON value takes beside its characters, roughly
KEYS_SHOWN = 5
UTF16 = (b"\xff\xfe", b"\xfe\xff")
"""Byte-order marks, with which no UTF-8 begins."""
LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # or half of a pair
JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # matches at every quote: linear time


class Unusable(ValueError):
    """Reason why a line, text or sample is skipped, as one stable snake_case word; `detail` continues an example.

    `image_files` were looked for and cannot be used as they are: once repaired, they make the sample usable.
    """

    def __init__(self, reason: str, detail: str = "", image_files: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.detail = detail
        self.image_files = tuple(image_files)


@dataclass
class LineTally:
    """Counts of the lines of a text file that were used and, by reason, skipped; blank lines do not count."""

    used: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    """First line that each reason hit, as `line 3`."""
    unit: str = "line"
    """Unit of the file: line, row or document."""

    def skip(self, number: int, fault: Unusable, count: int = 1) -> None:
        """Counts a line, or `count` of them from line `number` on."""
        self.skipped[str(fault)] += count
        self.examples.setdefault(str(fault), f"{self.unit} {number:,}{fault.detail}")

    def report(self, path: str | Path, max_bad_fraction: float) -> None:
        """Reports on standard error which lines are skipped. Raises DataError if they are too large a share."""
        if not self.skipped:
            return
        where = visible(str(path))
        refuse_bad_share(f"{self.unit}s", self.used, self.skipped, self.examples, max_bad_fraction, where=f"{where}: ")
        counts = f"{self.skipped.total():,} of {self.skipped.total() + self.used:,} {self.unit}s are skipped"
        print(f"{where}: {counts}: {format_reasons(self.skipped, self.examples)}", file=sys.stderr)


def read_jsonl(path: str | Path, lines: LineTally, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[str]:
    """Yields the string under "text" of every line. `lines` counts what is skipped; its `report` limits it.

    A line over `max_line_bytes` is skipped without being held in memory.
    """
    with open_regular(path) as file:
        yield from documents_of_lines(file, lines, max_line_bytes=max_line_bytes)


def documents_of_lines(
    file: BufferedReader, lines: LineTally, *, end: float = math.inf, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[str]:
    """Yields the documents of the lines that begin at the file's position or later, but before byte `end`."""
    number = 0
    while (end == math.inf or file.tell() < end) and (line := file.readline(max_line_bytes + 1)):
        number += 1
        if len(line) > max_line_bytes and not line.endswith(b"\n"):
            lines.skip(number, Unusable("line_too_long"))
            skip_line(file)
            continue
        if not line.strip():
            continue
        try:
            document = _document(line)
        except Unusable as fault:
            lines.skip(number, fault)
            continue
        lines.used += 1
        yield document


def skip_line(file: BufferedReader) -> None:
    """Reads to the end of a line, however long, without holding it in memory."""
    while (rest := file.readline(2**20)) and not rest.endswith(b"\n"):
        pass


def open_regular(path: str | Path) -> BufferedReader:
    """Opens a regular file. Raises DataError for anything else, so that no pipe or device is ever waited for."""
    if not Path(path).exists():
        advice = did_you_mean_file(path, "`arlow data fetch` gets the real data")
        raise DataError(f"no such file or folder: {visible(str(path))}; {visible(advice)}")
    if not Path(path).is_file():
        raise DataError(f"{path} is not a regular file; name a file")
    return open(path, "rb")


def refuse_utf16(path: str | Path, head: bytes) -> None:
    """Raises DataError for a file that begins as UTF-16 does: that is a setting of the program that wrote it, and one
    sentence is better than a reason for each of its lines."""
    if head[:2] in UTF16:
        raise DataError(f"{visible(str(path))}: is UTF-16 text; save it as UTF-8")


def refuse_equal_columns(path: str | Path, columns: Sequence[str]) -> None:
    """Raises DataError where two columns have one name that says something: a reader would use one of them."""
    if twice := [name for name, count in Counter(columns).items() if name and count > 1]:
        raise DataError(f"{visible(str(path))}: two columns are called {visible(repr(twice[0]))}; rename or remove one")


def clean_caption(raw: bytes | str) -> str:
    """Returns the caption without byte-order mark and surrounding white space. Special-token strings stay plain text.

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
    """Parses a JSON object. Raises Unusable for anything else, and for one that would take too much memory."""
    most = len(raw) * (1 + 3 * VALUE_BYTES)  # so that short lines, which is most of them, are not counted through
    if most > MAX_JSON_MEMORY and json_memory(raw) > MAX_JSON_MEMORY:
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
    """Estimates the bytes that a parsed JSON value takes. Commas and brackets inside its strings do not count."""
    bare = JSON_STRING.sub(b"", raw)
    values = bare.count(b",") + bare.count(b":") + bare.count(b"[") + 3 * bare.count(b"{")
    return len(raw) + VALUE_BYTES * values


def has_lone_surrogate(raw: bytes, value: Any) -> bool:
    """Returns True if the value parsed from `raw` holds half a surrogate pair, which UTF-8 cannot encode."""
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


def keys_of(value: dict[str, Any]) -> str:
    """Lists the keys of a JSON object that lacks the one looked for: `, which has the keys 'content', 'id'`."""
    if not value:
        return ", which has no keys"
    shown = ", ".join(repr(key[:30]) for key in list(value)[:KEYS_SHOWN])
    more = f" and {len(value) - KEYS_SHOWN:,} more" if len(value) > KEYS_SHOWN else ""
    return f", which has the key{'s' * (len(value) > 1)} {shown}{more}"


def _document(line: bytes) -> str:
    value = parse_object(line)
    text = value.get("text")
    if not isinstance(text, str):
        raise Unusable("missing_text", f"{keys_of(value)}: the document belongs under 'text' as a string")
    if has_lone_surrogate(line, text):
        raise Unusable("lone_surrogate")
    return check_document(text)


def decode_document(raw: bytes) -> str:
    """Decodes a document from UTF-8. Raises Unusable if it is not UTF-8, is empty or holds a NUL."""
    return check_document(_decode(raw))


def check_document(text: str) -> str:
    """Returns the text as it is. Raises Unusable if it is empty or holds a NUL."""
    if "\0" in text:
        raise Unusable("nul_in_text")
    if not text.strip():
        raise Unusable("empty_text")
    return text
