"""The page: whole, safe, and free of anything that reaches outside it."""

import re
from html.parser import HTMLParser

import pytest

from arlow_vl.errors import DataError
from arlow_vl.evaluation.report.page import format_duration, images_in_shards, write_report
from arlow_vl.evaluation.results import write_json
from tests.evaluation.made_results import image_of, write_captions, write_questions

MARKUP = "<script>alert('x')</script> & \"quoted\""
META = {
    "title": f"A title {MARKUP}",
    "summary": MARKUP,
    "checkpoint": {"path": MARKUP, "sha256": "ab" * 32},
    "decode": {"method": "greedy"},
    "data": [{"name": MARKUP, "license": MARKUP, "use": MARKUP}],
    "versions": {"torch": MARKUP},
    "wall_seconds": {"text stage": 3723.0},
    "hardware": MARKUP,
    "reproduce": [MARKUP],
    "gates": {f"layer 1 {MARKUP}": -0.25, "layer 2": 0.5},
    "curves": [
        {
            "title": MARKUP,
            "train": [[i, 9 / i] for i in range(1, 900)],
            "validation": [[1, 8], [899, 2]],
            "unigram_entropy": 6.5,
        },
        {"title": "vision", "run": "run"},
    ],
}


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br", "line", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def make_folder(folder):
    write_captions(folder, model=MARKUP)
    write_captions(folder, "captions-test-novel")
    write_questions(folder)
    write_json(folder / "meta.json", META)
    write_json(folder / "text.json", {"bits_per_byte_before": "0x1.8p+0", "bits_per_byte_after": "0x1.8p+0"})
    (folder / "run").mkdir()
    rows = ["step,train_loss,lr,validation_loss", "1,5.5,0.1,", "2,4.5,0.1,", "2,,,4.25"]
    (folder / "run" / "metrics.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("results"))
    write_report(folder, folder / "report.html", image_of=image_of)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_every_tag_is_closed(page):
    assert page.open == []


def test_markup_in_captions_and_meta_is_shown_and_does_not_act(text, page):
    assert text.count("&lt;script&gt;") >= 12
    assert "script" not in {tag for tag, _ in page.tags}


def test_nothing_on_the_page_reaches_the_network(text, page):
    sources = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if name in attributes]
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"url\(|@import", text)
    policies = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_images_keep_their_format_and_have_alternative_texts(page):
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    formats = {re.match(r"data:image/(\w+);base64,", image["src"])[1] for image in images}
    assert formats == {"png", "jpeg", "webp"}
    assert all(image["alt"] for image in images)


def test_every_test_image_fits_on_a_small_sheet_before_the_picked_ones(text):
    known = text[text.index("Captions of new images") : text.index("best by CIDEr-D")]
    assert known.count("<figure") == 12


def test_every_score_stands_beside_its_controls(text):
    tables = re.findall(r'<div class="scores".*?</div>\s*</div>', text, flags=re.DOTALL)
    assert len(tables) == 2 * 5 + 3
    for table in tables:
        assert "shown another image" in table and "shown no image" in table and table.count("<svg") == 5


def test_equal_text_before_and_after_is_said_to_be_equal(text):
    assert "✓ Equal to the last bit" in text
    assert "1.5 " in text and "0x1.8p+0" in text


def test_changed_text_is_said_to_differ(tmp_path):
    folder = make_folder(tmp_path)
    write_json(folder / "text.json", {"bits_per_byte_before": "0x1.8p+0", "bits_per_byte_after": "0x1.9p+0"})
    write_report(folder, tmp_path / "report.html", image_of=image_of)
    assert "✗ NOT equal" in (tmp_path / "report.html").read_text()


def test_curves_come_from_lists_and_from_metrics_files(text):
    assert "train loss from 9.000 to 0.010; validation loss from 8.000 to 2.000" in text
    assert "train loss from 5.500 to 4.500; validation loss from 4.250 to 4.250" in text
    assert "unigram entropy 6.50" in text


def test_a_long_curve_is_thinned(page):
    drawn = [attributes["points"].count(",") for tag, attributes in page.tags if tag == "polyline"]
    assert max(drawn) <= 160


def test_a_page_needs_no_meta(tmp_path):
    write_captions(tmp_path)
    write_report(tmp_path, tmp_path / "report.html", image_of=image_of)
    assert "<h1>Arlow-VL: results</h1>" in (tmp_path / "report.html").read_text()


def test_confusions_count_every_answer(text):
    (row,) = re.findall(r'<th scope="row">teal</th>(.*?)</tr>', text)
    assert re.findall(r">(\d+)</td>", row) == ["0", "0", "0", "1"]


def test_bytes_of_no_image_are_named(tmp_path):
    write_captions(tmp_path)
    with pytest.raises(DataError, match="is no JPEG, PNG or WebP"):
        write_report(tmp_path, tmp_path / "report.html", image_of=lambda key: b"GIF89a")


def test_a_run_without_metrics_is_named(tmp_path):
    write_captions(tmp_path)
    write_json(tmp_path / "meta.json", {"curves": [{"title": "text", "run": "nowhere"}]})
    with pytest.raises(DataError, match=r"nowhere/metrics\.csv"):
        write_report(tmp_path, tmp_path / "report.html", image_of=image_of)


def test_images_are_found_in_shards_by_key():
    from arlow_vl.data.shards import scan_shards
    from tests.tiny_runs import SAMPLES

    shards = sorted((SAMPLES / "captions").glob("test-*.tar"))
    sample = scan_shards(shards).samples[-1]
    find = images_in_shards(shards)
    assert find(sample.key) == sample.read_image()
    with pytest.raises(DataError, match="'nothing' is in none of the 2 shards"):
        find("nothing")


@pytest.mark.parametrize(("seconds", "text"), [(2.25, "2.2 s"), (61, "1 min 01 s"), (3723, "1 h 02 min")])
def test_durations_read_well(seconds, text):
    assert format_duration(seconds) == text


def test_the_headline_is_over_all_questions_with_the_kinds_below(text):
    headline = text[text.index('<ul class="headlines">') : text.index("</ul>")].split("<li>")[-1]
    assert '<p class="big">83.3%</p>' in headline
    assert "accuracy, all questions" in headline
    assert headline.index("83.3%") < headline.index("model on other</dt><dd>66.7%") < headline.index("model on yes/no")


def test_ciders_scale_stands_beside_every_figure_of_it(text):
    assert text.count("CIDEr-D, 10 at most") >= 4  # headline and table of two tasks
    assert not re.search(r"CIDEr-D [\d.]+(?! of 10)<", text)


def test_nothing_is_said_of_data_that_say_nothing(tmp_path):
    write_captions(tmp_path)
    write_report(tmp_path, tmp_path / "report.html", image_of=image_of)
    page = (tmp_path / "report.html").read_text().lower()
    for claim in ("stamps", "clip art", "emoji", "coco", "drawing", "make demo", "licence"):
        assert claim not in page


def test_answers_of_which_nothing_is_left_are_told_apart_on_the_page(tmp_path):
    write_questions(tmp_path, answer_is_article=True)
    write_report(tmp_path, tmp_path / "report.html", image_of=image_of)
    page = (tmp_path / "report.html").read_text()
    assert "shown no image: 6 predictions of which normalisation leaves nothing" in page
    (row,) = re.findall(r'<th scope="row">a</th>(.*?)</tr>', page)[:1]
    assert re.findall(r">(\d+)</td>", row) == ["3", "0"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("title", 5),
        ("gates", {"layer 1": "open"}),
        ("wall_seconds", {"text": None}),
        ("data", [{"licence": "MIT"}]),
        ("data", "all"),
        ("checkpoint", {"path": 3}),
        ("versions", ["torch"]),
        ("curves", [{"title": "a", "run": 7}]),
        ("curves", [{"title": "a", "train": [[1]]}]),
        ("curves", [{"title": "a", "train": [[1, "x"]]}]),
        ("reproduce", "make demo"),
    ],
)
def test_a_key_of_meta_with_another_kind_of_value_is_named(tmp_path, key, value):
    write_captions(tmp_path)
    write_json(tmp_path / "meta.json", {key: value})
    with pytest.raises(DataError, match=rf"meta\.json: {key} is not what"):
        write_report(tmp_path, tmp_path / "report.html", image_of=image_of)


@pytest.mark.parametrize("value", ["0xzz", "0x", "1.5", 7, None, "0x1p99999"])
def test_a_proof_that_is_no_hexadecimal_number_is_shown_as_it_is(tmp_path, value):
    write_captions(tmp_path)
    write_json(tmp_path / "text.json", {"loss_before": value, "loss_after": value})
    write_report(tmp_path, tmp_path / "report.html", image_of=image_of)
    assert "✓ Equal to the last bit" in (tmp_path / "report.html").read_text()
