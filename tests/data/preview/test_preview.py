"""The page of samples: what is on it, and that nothing from outside acts there."""

import base64
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from arlow_vl.cli import main
from arlow_vl.data.preview.images import shown_image
from arlow_vl.data.preview.tokens import seen_images, shown_text
from arlow_vl.data.samples import ImageRef, Text, about_images, caption_text
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor
from arlow_vl.models.arlow_vl.processing_arlow_vl import ArlowProcessor
from tests.outside_data import JPEG, colourful, encoded, tar_of
from tests.tiny_runs import tiny_tokenizer
from vision.forms.tiling import tile_image
from vision.transform import ImageTransform

DATA_CONFIG = {
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.3, 0.25),
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A folder with a tokenizer and a processor that makes tiles."""
    folder = tmp_path_factory.mktemp("model")
    ArlowProcessor(ArlowImageProcessor(DATA_CONFIG, max_tiles=6), tiny_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture
def preview(tmp_path, model, capsys):
    """Writes the page of a shard of these members: exit status, page, standard error."""

    def write(*members: tuple[str, bytes], options: tuple[str, ...] = ()) -> tuple[int, str, str]:
        (tmp_path / "a.tar").write_bytes(tar_of(*members))
        page = tmp_path / "page.html"
        words = ["data", "preview", str(tmp_path / "a.tar"), "--model", str(model), "--out", str(page), *options]
        status = main([*words, "--workers", "1"])
        return status, page.read_text() if page.exists() else "", capsys.readouterr().err

    return write


def sample(key: str, caption: str, image: bytes = JPEG) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", image), (f"{key}.txt", caption.encode())]


def words_of(page: str) -> str:
    """What the tokens of the page say."""
    return "".join(re.findall(r'<span class="t [^"]*" title="token[^>]*>(.*?)</span>', page))


def test_a_page_shows_key_file_image_tokens_and_what_they_see(preview, tmp_path):
    status, page, err = preview(*sample("one", "the cat sat on a mat."))
    assert (status, err) == (0, "")
    for part in ("a.tar:one", str(tmp_path / "a.tar"), "1 of 1 sample", "4 × 4 JPEG", "sees image 0", "sees no image"):
        assert part in page
    trained = re.findall(r'class="t (?:control )?trained" title[^>]*>(.*?)</span>', page)
    assert "".join(trained) == "the cat sat on a mat.&lt;|im_end|&gt;"


def test_the_page_has_no_script_and_loads_nothing(preview):
    _, page, _ = preview(*sample("one", "x"))
    assert "default-src 'none'" in page
    assert not re.search(r"<script|<link|https?://|\son\w+=", page)
    assert set(re.findall(r'src="([a-z:/]+)', page)) == {"data:image/png"}


EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)> \"'&\x1b[2J\u202e</span>"


def test_nothing_from_outside_acts(preview):
    key = "<b>k\u202e"
    _, page, _ = preview(*sample(key, EVIL), options=("--max-length", "300"))
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "<b>k" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;" in words_of(page).replace("\n", "")


def test_a_cut_text_and_one_without_room_are_marked(preview):
    long = "the cat sat on a mat and saw one big red dog run over green hills. " * 4
    _, page, _ = preview(*sample("long", long), options=("--max-length", "30"))
    assert re.search(r"\d+ tokens are cut at max_length 30", page)
    assert 'class="t cut"' in page
    assert "1 text is cut" in page
    _, page, _ = preview(*sample("long", long), options=("--max-length", "5"))
    assert "not used: the prompt has" in page
    assert "1 text cannot be used" in page


def test_a_broken_image_is_told_on_the_page(preview):
    status, page, _ = preview(*sample("good", "x"), *sample("cut", "y", JPEG[:-9]))
    assert status == 0
    assert "cannot be used:" in page
    assert "(truncated)" in page


def test_the_draw_is_fair_and_always_the_same(preview):
    members = [member for n in range(200) for member in sample(f"{n:03d}", "x")]
    pages = [preview(*members, options=("--samples", "20"))[1] for _ in range(2)]
    drawn = [int(key) for key in re.findall(r"<h2>a\.tar:(\d+)</h2>", pages[0])]
    assert pages[0] == pages[1]
    assert len(set(drawn)) == 20
    assert max(drawn) > 150
    assert drawn != sorted(drawn)


def test_a_folder_without_a_tokenizer_and_a_source_without_samples_are_one_sentence(tmp_path, preview, capsys):
    (tmp_path / "b.tar").write_bytes(tar_of(*sample("a", "x")))
    out = str(tmp_path / "p.html")
    assert main(["data", "preview", str(tmp_path / "b.tar"), "--model", str(tmp_path), "--out", out]) == 4
    assert "holds no tokenizer.json" in capsys.readouterr().err
    assert preview(("a.txt", b"x"))[0] == 3


def test_a_text_model_shows_texts_and_refuses_images(tmp_path, capsys):
    folder, out = tmp_path / "text", tmp_path / "p.html"
    tiny_tokenizer().save_pretrained(folder)
    chat = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "The cat."}]
    (tmp_path / "a.tar").write_bytes(tar_of(("1.json", json.dumps({"messages": chat}).encode())))
    words = ["data", "preview", str(tmp_path / "a.tar"), "--model", str(folder), "--out", str(out)]
    assert main(words) == 0
    assert "The" in words_of(out.read_text())
    (tmp_path / "a.tar").write_bytes(tar_of(*sample("a", "x")))
    assert main(words) == 4
    assert "holds no processor, and sample a.tar:a has images" in capsys.readouterr().err


def test_pixels_are_those_of_the_transform():
    transform = ImageTransform(DATA_CONFIG)
    image = colourful(50, 20)
    assert list(transform.image_of(transform(image)).getdata()) == list(transform.fit(image, 32, 32).getdata())


def test_tiles_lie_in_their_places(tmp_path):
    transform = ImageTransform(DATA_CONFIG, max_tiles=6)
    image = colourful(96, 64)
    (tmp_path / "a.png").write_bytes(encoded(image, "PNG"))
    shown = shown_image(transform, ImageRef(str(tmp_path / "a.png"), 0, (tmp_path / "a.png").stat().st_size), "a")
    rows, columns = tile_image(transform, image).grid
    assert (len(shown.tiles), {len(row) for row in shown.tiles}) == (rows, {columns})
    assert f"{rows} × {columns} tiles" in shown.size
    whole = Image.new("RGB", (columns * 32, rows * 32))
    for row, uris in enumerate(shown.tiles):
        for column, uri in enumerate(uris):
            tile = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
            whole.paste(tile, (column * 32, row * 32))
    assert list(whole.getdata()) == list(transform.fit(image, rows * 32, columns * 32).getdata())


def test_native_resolution_says_its_patches(tmp_path):
    transform = ImageTransform(DATA_CONFIG, patch_size=8, max_patches=16)
    (tmp_path / "a.png").write_bytes(encoded(colourful(64, 32), "PNG"))
    shown = shown_image(transform, ImageRef(str(tmp_path / "a.png"), 0, (tmp_path / "a.png").stat().st_size), "a")
    assert re.fullmatch(r"\d+ × \d+ pixels, \d+ rows of \d+ patches", shown.size)


@given(st.lists(st.booleans(), min_size=1, max_size=30))
@settings(max_examples=60)
def test_a_token_sees_the_last_group_before_it_or_all_images(is_image):
    last, every, number = [], [], 0
    group: tuple[int, ...] = ()
    for column, is_place in enumerate(is_image):
        if is_place:
            group = (*group, number) if column and is_image[column - 1] else (number,)
            number += 1
        closes = not (is_place and column + 1 < len(is_image) and is_image[column + 1])
        last.append(group if closes else None)
        every.append(tuple(range(number)))
    # Inside a group, whose last place alone closes it, a place sees the group before.
    before: tuple[int, ...] = ()
    expected = []
    for one in last:
        before = before if one is None else one
        expected.append(before)
    assert seen_images(is_image, sees_all=False) == expected
    for seen, so_far, is_place in zip(seen_images(is_image, sees_all=True), every, is_image, strict=True):
        assert set(seen) <= set(so_far)
        assert is_place or set(seen) == set(so_far)


def test_turns_with_images_see_their_own(model):
    turns = (*about_images(2, question="A?", answer="B."), *about_images(1, question="C?", answer="D."))
    shown = shown_text(tiny_tokenizer(), Text("conversation", turns), 200, sees_all=False)
    assert [run.sees for run in shown.runs] == [(), (0, 1), (2,)]
    trained = "".join(t.text for run in shown.runs for t in run.tokens if "trained" in t.kind)
    assert trained == "B.<|im_end|>D.<|im_end|>"


def test_every_token_is_shown_once_and_counted():
    shown = shown_text(tiny_tokenizer(), caption_text("the cat é 猫"), 200, sees_all=False)
    columns = [token.column for run in shown.runs for token in run.tokens]
    assert columns == list(range(shown.length))
    assert shown.trained == sum("trained" in token.kind for run in shown.runs for token in run.tokens)
    assert shown.cut == shown.hidden == 0
