"""More drawings of each thing: Iconify's sets of emoji, each one JSON file of SVG by name."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from arlow_vl.data.fetch.archives import read_members
from arlow_vl.data.fetch.packages import (
    ICONS_EMOJIONE,
    ICONS_EMOJIONE_1,
    ICONS_FXEMOJI,
    ICONS_NOTO_1,
    ICONS_TWEMOJI,
    Package,
)
from arlow_vl.data.scenes.vocabulary import CONCEPTS

STYLES: dict[str, Package] = {
    "twemoji": ICONS_TWEMOJI,
    "emojione": ICONS_EMOJIONE,
    "emojione-1": ICONS_EMOJIONE_1,
    "noto-1": ICONS_NOTO_1,
    "fxemoji": ICONS_FXEMOJI,
}
"""The package of each style. Not every one draws every thing."""
FXEMOJI_NAMES = {
    "bird": None,  # a head, as round as a coin
    "sailboat": None,  # on a square of sea
    "cat": "catside",
    "dog": "dogside",
    "house": "housebuilding",
    "locomotive": "steamlocomotive",
}
"""What fxemoji calls an emoji where it is not the name without hyphens; None where its drawing is another thing."""
_CODES, _ICONS = "package/chars.json", "package/icons.json"


def read_icons(packages: Path) -> Iterator[tuple[str, str, bytes]]:
    """Noun, style and SVG of each drawing, styles in order.

    Args:
        packages: Folder with the archives, whose SHA-256 the caller has checked.
    """
    name_of = _read_json(packages / ICONS_TWEMOJI.file, _CODES)  # the only set that tells its names by code point
    for style, package in STYLES.items():
        found = _read_json(packages / package.file, _ICONS)
        for concept in CONCEPTS.values():
            name = name_of[concept.code]
            if style == "fxemoji":
                name = FXEMOJI_NAMES.get(name, name.replace("-", ""))
            if name in found["icons"]:
                yield concept.noun, style, _svg(found, found["icons"][name])


def _read_json(archive: Path, member: str) -> Mapping:
    [(_, data)] = read_members(archive, member.__eq__)
    return json.loads(data)


def _svg(of_set: Mapping, icon: Mapping) -> bytes:
    width, height = (icon.get(side, of_set.get(side, 16)) for side in ("width", "height"))  # 16: Iconify's default
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    ).encode()
