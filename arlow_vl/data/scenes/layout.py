"""Layout of the parts of a scene, in whole pixels.

"left of" puts the first part into the left half and the second into the right one, "above" likewise; the centres of
both are at most half as far apart across that direction as along it, so that no scene shows both relations.
"""

from collections.abc import Sequence
from typing import NamedTuple

from arlow_vl.data.scenes.draws import Draws
from arlow_vl.data.scenes.scene import Scene, Word
from arlow_vl.data.scenes.vocabulary import Relation

SIDE = 128
"""Pixels of an image, across and down."""
MARGIN = 2
LARGE, MIDDLE, SMALL = 60, 40, 30
"""Sides of the cells that hold the things of a group: about a half, a third or a quarter of the image."""
SHORTEST = {LARGE: 28, MIDDLE: 22, SMALL: 20}
"""Minimum pixels of a thing's longer side, by the cell that it is in."""


class Box(NamedTuple):
    """A box of pixels; `right` and `bottom` are the first ones outside."""

    left: int
    top: int
    right: int
    bottom: int


Place = list[Box]
"""The squares that the things of a part are drawn in; a word has one box, of its own size."""


def draw_places(draws: Draws, scene: Scene, word_size: tuple[int, int] = (0, 0)) -> list[Place]:
    """Draws a place for each part.

    Args:
        word_size: Width and height of the scene's word, if it has one.
    """
    regions = _regions(scene.relation)
    while True:
        places = [
            [_draw_box(draws, region, word_size)]
            if isinstance(part, Word)
            else _draw_squares(draws, region, part.count)
            for region, part in zip(regions, scene.parts, strict=False)
        ]
        if scene.relation is None or _is_along(scene.relation, around(places[0]), around(places[1])):
            return places


def around(boxes: Sequence[Box]) -> Box:
    """Returns the smallest box around all of them."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return Box(min(lefts), min(tops), max(rights), max(bottoms))


def _regions(relation: Relation | None) -> list[Box]:
    half = SIDE // 2
    if relation is None:
        return [Box(0, 0, SIDE, SIDE)]
    if relation == "left of":
        return [Box(0, 0, half, SIDE), Box(half, 0, SIDE, SIDE)]
    return [Box(0, 0, SIDE, half), Box(0, half, SIDE, SIDE)]


def _is_along(relation: Relation, first: Box, second: Box) -> bool:
    across = abs(first.left + first.right - second.left - second.right)
    down = abs(first.top + first.bottom - second.top - second.bottom)
    return 2 * down <= across if relation == "left of" else 2 * across <= down


def _draw_squares(draws: Draws, region: Box, count: int) -> Place:
    inner = Box(region.left + MARGIN, region.top + MARGIN, region.right - MARGIN, region.bottom - MARGIN)
    is_whole = region.right - region.left == region.bottom - region.top
    cell = LARGE if count <= 2 else MIDDLE if is_whole else SMALL
    if count == 1:
        size = 4 * draws.between(SHORTEST[cell] // 4, cell // 4 - 1)
        return [_draw_box(draws, region, (size, size))]
    columns, rows = (inner.right - inner.left) // cell, (inner.bottom - inner.top) // cell
    squares = []
    for number in draws.shuffled(range(columns * rows))[:count]:
        left, top = inner.left + number % columns * cell, inner.top + number // columns * cell
        size = 4 * draws.between(-(-SHORTEST[cell] // 4), cell // 4 - 1 if cell > SMALL else cell // 4)
        squares.append(_draw_box(draws, Box(left, top, left + cell, top + cell), (size, size), margin=0))
    return squares


def _draw_box(draws: Draws, region: Box, size: tuple[int, int], margin: int = MARGIN) -> Box:
    left = draws.between(region.left + margin, region.right - margin - size[0])
    top = draws.between(region.top + margin, region.bottom - margin - size[1])
    return Box(left, top, left + size[0], top + size[1])
