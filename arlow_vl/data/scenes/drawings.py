"""Drawings of the things that scenes show, read from the packages that `arlow data fetch` has fetched."""

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from arlow_vl.data.fetch.archives import read_members
from arlow_vl.data.fetch.clip_art import PNG_FOLDER
from arlow_vl.data.fetch.download import is_verified
from arlow_vl.data.fetch.emoji import FLUENT_3D, NOTO_64, OPENMOJI_COLOR, TWEMOJI_COLOR, Style, read_style
from arlow_vl.data.fetch.images import is_svg, rasterise
from arlow_vl.data.fetch.packages import CLIP_ART_PNG, FLUENT, NOTO, OPENMOJI, STAMPS, TWEMOJI, Package
from arlow_vl.data.fetch.stamps import FOLDER as STAMP_FOLDER
from arlow_vl.data.scenes.icon_sets import STYLES, read_icons
from arlow_vl.data.scenes.splits import Split
from arlow_vl.data.scenes.vocabulary import CONCEPTS
from arlow_vl.errors import DataError
from arlow_vl.printing import visible

LONGEST_SIDE = 128
"""Pixels of a drawing's longer side as it is kept; scenes show it smaller."""
FAINT = 16
"""Alpha of 255 up to which a drawing's rim counts as empty."""
MOST_PIXELS = 4_000_000
MEAN_BRIGHTNESS = 176
"""Mean brightness, of 255, that darker drawings are brightened to, so that each shows the colour of its scene."""


@dataclass(frozen=True)
class Drawing:
    """A drawing of a thing in greys; scenes give it its colour."""

    noun: str
    style: str
    """ "noto", "openmoji", "fluent-3d", one of `icon_sets.STYLES`, "stamp" or "clip art"."""
    name: str
    """Name that is unique among all drawings."""
    is_held_out: bool
    """True: only `test-drawings` shows it."""
    grey: UInt8[np.ndarray, "height width 2"]
    """Brightness and alpha, cropped to what is drawn."""


@dataclass(frozen=True)
class Drawings:
    """All drawings that scenes can show."""

    drawings: tuple[Drawing, ...]
    held_out_style: str
    """Style that only `test-style` shows."""
    licenses: tuple[str, ...]

    def of(self, split: Split) -> dict[str, list[Drawing]]:
        """Returns the drawings that the split may show, by thing."""
        chosen: dict[str, list[Drawing]] = {}
        for drawing in self.drawings:
            is_of_style = drawing.style == self.held_out_style
            if (is_of_style, drawing.is_held_out) == (split == "test-style", split == "test-drawings"):
                chosen.setdefault(drawing.noun, []).append(drawing)
        return chosen

    @property
    def sha256(self) -> str:
        """Hash of all names and pixels: equal drawings and seeds make equal scenes with the same Pillow."""
        digest = sha256(self.held_out_style.encode())
        for drawing in self.drawings:
            digest.update(f"\n{drawing.name} {drawing.is_held_out} {drawing.grey.shape}\n".encode())
            digest.update(drawing.grey.tobytes())
        return digest.hexdigest()


def read_drawings(packages: Path) -> Drawings:
    """Returns the drawings in a folder of packages; without those of npm and Debian there are fewer styles.

    Raises:
        DataError: a package that is needed is missing or damaged.
    """
    has_npm, has_debian = ((packages / package.file).exists() for package in (FLUENT, STAMPS))
    emoji = [(FLUENT_3D, FLUENT), (NOTO_64, NOTO)] if has_npm else [(TWEMOJI_COLOR, TWEMOJI)]
    emoji.append((OPENMOJI_COLOR, OPENMOJI))
    icons = [*STYLES.values()] if has_npm else []
    outside = [STAMPS, CLIP_ART_PNG] if has_debian else []
    used = [package for _, package in emoji] + icons + outside
    _check(packages, used)
    drawings = [*_emoji(packages, [style for style, _ in emoji])]
    drawings += _icons(packages) if icons else ()
    drawings += _outside(packages) if outside else ()
    return Drawings(tuple(drawings), emoji[0][0].name, tuple(dict.fromkeys(package.license for package in used)))


def drawing_of(noun: str, style: str, name: str, data: bytes, *, is_held_out: bool = False) -> Drawing:
    """Returns a drawing from a PNG, WebP or SVG with a transparent background.

    Raises:
        DataError: nothing is drawn in it, or it is too large.
    """
    image = Image.open(io.BytesIO(rasterise(data) if is_svg(data) else data))
    if image.width * image.height > MOST_PIXELS:
        raise DataError(f"drawing {visible(name)} has {image.width} x {image.height} pixels, too many for a drawing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of palettes with transparency
        image = image.convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > FAINT)).getbbox()
    if box is None:
        raise DataError(f"drawing {visible(name)} is blank; name another")
    image = image.crop(box)
    grey = np.asarray(Image.merge("LA", (image.convert("L"), image.getchannel("A"))))
    return Drawing(noun, style, name, is_held_out, _brightened(resized(grey, LONGEST_SIDE).copy()))


def resized(grey: UInt8[np.ndarray, "height width 2"], longest: int) -> UInt8[np.ndarray, "height2 width2 2"]:
    """Returns the drawing with `longest` pixels along its longer side, scaled by a box filter in whole numbers."""
    height, width = (max(1, (2 * side * longest + max(grey.shape)) // (2 * max(grey.shape))) for side in grey.shape[:2])
    return np.asarray(Image.fromarray(grey, "LA").resize((width, height), Image.Resampling.BOX))


def _brightened(grey: UInt8[np.ndarray, "height width 2"]) -> UInt8[np.ndarray, "height width 2"]:
    """Returns the drawing with `MEAN_BRIGHTNESS` where it is opaque, if it is darker there."""
    brightness, alpha = grey[..., 0].astype(np.int64), grey[..., 1].astype(np.int64)
    mean = max(1, int((brightness * alpha).sum()) // max(1, int(alpha.sum())))
    if mean < MEAN_BRIGHTNESS:
        grey[..., 0] = np.minimum(255, (brightness + 16) * MEAN_BRIGHTNESS // (mean + 16))
    return grey


def _check(packages: Path, used: Iterable[Package]) -> None:
    for package in used:
        archive = packages / package.file
        if not is_verified(archive, package):
            what = "is damaged" if archive.exists() else "is missing"
            raise DataError(f"{visible(str(archive))} {what}; `arlow data fetch --root {packages.parent}` fetches it")


def _emoji(packages: Path, styles: Sequence[Style]) -> Iterator[Drawing]:
    noun_of = {concept.code: concept.noun for concept in CONCEPTS.values()}
    for style in styles:
        found = read_style(packages, style, set(noun_of))
        for code, noun in noun_of.items():
            yield drawing_of(noun, style.name, f"{style.name}:{code}", found[code])


def _icons(packages: Path) -> Iterator[Drawing]:
    for noun, style, svg in read_icons(packages):
        yield drawing_of(noun, style, f"{style}:{CONCEPTS[noun].code}", svg)


def _outside(packages: Path) -> Iterator[Drawing]:
    """Yields stamps and clip art; of a thing that has several, the last is held out for `test-drawings`."""
    stamps = _read(packages / STAMPS.file, STAMP_FOLDER, [n for concept in CONCEPTS.values() for n in concept.stamps])
    names = [f"{name}.png" for concept in CONCEPTS.values() for name in concept.clip_art]
    clip_art = _read(packages / CLIP_ART_PNG.file, PNG_FOLDER, names)
    for concept in CONCEPTS.values():
        found = [("stamp", name, stamps[name]) for name in concept.stamps]
        found += [("clip art", name, clip_art[f"{name}.png"]) for name in concept.clip_art]
        for number, (style, name, data) in enumerate(found, 1):
            is_last = number == len(found) > 1
            yield drawing_of(concept.noun, style, f"{style}:{name}", data, is_held_out=is_last)


def _read(archive: Path, folder: str, names: Sequence[str]) -> Mapping[str, bytes]:
    wanted = {folder + name for name in names}
    return {name.removeprefix(folder): data for name, data in read_members(archive, wanted.__contains__)}
