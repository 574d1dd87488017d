"""Names and messages that are safe to print, whatever bytes a file name or a file is made of."""

LONGEST, SHOWN = 300, 60  # characters


def escaped(text: str) -> str:
    r"""One printable line: what moves a cursor, hides or breaks a line is written as `\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable(name: object) -> str:
    """A name, escaped. One over `LONGEST` characters is cut to the first `SHOWN`.

    Nobody reads a longer one: most likely it is an image in base64 that was taken for a path.
    """
    text = str(name)
    return escaped(text) if len(text) <= LONGEST else f"{escaped(text[:SHOWN])}... ({len(text):,} characters)"
