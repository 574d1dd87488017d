"""JSON for files that people read: only characters that break lines or encodings are escaped."""

import json
import re
from typing import Any

ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters and line separators, at which some readers break a line, and lone surrogates, which UTF-8 cannot
encode and which stand for bytes of file names that are not UTF-8. All are in the BMP, so each takes one escape."""


def json_text(value: Any, **how: Any) -> str:
    """Returns JSON that UTF-8 can encode and `json.loads` reads back; `how` is passed to `json.dumps`."""
    text = json.dumps(value, ensure_ascii=False, **how)
    return text if text.isascii() and "\x7f" not in text else ESCAPED.sub(lambda one: f"\\u{ord(one[0]):04x}", text)
