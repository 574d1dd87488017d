"""Heat that can be read on any image, with its scale."""

import pytest
import torch
from PIL import Image, ImageChops

from arlow_vl.evaluation.explain import View, WordHeat
from arlow_vl.evaluation.heat_maps import RAMP, draw_explanation, ramp_colours, under_heat, write

LUMA = torch.tensor([0.2126, 0.7152, 0.0722])  # of linear light, as contrast ratios are defined
HOT, COLD = (8, 8), (56, 56)


def view(image: Image.Image, rows: int = 4, columns: int = 4) -> View:
    return View("the whole", image, torch.arange(rows * columns).view(rows, columns))


def one_hot_place(strength: float = 1.0) -> torch.Tensor:
    """All attention on the first of 16 patches; with less strength, the rest is spread over all."""
    heat = torch.full((16,), (1 - strength) / 16)
    heat[0] += strength
    return heat


def luminance(colour: tuple[int, ...]) -> float:
    linear = (torch.tensor(colour) / 255).float() ** 2.2
    return float(linear @ LUMA)


def contrast(image: Image.Image, one: tuple[int, int], other: tuple[int, int]) -> float:
    """The contrast ratio of two places, 1 to 21."""
    dark, light = sorted(luminance(image.getpixel(place)) for place in (one, other))
    return (light + 0.05) / (dark + 0.05)


IMAGES = {
    "black": Image.new("RGB", (64, 64), "black"),
    "white": Image.new("RGB", (64, 64), "white"),
    "grey": Image.new("RGB", (64, 64), (128, 128, 128)),
    "blue": Image.new("RGB", (64, 64), (30, 30, 255)),
    "yellow": Image.new("RGB", (64, 64), (255, 255, 100)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_heat_stands_out_on_dark_and_on_light_images(name):
    """By 3 to 1 and more, as graphics that carry meaning need to (WCAG 2.1, 1.4.11)."""
    drawn = under_heat(view(IMAGES[name]), one_hot_place(), top=16.0)
    assert contrast(drawn, HOT, COLD) >= 3
    assert luminance(drawn.getpixel(HOT)) > luminance(drawn.getpixel(COLD))


@pytest.mark.parametrize("name", IMAGES)
def test_a_quarter_of_the_attention_can_still_be_seen(name):
    drawn = under_heat(view(IMAGES[name]), one_hot_place(0.25), top=16.0)
    assert contrast(drawn, HOT, COLD) >= 1.25


def test_a_hot_place_on_black_is_brighter_than_a_cold_one_on_white():
    hot = under_heat(view(IMAGES["black"]), one_hot_place(), top=16.0)
    cold = under_heat(view(IMAGES["white"]), one_hot_place(), top=16.0)
    assert luminance(hot.getpixel(HOT)) > 2 * luminance(cold.getpixel(COLD))


def test_more_attention_is_always_brighter():
    brightness = [luminance(tuple(colour.tolist())) for colour in ramp_colours(torch.linspace(0, 1, 256))]
    assert brightness == sorted(brightness)


def test_the_ends_of_the_ramp_are_its_first_and_last_colour():
    torch.testing.assert_close(ramp_colours(torch.tensor([-1.0, 0.0, 1.0, 2.0])), RAMP[[0, 0, -1, -1]])


def test_an_even_spread_draws_no_pattern():
    drawn = under_heat(view(IMAGES["grey"]), torch.full((16,), 1 / 16), top=2.0)
    assert len(drawn.getcolors()) == 1


def test_the_image_is_still_seen_under_the_heat():
    image = Image.new("RGB", (64, 64), "black")
    image.paste("white", (0, 0, 32, 64))
    drawn = under_heat(view(image), torch.full((16,), 1 / 16), top=2.0)
    assert contrast(drawn, (16, 32), (48, 32)) >= 1.5


def test_a_sheet_has_a_cell_for_each_word():
    seen = view(Image.new("RGB", (60, 40), (90, 120, 150)), 2, 2)
    words = [WordHeat(f"word{i}", torch.full((4,), 0.25)) for i in range(8)]
    one_row = draw_explanation(seen.image, [seen], words[:6], title="six words")
    two_rows = draw_explanation(seen.image, [seen, seen], words, title="eight words")
    assert two_rows.height > one_row.height and two_rows.width == one_row.width
    assert draw_explanation(seen.image, [seen], [], title="none").height < one_row.height


def test_the_scale_shows_the_ends_of_the_ramp_and_changes_its_numbers_with_the_peak():
    seen = view(IMAGES["grey"])
    weak, strong = (
        draw_explanation(seen.image, [seen], [WordHeat("a", one_hot_place(strength))], title="")
        for strength in (0.2, 0.9)
    )
    colours = {tuple(colour.int().tolist()) for colour in RAMP[[0, -1]]}
    box = (0, 250, 330, 285)  # where the bar lies
    assert colours <= {colour for _, colour in weak.crop(box).getcolors(100_000)}
    numbers = (0, 283, 330, 310)
    assert ImageChops.difference(weak.crop(numbers), strong.crop(numbers)).getbbox() is not None


@pytest.mark.parametrize("text", ["a word " * 40, "w" * 400, "\x1b[31m\n" * 40, "short", ""])
def test_a_text_stays_in_its_width(text):
    sheet = Image.new("RGB", (400, 40), "white")
    write(sheet, (10, 5), text, 14, (0, 0, 0), 150)
    drawn = ImageChops.invert(sheet).getbbox()
    assert drawn is None or (drawn[2] <= 10 + 150 + 1 and drawn[3] <= 30)
