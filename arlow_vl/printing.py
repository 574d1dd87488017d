"""Output to a terminal with control characters escaped, so that text from outside cannot act on the terminal."""

import sys
from typing import TextIO

from vision.decoding.names import escaped as visible
from vision.decoding.names import number_of


def print_line(text: object, *, file: TextIO | None = None) -> None:
    """Prints one line, with control characters escaped, and flushes."""
    print(visible(str(text)), file=file or sys.stdout, flush=True)


def print_piece(text: str) -> None:
    """Prints a part of a text and flushes; newlines and tabs stay, other control characters are escaped."""
    print("".join(c if c in "\n\t" else visible(c) for c in text), end="", flush=True)


__all__ = ["number_of", "print_line", "print_piece", "visible"]
