"""Draws the sheet of `arlow explain`: the image under each word's heat, with a colour scale.

Heat is drawn so that it is legible on any image. The image turns grey and keeps a third of its contrast; over it lies a
colour that grows brighter with the attention. So the brightest image without attention is still darker than the
darkest with full attention, and the same attention adds the same brightness on black and on white. The colours follow
the square root of the attention, so that four times the uniform weight stands out beside forty times.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from arlow_vl.evaluation.explain import View, WordHeat
from arlow_vl.evaluation.numbers import format_number
from arlow_vl.printing import visible

CELL, GAP, COLUMNS, STRIP = 168, 12, 6, 200
BAR_WIDTH, BAR_HEIGHT = 300, 14
INK, PAPER, FAINT = (24, 24, 28), (250, 250, 248), (96, 96, 102)
# Eight colours of matplotlib's "inferno", whose brightness grows evenly.
RAMP = torch.tensor(
    [
        *[[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99]],
        *[[212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]],
    ],
    dtype=torch.float32,
)
COLOUR_SHARE = 0.68  # of a pixel; the rest is the grey image
LOWEST_TOP = 2.0  # times the uniform weight; a lower top would make a nearly uniform spread look like a finding


def draw_explanation(
    original: Image.Image, views: Sequence[View], words: Sequence[WordHeat], *, title: str
) -> Image.Image:
    """Draws a strip with the image and the encoder's views, and below it the last view under the heat of each word.

    All words share one scale, so that colours can be compared.
    """
    rows, width = math.ceil(len(words) / COLUMNS), GAP + COLUMNS * (CELL + GAP)
    head = GAP + 26 + STRIP + 2 * GAP + 6
    sheet = Image.new("RGB", (width, head + BAR_HEIGHT + 44 + rows * (CELL + 36 + GAP)), PAPER)
    write(sheet, (GAP, GAP), title, 15, INK, width - 2 * GAP)
    draw_views(sheet, original, views, top=GAP + 26)
    top = max([LOWEST_TOP, *(word.peak for word in words)])
    draw_scale(sheet, (GAP, head), top, places=words[0].heat.numel() if words else views[-1].places.numel())
    for place, word in enumerate(words):
        x, y = GAP + place % COLUMNS * (CELL + GAP), head + BAR_HEIGHT + 44 + place // COLUMNS * (CELL + 36 + GAP)
        sheet.paste(fitted(under_heat(views[-1], word.heat, top=top), CELL, CELL), (x, y))
        write(sheet, (x, y + CELL + 2), word.word, 14, INK, CELL)
        write(sheet, (x, y + CELL + 19), f"peak {format_number(word.peak, 1)} times even", 11, FAINT, CELL)
    return sheet


def draw_views(sheet: Image.Image, original: Image.Image, views: Sequence[View], *, top: int) -> None:
    boxes = [(original, f"the image, {original.width} x {original.height}")]
    boxes += [(with_grid(view), f"seen: {view.label}, {view.image.width} x {view.image.height}") for view in views]
    each = (sheet.width - GAP) // len(boxes)
    for number, (image, label) in enumerate(boxes):
        small, left = fitted(image, each - GAP, STRIP), GAP + number * each
        sheet.paste(small, (left, top))
        write(sheet, (left, top + small.height + 2), label, 11, FAINT, each - GAP)


def draw_scale(sheet: Image.Image, corner: tuple[int, int], top: float, *, places: int) -> None:
    """Draws a bar of the colours, without an image under them, and the numbers that they stand for."""
    (x, y), draw = corner, ImageDraw.Draw(sheet)
    colours = ramp_colours(torch.linspace(0, 1, BAR_WIDTH)).round().byte().expand(BAR_HEIGHT, -1, -1)
    sheet.paste(Image.fromarray(colours.contiguous().numpy()), (x, y))
    numbers = [0.0, 1.0, top] if top < 12 else [0.0, 1.0, top / 4, top]
    for number in numbers:
        across = x + round(math.sqrt(number / top) * (BAR_WIDTH - 1))
        draw.line((across, y + BAR_HEIGHT, across, y + BAR_HEIGHT + 4), fill=INK)
        draw.text((across, y + BAR_HEIGHT + 5), f"{number:.3g}", fill=INK, font=font(11), anchor="ma")
    meaning = (
        f"attention, in times the even share (1 = {100 / places:.2g}% of it, as each of the {places} places would get)"
    )
    write(sheet, (x + BAR_WIDTH + 2 * GAP, y), meaning, 11, FAINT, sheet.width - BAR_WIDTH - 4 * GAP)


def under_heat(view: View, heat: Float[Tensor, " tokens"], *, top: float) -> Image.Image:
    """Colours the grey view by each patch's attention, brightest at `top` times the uniform weight."""
    shares = (heat[view.places] * heat.numel() / top).clamp(0, 1).sqrt()
    map_of_heat = Image.fromarray((shares * 255).round().byte().numpy())
    smooth = map_of_heat.resize(view.image.size, Image.Resampling.BILINEAR)
    colours = ramp_colours(torch.frombuffer(bytearray(smooth.tobytes()), dtype=torch.uint8) / 255)
    grey = torch.frombuffer(bytearray(view.image.convert("L").tobytes()), dtype=torch.uint8)[:, None]
    mixed = COLOUR_SHARE * colours + (1 - COLOUR_SHARE) * grey
    return Image.fromarray(mixed.round().byte().view(view.image.height, view.image.width, 3).numpy())


def ramp_colours(position: Float[Tensor, " places"]) -> Float[Tensor, "places 3"]:
    """Returns red, green and blue, 0 to 255, at positions from 0 to 1 on the ramp."""
    position = position.clamp(0, 1) * (len(RAMP) - 1)
    below = position.floor().long().clamp(max=len(RAMP) - 2)
    return torch.lerp(RAMP[below], RAMP[below + 1], (position - below)[:, None])


def with_grid(view: View) -> Image.Image:
    """Draws the borders of the patches: a white line beside a black one, so that one is visible on any image."""
    lined = view.image.copy()
    draw = ImageDraw.Draw(lined, "RGBA")
    rows, columns = view.places.shape
    for shift, colour in ((0, (255, 255, 255, 70)), (1, (0, 0, 0, 70))):
        for row in range(1, rows):
            y = row * lined.height / rows + shift
            draw.line((0, y, lined.width, y), fill=colour)
        for column in range(1, columns):
            x = column * lined.width / columns + shift
            draw.line((x, 0, x, lined.height), fill=colour)
    return lined


def write(
    sheet: Image.Image, corner: tuple[int, int], text: str, size: int, colour: tuple[int, int, int], width: int
) -> None:
    """Writes one line of text, cut short with an ellipsis where it exceeds its width."""
    draw, shown = ImageDraw.Draw(sheet), visible(text)
    while shown and draw.textlength(shown, font=font(size)) > width:
        shown = shown.removesuffix("…")[:-1].rstrip() + "…" if len(shown) > 1 else ""
    draw.text(corner, shown, fill=colour, font=font(size))


def fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / image.width, height / image.height)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def font(size: int) -> Any:
    return ImageFont.load_default(size)
