"""Lines for a terminal: names that come from outside are shown, and none of their characters acts."""

import sys
import unicodedata
from typing import TextIO

# Controls (ESC, newline, carriage return), formats (text direction, zero width), halves of characters (names that are
# no UTF-8), and the separators of lines and paragraphs.
ACTING = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def visible(text: str) -> str:
    r"""The text with each character that would act on a terminal as its escape: `\x1b`, `\n`, `\u202e`."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in ACTING else character
        for character in text
    )


def print_line(text: object, *, file: TextIO | None = None) -> None:
    """Prints one line, its control characters escaped, at once."""
    print(visible(str(text)), file=file or sys.stdout, flush=True)
