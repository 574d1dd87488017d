"""Names of a shard's members: the key and the part of a sample that a name stands for, and names to ignore."""

import re

IMAGE_SUFFIXES = frozenset("jpg jpeg jpe jfif png gif webp bmp tif tiff mpo".split())
NUMBERED_IMAGE = re.compile(r"(0|[1-9][0-9]{0,4})\.[a-z]+", re.ASCII)  # the extension of key.12.jpg
UNSAFE_NAME = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")


def split_name(name: str) -> tuple[str, str]:
    """WebDataset's key (the path up to the first dot of its last part) and extension (the rest, in lower case)."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def kind_of(extension: str) -> str | None:
    """Returns the part of a sample that a whole extension names: image, txt or json; None: no part."""
    if extension in IMAGE_SUFFIXES:
        return "image"
    return extension if extension in ("txt", "json") else None


def system_file(name: str) -> str | None:
    """Returns the word under which a file of an operating system, or one without extension, is ignored; else None."""
    folder, _, base = name.rpartition("/")
    if base.lower() == "thumbs.db" or "__MACOSX" in folder.split("/"):
        return "system_file"
    if base.startswith("."):
        return "hidden_file"
    return None if base.partition(".")[2] else "no_extension"
