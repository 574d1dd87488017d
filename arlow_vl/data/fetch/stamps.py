"""Tux Paint stamps: small images, each with one sentence that a person wrote for children."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from arlow_vl.data.fetch.archives import read_members
from arlow_vl.data.fetch.captions import caption_name
from arlow_vl.data.fetch.images import SourceImage
from arlow_vl.data.fetch.kinds import STAMP_KINDS, kind_of_folder
from arlow_vl.data.fetch.packages import STAMPS

FOLDER = "usr/share/tuxpaint/stamps/"


def read_stamps(folder: Path, translations: Counter) -> Iterator[SourceImage]:
    """Yields every stamp with a sentence; `translations` counts sentences in other languages, which are left out."""

    def wanted(name: str) -> bool:
        return name.startswith(FOLDER) and name.endswith((".png", ".svg", ".txt"))

    files = {name.removeprefix(FOLDER): data for name, data in read_members(folder / STAMPS.file, wanted)}
    for name in sorted(name for name in files if name.endswith(".txt")):
        stem = name.removesuffix(".txt")
        data = files.get(f"{stem}.png") or files.get(f"{stem}.svg")
        sentence, *others = files[name].decode("utf-8", errors="replace").splitlines() or [""]
        if data and sentence.strip():
            translations.update(locale for locale, mark, _ in (line.partition(".utf8=") for line in others) if mark)
            yield stamp(stem, sentence.strip(), data)


def stamp(stem: str, sentence: str, data: bytes) -> SourceImage:
    folder = str(PurePosixPath(stem).parent)
    return SourceImage(
        key="stamp-" + re.sub(r"[^A-Za-z0-9_-]+", "-", stem),
        source="tuxpaint-stamps",
        license=STAMPS.license,
        style="stamp",
        caption=sentence,
        names=(f"stamp:{stem}", f"stem:{family(stem)}", caption_name(sentence)),
        kind=kind_of_folder(folder, STAMP_KINDS),
        data=data,
    )


def family(stem: str) -> str:
    """Returns the family of a stem: "frog" for "animals/frog-1" and "animals/frog-2"."""
    name = PurePosixPath(stem).name.lower()
    return re.sub(r"[-_ ]*\d+$", "", name) or name
