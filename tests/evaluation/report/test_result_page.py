"""The page of results: whole, safe, free of anything that reaches outside it, and showing what was said."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

import arlow_vl
from arlow_vl.cli import main
from arlow_vl.evaluation.report.material import find_material
from arlow_vl.evaluation.report.page import write_report
from arlow_vl.evaluation.tasks.results import read_results
from arlow_vl.evaluation.tasks.task import load_task
from tests.evaluation.made_results import CAPTIONS, QUESTIONS, but_teal, image_bytes, write_data, write_results

MARKUP = "<script>alert('x')</script> & \"quoted\" \u202e\x00"


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


def page_of(folder, **settings):
    write_report(folder, folder / "report.html", **settings)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_samples_that_show_one_image_are_each_found_again(tmp_path):
    data = write_data(tmp_path / "data", lambda number: image_bytes(number % 2))
    write_results(tmp_path / "results", data, QUESTIONS, {})
    (results,) = read_results(tmp_path / "results")
    rows = results.systems["model"]
    assert len(rows) == 6 and len({row.image for row in rows}) == 2
    assert find_material(results, {row.id for row in rows}).items.keys() == {row.id for row in rows}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """Two tasks; captions of one image are markup, and the model errs in one of six answers."""
    folder = tmp_path_factory.mktemp("results")
    run = folder / "run"
    (run / "hf").mkdir(parents=True)
    (run / "metrics.csv").write_text("step,train_loss,lr,validation_loss\n1,5.5,0.1,\n2,4.5,0.1,\n2,,,4.25\n")
    model = {"model": {"path": str(run / "hf"), "sha256": "ab" * 32}}
    says = {"model": lambda item: MARKUP if item.answers == ("a red dog",) else item.answers[0], "shuffled": MARKUP}
    write_results(folder / "results", data, CAPTIONS, says, **model, prompt=MARKUP, device=MARKUP, command=MARKUP)
    write_results(folder / "results", data, QUESTIONS, {"model": but_teal}, **model)
    return folder / "results"


@pytest.fixture(scope="module")
def text(made):
    return page_of(made)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


@pytest.fixture
def folder(made, tmp_path):
    """The results, to be changed."""
    return shutil.copytree(made, tmp_path / "results")


def test_every_tag_is_closed(page):
    assert page.open == []


def test_markup_is_shown_and_does_not_act_and_neither_do_control_characters(text, page):
    assert text.count("&lt;script&gt;") >= 12
    assert "script" not in {tag for tag, _ in page.tags}
    assert "\u202e" not in text and "\x00" not in text and r"\u202e\x00" in text


def test_nothing_on_the_page_reaches_the_network(text, page):
    sources = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if name in attributes]
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"url\(|@import", text)
    policies = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_every_image_has_an_alternative_text(page):
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) >= 2 * 12 and all(image["alt"] for image in images)


def test_every_score_of_every_group_stands_beside_its_controls(text):
    tables = re.findall(r'<div class="scores".*?</div>\s*</div>', text, flags=re.DOTALL)
    assert len(tables) == 5 + 4  # CIDEr-D and four orders of BLEU; all questions and three groups of them
    for table, name in zip(tables, [CAPTIONS] * 5 + [QUESTIONS] * 4, strict=True):
        assert table.count("<svg") == 1 + len(load_task(name).controls)
        assert "shown another image" in table and "shown no image" in table
        assert table.count('class="badge') == len(load_task(name).controls)


def test_scores_of_few_images_are_marked_where_they_are_shown(text):
    assert "(12 items, 12 images)</h3>" in text and text.count("Fewer than 10 images: scores that say little.") == 1
    groups = re.findall(r"<summary>accuracy: ([^<]*)</summary>\s*<p class=\"wrong\">([^<]*)</p>", text)
    assert [name for name, _ in groups] == [
        "where the prior is wrong (3 items, few)",
        "other (3 items, few)",
        "yes/no (3 items, few)",
    ]
    assert {told for _, told in groups} == {"Fewer than 10 images: a score that says little."}


def test_the_headline_of_questions_is_over_all_of_them(text):
    found = re.findall(r'<p class="note">([^<]*)</p>\s*<p class="big">([^<]*)</p>', text)
    assert [figure for _, figure in found][1] == "83.3%"  # five of six; of those that are neither yes nor no, 66.7


def test_no_word_of_the_demo_is_written_into_pages():
    folder = Path(arlow_vl.__file__).parent
    templates = [*folder.glob("pages/*.html"), *folder.glob("*/report/*.html")]
    assert len(templates) == 3
    for template in templates:
        assert not re.search("make demo|stamps|clip art|emoji|easy-vqa", template.read_text(), re.IGNORECASE)


def test_ciders_scale_stands_beside_it(text):
    assert "CIDEr-D, 10 at most [" in text


def test_what_was_said_of_a_sample_stands_beside_its_image(text):
    figure = next(f for f in text.split("<figure")[1:] if "a small boat" in f)
    assert "data:image/" in figure and "shown another image" in figure and "a tree" in figure
    assert figure.count("a small boat") >= 2  # the reference, and what the model said


def sheet(text, title):
    """The cards of the first sheet with this title."""
    return text.split(f"<h3>{title}")[1].split("<h3>")[0].split("<figure")[1:]


def test_best_and_worst_are_by_the_first_metric(text):
    assert "&lt;script&gt;" in sheet(text, "The worst by CIDEr-D")[0]
    assert all("10 at most: 7.50" in card for card in sheet(text, "The best by CIDEr-D"))


def test_surprises_are_wrong_answers_that_were_likely_and_right_ones_that_were_not(text):
    (wrong,) = sheet(text, "Wrong, and what the model found most likely")[-1:]
    assert "teal" in wrong and "✗ wrong" in wrong
    questions = text[text.index("<h2>Questions of easy-VQA") :]
    nats = [float(n) for n in re.findall(r"−([\d.]+) nats", "".join(sheet(questions, "Right, and what the model")))]
    assert len(nats) == 5 and nats == sorted(nats, reverse=True)


def test_confusions_count_every_answer(text):
    (row,) = re.findall(r'<th scope="row">teal</th>(.*?)</tr>', text)
    assert re.findall(r">(\d+)</td>", row) == ["0", "0", "0", "1"]


def test_curves_of_the_run_that_lies_beside_are_drawn(text):
    assert "train loss from 5.500 to 4.500; validation loss from 4.250 to 4.250" in text


def test_the_stage_before_is_found_by_the_recipe(made, data, tmp_path):
    for name, recipe in (("first", "stage: text"), ("second", "text_checkpoint: first/hf")):
        (tmp_path / name / "hf").mkdir(parents=True)
        (tmp_path / name / "metrics.csv").write_text("step,train_loss\n1,3\n")
        (tmp_path / name / "config.yaml").write_text(recipe)
    page = page_of(made, model=tmp_path / "second" / "hf")
    assert page.index(f"<h3>{tmp_path / 'first'}") < page.index(f"<h3>{tmp_path / 'second'}")


def test_how_it_came_to_be_and_how_to_do_it_again_are_told(text):
    assert "SHA-256 " + "ab" * 32 in text and "greedy: max new tokens 24" in text and "drawn" in text and "CC0" in text
    assert "arlow evaluate --model runs/gone/hf --task easy-vqa" in text and "arlow reproduce " in text
    assert "−0.250" in text and "layer 1, MLP" in text


def test_heat_is_left_out_with_a_sentence_where_the_model_is_another_or_gone(text, made, tmp_path):
    assert "is not the model that was evaluated" in text
    assert "is no longer there; `arlow report --model FOLDER` names it" in page_of(made, model=tmp_path / "gone")
    assert "Where the model looked" not in page_of(made, tested=0)


def test_images_that_are_gone_leave_a_sentence(made, data, tmp_path):
    moved = shutil.copytree(data, tmp_path / "data")
    write_results(tmp_path / "results", moved, QUESTIONS, {})
    shutil.rmtree(moved)
    page = page_of(tmp_path / "results")
    assert "Images are not shown, as the data cannot be read" in page and "<img" not in page
    assert page.count("<figure") >= 6


def test_data_that_have_changed_are_not_shown_for_those_that_were_evaluated(made, data, tmp_path):
    write_results(tmp_path / "results", data, QUESTIONS, {})
    path = tmp_path / "results" / QUESTIONS / "metrics.json"
    told = json.loads(path.read_text())
    told["data"]["sha256"] = "cd" * 32
    path.write_text(json.dumps(told))
    assert "holds other data than were evaluated" in page_of(tmp_path / "results")


def test_an_image_that_cannot_be_decoded_leaves_a_sentence_in_its_place(tmp_path):
    data = write_data(tmp_path / "data", image_of=lambda number: image_bytes(number) if number else b"\x89PNG no")
    write_results(tmp_path / "results", data, QUESTIONS, {})
    page = page_of(tmp_path / "results")
    cards = page.split("<figure")[1:]
    broken = [card for card in cards if "The image cannot be shown: test-000000.tar:shape-0" in card]
    assert 2 <= len(broken) < len(cards) and all("<img" not in card for card in broken)
    assert "data:image/png" in page


def test_predictions_that_were_not_scored_are_refused(folder):
    path = folder / QUESTIONS / "shuffled" / "predictions.jsonl"
    path.write_text(path.read_text().replace('"output": "yes"', '"output": "no"'))
    with pytest.raises(ValueError, match=r"shuffled/predictions\.jsonl: other predictions than those that metrics"):
        page_of(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"scores": 3},
        {"scores": {"metrics": {}}},
        {"versions": ["torch"]},
        {"model": {"path": "x"}},
        {"overlap": None},
        {"data": {"source": "x"}},
        {"predictions": []},
        {"gates": {"layer 1": "open"}},
    ],
)
def test_a_part_of_another_kind_is_named_with_its_file(folder, change):
    path = folder / QUESTIONS / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"easy-vqa/metrics\.json: .* is missing or of another kind; run `arlow"):
        page_of(folder)


def test_proofs_that_lie_beside_the_results_are_shown(folder):
    checks = [{"claim": f"claim {MARKUP} \ud800", "holds": True, "found": "2.5 bits a byte before, 2.5 after"}]
    (folder / "frozen.json").write_text(json.dumps({"holds": True, "checks": checks}))
    assert "✓ As it was, to the last bit" in (page := page_of(folder)) and "2.5 bits a byte before, 2.5 after" in page
    (folder / "frozen.json").write_text(json.dumps({"checks": [checks[0] | {"holds": False}]}))
    assert "✗ NOT as it was" in page_of(folder)
    (folder / "frozen.json").write_text('{"checks": [{"claim": 3}]}')
    with pytest.raises(ValueError, match=r"frozen\.json: no findings of `arlow verify-frozen`"):
        page_of(folder)


def test_tests_of_heat_that_lie_beside_the_results_are_drawn(folder):
    one = {"estimate": 1.25, "low": 0.5, "high": 2.0}
    layer = {"layer": 5, "images": 9, "words": 40, "over_random": one, "over_least": one | {"low": -1}}
    layer |= {"falls": {order: [one] * 5 for order in ("most", "random", "least")}}
    path = folder / "heat.json"
    path.write_text(json.dumps({"shares": [0.125, 0.25, 0.5, 0.75, 0.875], "layers": [layer]}))
    page = page_of(folder)
    assert "<h3>Layer 5" in page and page.count("[0.50, 2.00]") == 15 and "9 images" in page
    assert "most minus random: +1.25 [+0.50, +2.00]" in page
    path.write_text(json.dumps({"shares": [0.5], "layers": []}))
    with pytest.raises(ValueError, match=r"heat\.json: no tests of heat maps"):
        page_of(folder)


def test_a_folder_without_results_says_what_to_run(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 3
    assert "holds no results (<task>/run.json); run `arlow evaluate" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is no folder; `arlow evaluate" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["1", "-2", "many", "2.5"])
def test_heat_is_tested_on_two_images_at_least(tmp_path, capsys, number):
    assert main(["report", str(tmp_path), "--heat", number]) == 2
    assert "--heat: must be 0, or 2 at least for an interval over images" in capsys.readouterr().err
