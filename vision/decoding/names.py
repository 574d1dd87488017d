"""Names that are safe to print: of files, and of strings that were taken for one."""

LONGEST, SHOWN = 300, 60  # characters


def printable(name: object) -> str:
    r"""A name in one printable line, whatever bytes it is made of: what moves a cursor or hides is written as `\x1b`.

    A string over `LONGEST` characters is no name that anybody reads, but most likely an image in base64: of it the
    first `SHOWN` characters are given, and how long it is.
    """
    text = str(name)
    if len(text) > LONGEST:
        return f"{printable(text[:SHOWN])}... ({len(text):,} characters)"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
