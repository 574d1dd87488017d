"""Paints scenes in integer arithmetic, so that equal drawings and the same Pillow give equal pixels."""

from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8, UInt64

from arlow_vl.data.scenes.drawings import Drawing, resized
from arlow_vl.data.scenes.draws import Draws
from arlow_vl.data.scenes.font import word_dots
from arlow_vl.data.scenes.layout import SIDE, Box, draw_places
from arlow_vl.data.scenes.scene import Group, Scene, Word
from arlow_vl.data.scenes.vocabulary import COLOURS, Colour

PALE = ((236, 232, 222), (214, 224, 232), (224, 232, 214), (234, 220, 228), (250, 250, 248), (202, 202, 200))
PATTERNS = ("plain", "plain", "plain", "stripes", "checks", "dots", "speckles")
DARKEST = 128
"""Brightness, of 255, of a scene's colour where the drawing is black; where it is white, the colour is full."""
INK, LABEL = (24, 24, 32), (252, 252, 246)
_LINE = np.arange(SIDE)
Pixels = UInt8[np.ndarray, "height width 3"]


class Thing(NamedTuple):
    """A thing or a word in an image, with the box of its pixels."""

    part: int
    """Number of the scene's part that it belongs to, from 0."""
    noun: str
    """Empty for a word."""
    colour: str
    style: str
    drawing: str
    """Name of the drawing, or the word itself."""
    box: Box


@dataclass(frozen=True)
class Painter:
    """Paints scenes with the drawings of one split."""

    drawings: dict[str, list[Drawing]]
    _scaled: dict[tuple[str, int, bool], UInt8[np.ndarray, "height width 2"]] = field(default_factory=dict)

    def paint(self, draws: Draws, scene: Scene) -> tuple[Pixels, list[Thing], str]:
        """Paints a scene; returns the image, all that is in it, and the pattern of its background."""
        pattern = draws.choose(PATTERNS)
        pixels = ground(draws, pattern)
        word = scene.word
        scale = 2 if word is None or scene.relation == "left of" or len(word) > 4 else draws.between(2, 3)
        dots = None if word is None else word_dots(word, scale)
        places = draw_places(draws, scene, (0, 0) if dots is None else dots.shape[::-1])
        things: list[Thing] = []
        for number, (part, squares) in enumerate(zip(scene.parts, places, strict=True)):
            if isinstance(part, Word):
                assert dots is not None
                box = squares[0]
                pixels[box.top : box.bottom, box.left : box.right] = np.where(dots[..., None], INK, LABEL)
                things.append(Thing(number, "", "", "", part.text, box))
            else:
                things += self._paint_group(draws, pixels, number, part, squares)
        return pixels, things, pattern

    def _paint_group(self, draws: Draws, pixels: Pixels, number: int, group: Group, squares: list[Box]) -> list[Thing]:
        drawing = draws.choose(self.drawings[group.noun])
        things = []
        for square in squares:
            grey = self._at_size(drawing, square.right - square.left, draws.coin())
            height, width = grey.shape[:2]
            left = square.left + (square.right - square.left - width) // 2
            top = square.top + (square.bottom - square.top - height) // 2
            box = Box(left, top, left + width, top + height)
            lay_over(pixels[box.top : box.bottom, box.left : box.right], grey, group.colour)
            things.append(Thing(number, group.noun, group.colour, drawing.style, drawing.name, box))
        return things

    def _at_size(self, drawing: Drawing, size: int, is_mirrored: bool) -> UInt8[np.ndarray, "height width 2"]:
        """Returns the drawing with `size` pixels along its longer side."""
        key = (drawing.name, size, is_mirrored)
        if key not in self._scaled:
            small = resized(drawing.grey, size)
            self._scaled[key] = np.ascontiguousarray(small[:, ::-1]) if is_mirrored else small
        return self._scaled[key]


def lay_over(under: Pixels, grey: UInt8[np.ndarray, "height width 2"], colour: Colour) -> None:
    """Paints a drawing in a colour over the pixels, in place."""
    tinted, alpha = shades(colour)[grey[..., 0]], grey[..., 1:].astype(np.uint16)
    under[...] = (tinted * alpha + under * (255 - alpha) + 127) // 255


@cache
def shades(colour: Colour) -> UInt8[np.ndarray, "256 3"]:
    """Returns the colour for each brightness of a drawing, from `DARKEST` to full."""
    brightness = DARKEST + (255 - DARKEST) * np.arange(256)[:, None] // 255
    return (brightness * np.array(COLOURS[colour]) // 255).astype(np.uint8)


def ground(draws: Draws, pattern: str) -> Pixels:
    """Draws a background in one pale colour, or in two that alternate."""
    first, second = draws.shuffled(PALE)[:2]
    step, is_across = draws.between(6, 16), draws.coin()
    if pattern == "stripes":
        is_second = np.broadcast_to(_LINE // step % 2 == 1, (SIDE, SIDE))
        is_second = is_second if is_across else is_second.T
    elif pattern == "checks":
        is_second = (_LINE // step + _LINE[:, None] // step) % 2 == 1
    elif pattern == "dots":
        squared = (_LINE % step - step // 2) ** 2
        is_second = squared + squared[:, None] <= (step // 3) ** 2
    elif pattern == "speckles":
        is_second = _mixed(_LINE // 2 + SIDE * (_LINE[:, None] // 2) + draws.below(2**16) * SIDE**2) % 16 == 0
    else:
        is_second = np.zeros((SIDE, SIDE), bool)
    return np.array([first, second], np.uint8)[is_second.astype(np.uint8)]


def _mixed(numbers: Int64[np.ndarray, "height width"]) -> UInt64[np.ndarray, "height width"]:
    """Returns the numbers hashed by MurmurHash3's last step for 32 bits."""
    mixed = numbers.astype(np.uint64) & 0xFFFFFFFF
    for factor in (0x85EBCA6B, 0xC2B2AE35):
        mixed = (mixed ^ mixed >> 15) * factor & 0xFFFFFFFF
    return mixed ^ mixed >> 13
