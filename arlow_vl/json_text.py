"""JSON in files that people read: letters as they are, and escapes for the few that break lines or encodings."""

import json
import re
from typing import Any

ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Controls and separators of lines, at which some readers break a line, and halves of characters, which UTF-8 cannot
hold: names of files have them where their bytes are no UTF-8. All of them lie in the BMP, so an escape is one unit."""


def json_text(value: Any, **how: Any) -> str:
    """As `json.dumps`, which `how` goes on to; UTF-8 can hold it, and reading it gives the value back."""
    text = json.dumps(value, ensure_ascii=False, **how)
    return text if text.isascii() and "\x7f" not in text else ESCAPED.sub(lambda one: f"\\u{ord(one[0]):04x}", text)
