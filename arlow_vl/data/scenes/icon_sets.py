"""More drawings of each thing, from Iconify's sets of emoji and icons: each is a JSON file with SVG by name."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from arlow_vl.data.fetch.archives import read_members
from arlow_vl.data.fetch.packages import (
    ICONS_EMOJIONE,
    ICONS_EMOJIONE_1,
    ICONS_FXEMOJI,
    ICONS_GAME,
    ICONS_MDI,
    ICONS_NOTO_1,
    ICONS_STREAMLINE,
    ICONS_TWEMOJI,
    Package,
)
from arlow_vl.data.scenes.vocabulary import CONCEPTS
from arlow_vl.errors import DataError

STYLES: dict[str, Package] = {
    "twemoji": ICONS_TWEMOJI,
    "emojione": ICONS_EMOJIONE,
    "emojione-1": ICONS_EMOJIONE_1,
    "noto-1": ICONS_NOTO_1,
    "fxemoji": ICONS_FXEMOJI,
    "streamline": ICONS_STREAMLINE,
    "mdi": ICONS_MDI,
    "game-icons": ICONS_GAME,
}
"""The package of each style. Not every style has every thing."""
FXEMOJI_NAMES = {
    "bird": None,  # a head, as round as a coin
    "sailboat": None,  # on a square of sea
    "cat": "catside",
    "dog": "dogside",
    "house": "housebuilding",
    "locomotive": "steamlocomotive",
}
"""Names of emoji in fxemoji if they are not just the name without hyphens; None: its drawing does not fit."""
ICON_NAMES = {
    "streamline": """
        apple=red-apple bird=bird-2 boat=sailboat bus car=automobile cat crown dog elephant fish=tropical-fish horse
        ladybug=lady-beetle mushroom pear plane=airplane rabbit snail strawberry=strawberry-1 train=locomotive turtle
        umbrella
    """,
    "mdi": """
        apple=food-apple bird boat=sail-boat bus=bus-side butterfly car=car-side crown dog=dog-side duck elephant fish
        flower guitar=guitar-acoustic hammer horse house=home key ladybug mushroom pear=fruit-pear penguin
        plane=airplane rabbit rocket snail spider turtle umbrella
    """,
    "game-icons": """
        apple=shiny-apple banana bird=sparrow boat=sailboat bus car=city-car cat crown dog=sitting-dog duck elephant
        flower=sunflower guitar hammer=claw-hammer house key ladybug mushroom pear penguin plane=airplane rabbit rocket
        snail spider=angular-spider strawberry train=steam-locomotive turtle umbrella
    """,
}
"""Icons of the sets that have their own names: each thing that is drawn whole and alone, as `noun=name` if the two
differ."""
_CODES, _ICONS = "package/chars.json", "package/icons.json"


def read_icons(packages: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yields noun, style and SVG of each drawing, styles in order.

    Args:
        packages: Folder with the archives, whose SHA-256 the caller has checked.

    Raises:
        DataError: a set lacks an icon of ICON_NAMES.
    """
    name_of = _read_json(packages / ICONS_TWEMOJI.file, _CODES)  # the only set that tells its names by code point
    for style, package in STYLES.items():
        found = _read_json(packages / package.file, _ICONS)
        for noun, name in _names(style, {concept.noun: name_of[concept.code] for concept in CONCEPTS.values()}):
            if name in found["icons"]:
                yield noun, style, _svg(found, found["icons"][name])
            elif style in ICON_NAMES:  # chosen by hand: only a newer package can lack it
                raise DataError(f"{package.file} has no icon {name}: give ICON_NAMES another {noun}, or none")


def _names(style: str, emoji: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """Yields nouns and their names in the set, given the names of their emoji."""
    if style in ICON_NAMES:
        for entry in ICON_NAMES[style].split():
            noun, _, name = entry.partition("=")
            yield noun, name or noun
    else:
        for noun, name in emoji.items():
            yield noun, FXEMOJI_NAMES.get(name, name.replace("-", "")) if style == "fxemoji" else name


def _read_json(archive: Path, member: str) -> Mapping:
    [(_, data)] = read_members(archive, member.__eq__)
    return json.loads(data)


def _svg(of_set: Mapping, icon: Mapping) -> bytes:
    width, height = (icon.get(side, of_set.get(side, 16)) for side in ("width", "height"))  # 16: Iconify's default
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    ).encode()
