"""Open Clip Art: images from the PNG package, titles and descriptions from the metadata in the SVG package."""

import html
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from arlow_vl.data.fetch.archives import read_members
from arlow_vl.data.fetch.captions import caption_name
from arlow_vl.data.fetch.images import SourceImage
from arlow_vl.data.fetch.kinds import CLIP_ART_KINDS, kind_of_folder
from arlow_vl.data.fetch.packages import CLIP_ART_PNG, CLIP_ART_SVG

PNG_FOLDER, SVG_FOLDER = "usr/share/openclipart/png/", "usr/share/openclipart/svg/"
LEFT_OUT = re.compile(r"shapes/stars/|special/|duplicates/|computer/icons/(etiquette|flat|lemon)-theme/")
NOT_A_CAPTION = re.compile(
    r"https?:|www\.|@|#|inkscape|sodipodi|public domain|creative commons|derivative|clip ?art|^\W*$", re.I
)
CREDIT = re.compile(r"^clip ?art by [^-]+ - ", re.I)
NOT_ENGLISH = {"Architetto Francesco Rollandin", "Francesco Rollandin", "Rollandin Francesco", "yves GUILLOU"}
PUBLIC_DOMAIN = re.compile(r'license rdf:resource="[^"]*public ?domain', re.I)
MOST_REPEATS = 3


@dataclass(frozen=True)
class Description:
    """Metadata of an SVG."""

    stem: str
    title: str
    description: str
    creator: str


def read_clip_art(folder: Path) -> Iterator[SourceImage]:
    """Yields the images whose description (3 to 40 words) or title is rare enough to be a caption."""
    described = [d for d in read_descriptions(folder / CLIP_ART_SVG.file) if not LEFT_OUT.search(d.stem)]
    captions = choose_captions(described)
    by_stem = {d.stem: d for d in described}

    def wanted(name: str) -> bool:
        return name.startswith(PNG_FOLDER) and name.removeprefix(PNG_FOLDER).removesuffix(".png") in captions

    for name, data in read_members(folder / CLIP_ART_PNG.file, wanted):
        stem = name.removeprefix(PNG_FOLDER).removesuffix(".png")
        yield clip_art(by_stem[stem], captions[stem], data)


def read_descriptions(archive: Path) -> Iterator[Description]:
    """Yields metadata of every public-domain SVG, by regular expression: the drawings are never parsed."""
    for name, data in read_members(archive, lambda name: name.startswith(SVG_FOLDER) and name.endswith(".svg")):
        found = re.search(rb"<metadata.*?</metadata>", data, re.DOTALL)
        metadata = found[0].decode("utf-8", errors="replace") if found else ""
        if PUBLIC_DOMAIN.search(metadata):
            stem = name.removeprefix(SVG_FOLDER).removesuffix(".svg")
            creator = _field(_field(metadata, "creator", plain=False), "title")
            yield Description(stem, clean_title(_field(metadata, "title")), _field(metadata, "description"), creator)


def _field(metadata: str, name: str, *, plain: bool = True) -> str:
    found = re.search(rf"<dc:{name}>(.*?)</dc:{name}>", metadata, re.DOTALL)
    if not found or not plain:
        return found[1] if found else ""
    text = html.unescape(html.unescape(re.sub(r"<[^>]+>", " ", found[1])))
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def clean_title(title: str) -> str:
    return " ".join(CREDIT.sub("", title).replace("_", " ").split())


def choose_captions(described: list[Description]) -> dict[str, str]:
    """Chooses captions by stem: the description if it is a rare phrase, else a rare title; else no caption."""
    repeats = {field: Counter(getattr(d, field).lower() for d in described) for field in ("title", "description")}

    def is_rare(field: str, text: str) -> bool:
        return bool(text) and repeats[field][text.lower()] <= MOST_REPEATS and not NOT_A_CAPTION.search(text)

    captions = {}
    for d in described:
        if d.creator in NOT_ENGLISH:
            continue
        if 3 <= len(d.description.split()) <= 40 and is_rare("description", d.description):
            captions[d.stem] = d.description
        elif is_rare("title", d.title):
            captions[d.stem] = flag_caption(d)
    return captions


def flag_caption(d: Description) -> str:
    """Rewords titles in the folder of flags, which are bare names ("sweden"), as emoji have them ("flag: sweden")."""
    is_bare = "signs_and_symbols/flags/" in d.stem and "flag" not in d.title.lower()
    return f"flag: {d.title}" if is_bare else d.title


def clip_art(d: Description, caption: str, data: bytes) -> SourceImage:
    title = d.title if d.title and not NOT_A_CAPTION.search(d.title) else caption
    country = caption.removeprefix("flag: ")
    return SourceImage(
        key="clipart-" + re.sub(r"[^A-Za-z0-9_-]+", "-", d.stem),
        source="openclipart",
        license=CLIP_ART_PNG.license,
        style="clip art",
        caption=caption,
        names=(
            f"openclipart:{d.stem}",
            f"stem:{family(d.stem, d.creator)}",
            caption_name(caption),
            caption_name(title),
        ),
        kind=kind_of_folder(str(PurePosixPath(d.stem).parent), CLIP_ART_KINDS),
        flag_of=country if country != caption else None,
        on_page="/flags/" not in d.stem,
        data=data,
    )


def family(stem: str, creator: str) -> str:
    """Returns the part that "animals/turban_jure_kodzoman_01" and "turban_2" share: no folder, creator or number."""
    name = re.sub(r"[-_ ]*\d*$", "", PurePosixPath(stem).name.lower())
    author = re.sub(r"[^a-z0-9]+", "_", creator.lower()).strip("_")
    for start in (match.start() for match in re.finditer("_", name)):
        rest = name[start + 1 :].strip("_.")
        if start and len(rest) > 1 and author.startswith(rest):
            name = name[:start]
            break
    return re.sub(r"[-_ ]*\d+$", "", name) or name
