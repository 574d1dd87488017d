"""Tiny drawings of every thing: three styles, and a stamp of which the last is held out."""

import io

import numpy as np
from PIL import Image

from arlow_vl.data.scenes.drawings import Drawing, Drawings, drawing_of
from arlow_vl.data.scenes.vocabulary import NOUNS

HELD_OUT_STYLE = "rendered"
STYLES = ("flat", "outlined", HELD_OUT_STYLE)


def made_drawings() -> Drawings:
    drawings = [_drawing(number, noun, style) for style in STYLES for number, noun in enumerate(NOUNS)]
    drawings += [_drawing(number, noun, "stamp", is_held_out=number % 2 == 0) for number, noun in enumerate(NOUNS)]
    return Drawings(tuple(drawings), HELD_OUT_STYLE, ("CC0-1.0",))


def png(width: int, height: int, box: tuple[int, int, int, int], fill: tuple[int, int, int, int]) -> bytes:
    """A transparent image with one ellipse, of whole numbers alone; the last pixels of the box are in it."""
    left, top, right, bottom = box
    across, down = right - left + 1, bottom - top + 1
    x, y = 2 * (np.arange(width) - left) + 1 - across, 2 * (np.arange(height)[:, None] - top) + 1 - down
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[(x * down) ** 2 + (y * across) ** 2 <= (across * down) ** 2] = fill
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _drawing(number: int, noun: str, style: str, *, is_held_out: bool = False) -> Drawing:
    grey = 60 + 40 * (STYLES.index(style) if style in STYLES else 3)
    data = png(48, 48, (4, 4, 20 + number % 24, 43), (grey, grey, grey, 255))
    return drawing_of(noun, style, f"{style}:{noun}", data, is_held_out=is_held_out)
