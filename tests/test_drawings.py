"""The drawings of the docs: texts stay inside their boxes, and inside the drawing."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import ImageFont

DRAWINGS = sorted((Path(__file__).parents[1] / "docs").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"
WIDEST = 1.15  # DejaVu Sans, the widest of the fonts that browsers take, over the font that Pillow brings
MARGIN = 6  # pixels


def width_of(text: ElementTree.Element, size: float) -> float:
    return WIDEST * ImageFont.load_default(size).getlength(text.text or "")


def texts_and_boxes(path: Path):
    """Of every text (left, right, baseline), and of every rectangle (left, top, right, bottom)."""
    root = ElementTree.parse(path).getroot()
    size = float(root.get("font-size", 16))
    texts, boxes = [], []
    for group in root.iter():
        for element in group:
            if element.tag == f"{SVG}text":
                x, width = float(element.get("x", 0)), width_of(element, size)
                left = x - width / 2 if "middle" in (group.get("text-anchor"), element.get("text-anchor")) else x
                texts.append((element.text, left, left + width, float(element.get("y", 0))))
            elif element.tag == f"{SVG}rect":
                x, y, wide, high = (float(element.get(name, 0)) for name in ("x", "y", "width", "height"))
                boxes.append((x, y, x + wide, y + high))
    return texts, boxes


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.name)
def test_every_text_stays_inside_the_boxes_that_it_begins_in(path):
    texts, boxes = texts_and_boxes(path)
    assert texts
    for text, left, right, y in texts:
        middle = (left + right) / 2
        around = [box for box in boxes if box[0] < middle < box[2] and box[1] < y < box[3]]
        assert around, text
        for x1, y1, x2, y2 in around:
            assert x1 + MARGIN <= left and right <= x2 - MARGIN and y1 + MARGIN < y < y2 - MARGIN, text


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.name)
def test_no_text_lies_on_another(path):
    texts, _ = texts_and_boxes(path)
    for place, (text, left, right, y) in enumerate(texts):
        for other, other_left, other_right, other_y in texts[:place]:
            assert abs(y - other_y) >= 16 or right < other_left or other_right < left, (text, other)
