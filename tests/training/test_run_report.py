"""The page of a run: whole, self-contained, made again at any time, of what the run folder holds."""

import json
import re
from html.parser import HTMLParser

import pytest

from arlow_vl.cli import main
from arlow_vl.training.look_results import Look, SampleLook, SourceLook
from arlow_vl.training.recipe_parsing import parse_recipe
from arlow_vl.training.report.folder import read_run
from arlow_vl.training.report.page import image_uri, spread, write_run_report
from arlow_vl.training.run import fit
from tests.tiny_runs import write_image_text_recipe

VOID = {"meta", "img", "line", "rect", "polyline", "br"}


class Page(HTMLParser):
    """Checks that each element is closed in its order, and collects texts, images and outside addresses."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.outside: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                (self.images if value.startswith("data:image/jpeg;base64,") else self.outside).append(value)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    config = write_image_text_recipe(folder)
    watch = ["--run.watch.show_samples", "2", "--run.watch.keep_best", "validation_loss", "--run.skip_steps", "[2]"]
    fit(parse_recipe(["--config", str(config), *watch]))
    return folder / "run"


def test_a_run_ends_with_a_page_that_needs_nothing_outside_of_it(run_dir):
    html = (run_dir / "report.html").read_text()
    page = Page(html)
    assert page.outside == [] and "script" not in page.tags and "link" not in page.tags
    assert "http" not in re.sub(r"http-equiv", "", html)
    assert len(page.images) == 4
    assert 'name="viewport"' in html and "prefers-color-scheme: dark" in html


def test_the_page_says_how_the_run_went(run_dir):
    text = Page((run_dir / "report.html").read_text()).text
    start = json.loads((run_dir / "starts.jsonl").read_text())
    expected = [
        "finished, 6 of 6 steps",
        "lies in best",
        "1 step changed nothing: skipped",
        "What a wrong image costs",
        "Attention gates",
        "MFU",
        "validation loss captions",
        "run.watch.show_samples 2",
        f"torch {start['versions']['torch']}",
        start["data"]["training"]["captions"]["fingerprint"],
        "No sample turned out unusable",
    ]
    assert [words for words in expected if words not in text] == []
    for look in read_run(run_dir).looks:
        assert f"step {look.step}" in text
        assert all(sample.reference in text for source in look.sources for sample in source.samples)


def test_arlow_report_makes_the_same_page_again(run_dir, capsys, tmp_path):
    before = (run_dir / "report.html").read_text()
    assert main(["report", str(run_dir), "--output", str(tmp_path / "again.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'again.html'}\n"
    assert (tmp_path / "again.html").read_text() == before


@pytest.fixture
def small(tmp_path):
    """A run folder that holds no more than the first files of a run."""
    (tmp_path / "config.yaml").write_text("stage: text\nrun: {max_steps: 9}\n")
    (tmp_path / "metrics.csv").write_text("step,train_loss,lr\n1,2.5,0.1\n2,nan,0.1\n3,1e60,0.1\n4,2.0,0")
    return tmp_path


def test_a_run_that_goes_on_has_a_page_too(small):
    text = Page(write_run_report(small).read_text()).text
    assert "3 of 9 steps so far" in text and "last 2.5" in text


def test_a_step_that_was_skipped_is_no_point_of_a_curve_but_one_of_the_steps(run_dir, small):
    columns = read_run(run_dir).columns
    for name in ("train_loss", "tokens_per_second"):
        assert [step for step, _ in columns[name]] == [1, 3, 4, 5, 6]
    (small / "metrics.csv").write_text("step,train_loss,lr\n1,2.5,0.1\n2,,\n")
    assert "2 of 9 steps so far" in Page(write_run_report(small).read_text()).text


def test_texts_from_outside_stay_texts(small):
    sample = SampleLook("<b>k", prompt="<em>", reference="<script>1</script>", written="&amp;", images=["../x.jpg"])
    look = Look(2, [SourceLook("<u>", [sample])], is_validation=True)
    (small / "looks.jsonl").write_text(json.dumps(look.to_plain()) + "\n")
    (small / "quarantine.jsonl").write_text('{"source": "<s>", "key": "<q>", "reason": "truncated", "detail": ""}\n')
    page = Page(write_run_report(small).read_text())
    assert not {"script", "b", "em", "u", "s", "q"} & page.tags and page.images == []
    assert "<script>1</script>" in page.text and "truncated" in page.text and "<q>" in page.text


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("steps.jsonl", "{}\nnot json\n", r"steps.jsonl, line 2: no line of a run"),
        ("looks.jsonl", '{"step": 1}\n', r"looks.jsonl, line 1: no line of a run"),
        ("metrics.csv", "step,train_loss\none,2\n", r"metrics.csv is not what a run writes"),
        ("config.yaml", "[1", r"config.yaml is not what a run writes"),
        ("config.yaml", "a: 1\n", r"config.yaml is no recipe of a run"),
    ],
)
def test_a_damaged_file_is_named(small, capsys, name, content, sentence):
    (small / name).write_text(content)
    assert main(["report", str(small)]) == 3
    assert re.search(sentence, capsys.readouterr().err)
    assert not (small / "report.html").exists()


def test_a_line_that_is_being_written_is_passed_over(small):
    (small / "steps.jsonl").write_text('{"step": 1, "loss": "0x1p0", "keys": ["a"], "left_out": "spike"}\n{"st')
    assert list(read_run(small).left_out) == ["spike"]


def test_images_come_from_the_run_folder_alone(small):
    (small.parent / "outside.jpg").write_bytes(b"\xff\xd8")
    assert image_uri(small, "../outside.jpg") is None
    assert image_uri(small, "looks/gone.jpg") is None


@pytest.mark.parametrize(("count", "chosen"), [(3, [0, 1, 2]), (6, [0, 1, 2, 3, 4, 5]), (11, [0, 2, 4, 6, 8, 10])])
def test_looks_are_chosen_from_the_first_to_the_last(count, chosen):
    assert spread(range(count), 6) == chosen
