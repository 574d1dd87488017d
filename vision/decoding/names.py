"""Names and messages that are safe to print, whatever bytes a file name or a file is made of."""

import unicodedata

LONGEST, SHOWN = 300, 60  # characters
# Controls (ESC, newline, carriage return), formats (text direction, zero width), halves of characters (names that are
# no UTF-8), and the separators of lines and paragraphs.
ACTING = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def escaped(text: str) -> str:
    r"""The text with each character that would act on a terminal as its escape: `\x1b`, `\n`, `\u202e`."""
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in ACTING else c for c in text)


def number_of(count: int, noun: str) -> str:
    """The count and its noun, as "1 image" and "2,048 images"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def printable(name: object) -> str:
    """A name, escaped. One over `LONGEST` characters is cut to the first `SHOWN`.

    Nobody reads a longer one: most likely it is an image in base64 that was taken for a path.
    """
    text = str(name)
    return escaped(text) if len(text) <= LONGEST else f"{escaped(text[:SHOWN])}... ({len(text):,} characters)"
