"""Lines for a terminal: names that come from outside are shown, and none of their characters acts."""

import sys
from typing import TextIO

from vision.decoding.names import escaped as visible
from vision.decoding.names import number_of


def print_line(text: object, *, file: TextIO | None = None) -> None:
    """Prints one line, its control characters escaped, at once."""
    print(visible(str(text)), file=file or sys.stdout, flush=True)


def print_piece(text: str) -> None:
    """Prints a part of a text at once: lines and tabs stay, other control characters are escaped."""
    print("".join(c if c in "\n\t" else visible(c) for c in text), end="", flush=True)


__all__ = ["number_of", "print_line", "print_piece", "visible"]
