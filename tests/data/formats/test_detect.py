"""What a path is, or the sentence that says why it is nothing."""

import json
import re
from pathlib import Path

import pytest

from arlow_vl.data.formats.detect import FORMATS, open_source
from arlow_vl.data.index.places import place_of
from arlow_vl.errors import DataError
from tests.outside_data import samples, tar_of

ROOT = Path(__file__).parents[3]
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
QUESTIONS, ANSWERS = {"questions": []}, {"annotations": [{"question_type": "x"}]}
COCO = {"info": {}, "licenses": [], "images": [{"id": 1}], "annotations": []}

# Files of a folder, what is named of it, and its format.
KINDS = {
    "a tar": ({"a.tar": b""}, "a.tar", "webdataset"),
    "a folder of tars": ({"a.tar": b"", "b.tar": b"", "index.json": {}}, "", "webdataset"),
    "a glob of tars": ({"a.tar": b"", "notes.md": b""}, "*.tar", "webdataset"),
    "a table of captions": ({"captions.csv": "", "a.jpg": b""}, "", "captions"),
    "a csv of any name": ({"mine.csv": ""}, "mine.csv", "captions"),
    "captions in a list": ({"a.json": [{"image": "a.jpg", "caption": "x"}]}, "a.json", "captions"),
    "text files": ({"a.jpg": b"", "a.txt": "x"}, "", "sidecars"),
    "chats": ({"a.jsonl": [CHAT]}, "a.jsonl", "conversations"),
    "chats in a list": ({"a.json": [CHAT]}, "", "conversations"),
    "LLaVA": ({"a.json": [{"id": "1", "image": "a.jpg", "conversations": []}]}, "a.json", "conversations"),
    "COCO": ({"a.json": COCO}, "a.json", "coco"),
    "both files of VQAv2": ({"q.json": QUESTIONS, "a.json": ANSWERS}, "*.json", "vqa"),
    "both files of VQAv2 in a folder": ({"q.json": QUESTIONS, "a.json": ANSWERS}, "", "vqa"),
    "GQA": ({"a.json": {"1": {"semantic": [], "question": "?", "imageId": "2"}}}, "a.json", "gqa"),
    "TextVQA": ({"a.json": {"data": [{"image_id": "1", "question": "?"}]}}, "a.json", "textvqa"),
    "parquet": ({"a.parquet": b""}, "", "parquet"),
    "tars of img2dataset": ({"0.tar": b"", "0.parquet": b"", "0_stats.json": {}}, "", "webdataset"),
    "parquet with notes": ({"a.parquet": b"", "dataset_info.json": {}, "notes.txt": "x"}, "", "parquet"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_format_is_found_out(folder, kind):
    files, name, expected = KINDS[kind]
    for file, content in files.items():
        folder.write(file, content)
    source = open_source(folder.path / name)
    assert source.format == expected
    assert all(file.is_file() for file in source.files)


LONG = "data:image/png;base64," + "A" * 400_000
LLAVA = {"id": "1", "image": LONG, "conversations": []}


@pytest.mark.parametrize(
    ("name", "content"),
    {"a.jsonl": [LLAVA], "a.json": [LLAVA], "b.json": [{"text": LONG.replace("A", '\\"text\\": '), **LLAVA}]}.items(),
)
def test_annotations_behind_an_image_in_their_record_are_found(folder, name, content):
    folder.write(name, content)
    assert open_source(folder.path / name).format == "conversations"


SENTENCES = {
    "an empty folder": ({}, "", r"nothing to read in this folder; looked for \.tar shards"),
    "images alone": ({"a.jpg": b""}, "", r"images without a text; write a metadata\.csv"),
    "nothing": ({}, "gone.jsonl", r"no such file or folder: .*gone\.jsonl; name \.tar shards"),
    "a glob of nothing": ({}, "*.tar", r"no such file or folder: .*\*\.tar"),
    "a glob of several kinds": ({"a.tar": b"", "a.csv": b""}, "a.*", r"files of several kinds \(\.csv, \.tar\)"),
    "a file of no kind": ({"a.docx": b""}, "a.docx", r"a\.docx: of no kind that is known; name \.tar"),
    "foreign JSON": ({"a.json": {"a": 1}}, "a.json", r"no annotations that are known; looked for messages.*format:"),
    "several formats": ({"a.json": COCO, "b.json": [CHAT]}, "", r"several formats: a\.json \(coco\), b\.json \(conv"),
    "two tables": ({"metadata.csv": "", "captions.csv": ""}, "", r"several kinds \(captions\.csv, metadata\.csv\)"),
    "a table and tars": ({"metadata.csv": "", "a.tar": b""}, "", r"\(metadata\.csv, a\.tar\), of which one would be"),
    "parquet and chats": ({"a.parquet": b"", "b.jsonl": [CHAT]}, "", r"\(a\.parquet, b\.jsonl\).*name one of these"),
    "chats and captions": ({"a.jpg": b"", "a.txt": "x", "b.jsonl": [CHAT]}, "", r"\(b\.jsonl, a\.txt\)"),
    "COCO and captions": ({"a.jpg": b"", "a.txt": "x", "b.json": COCO}, "", r"\(a\.txt, b\.json\)"),
    "folders of tars": ({"x/a.tar": b"", "y/a.tar": b""}, "", r"it holds the folders x, y: name one, or a glob"),
    "UTF-16": (
        {"a.jsonl": json.dumps(CHAT).encode("utf-16")},
        "a.jsonl",
        r"a\.jsonl: is UTF-16 text; save it as UTF-8",
    ),
    "answers alone": ({"a.json": ANSWERS}, "a.json", r"a\.json: not one question file with its annotations"),
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_what_cannot_be_a_source_is_one_sentence(folder, kind):
    files, name, sentence = SENTENCES[kind]
    for file, content in files.items():
        folder.write(file, content)
    with pytest.raises(DataError, match=sentence):
        open_source(folder.path / name)


@pytest.mark.parametrize("address", ["pipe:touch sentinel", "PIPE:touch sentinel"])
def test_commands_are_refused(address):
    with pytest.raises(DataError, match="no command is run to read data; name a file, a folder or an address"):
        open_source(address)


def test_a_range_of_files_is_a_source_in_the_order_of_its_numbers(folder):
    for number in (8, 9, 10, 11):
        folder.write(f"{number:02d}.tar", tar_of(*samples("0")))
    assert [file.name for file in open_source(folder.path / "{08..10}.tar").files] == ["08.tar", "09.tar", "10.tar"]


def test_a_format_that_is_told_goes_before_what_is_found(folder):
    folder.write("a.jsonl", [CHAT])
    assert open_source(folder.path / "a.jsonl", format="captions").format == "captions"
    with pytest.raises(DataError, match="no format is called 'nonsense'; write one of webdataset, captions"):
        open_source(folder.path / "a.jsonl", format="nonsense")


@pytest.mark.parametrize("format", ["captions", "webdataset", "sidecars", "conversations"])
def test_a_format_says_which_files_of_a_folder_are_meant(folder, format):
    folder.images("a.jpg").write("metadata.csv", "file_name,text\na.jpg,x\n")
    folder.write("a.txt", "x")
    folder.write("b.jsonl", [CHAT])
    folder.write("c.tar", tar_of(*samples("0")))
    assert len(folder.read(format=format)) == 1


def test_a_root_that_is_no_folder_is_one_sentence(folder):
    folder.write("a.jsonl", [CHAT])
    with pytest.raises(DataError, match="no such folder of images; name the one that image paths start from"):
        open_source(folder.path / "a.jsonl", images=folder.path / "gone")


def test_a_source_with_nothing_usable_says_why(folder):
    folder.write("a.tar", tar_of(("0.txt", b"x"), ("1.txt", b"x")))
    folder.read("a.tar")
    with pytest.raises(DataError, match=r"x: 2 of 2 samples are unusable, .*: missing_image 2 \(as a\.tar:0"):
        folder.source.tally.check("x")


def test_the_summary_counts_texts_too(folder):
    questions = b'{"questions": [{"question": "?", "answer": ""}, {"question": "?", "answer": "yes"}]}'
    folder.write("a.tar", tar_of(*samples("0"), ("0.json", questions), ("0.cls", b"")))
    folder.read("a.tar")
    summary = "1 sample can be used, 0 skipped, 1 question skipped (empty_answer 1), 1 member ignored (.cls 1)"
    assert folder.source.tally.summary() == summary
    with pytest.raises(DataError, match=r"1 of 2 questions is unusable, .* empty_answer 1 \(as a\.tar:0, question 0\)"):
        folder.source.tally.check("x")


@pytest.mark.parametrize(("name", "task"), [("captions", "caption"), ("easy-vqa", "question")])
def test_the_shards_of_the_samples_are_a_source(name, task):
    source = open_source(ROOT / "tests/samples" / name)
    samples = list(source.iterate())
    assert len(samples) == source.tally.samples
    assert task in {text.task for text in samples[0].texts}
    source.tally.check(name, 0.0)


def test_the_docs_name_every_format():
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs/formats.md").read_text().partition("`format=`")[0], re.MULTILINE)
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == list(FORMATS)


def test_a_glob_over_folders_finds_the_images_beside_each_file(folder):
    folder.images("a/1.png", "b/1.png")
    for name in "ab":
        folder.write(f"{name}/metadata.csv", f"file_name,text\n1.png,caption of {name}\n")
        folder.write(f"{name}/chat.jsonl", [{"image": "1.png", "messages": CHAT["messages"]}])
        folder.write(f"{name}/coco.json", coco_of(name))
    for pattern, keys in (
        ("*/metadata.csv", ["a/1.png", "b/1.png"]),
        ("*/chat.jsonl", ["a/chat.jsonl: line 1", "b/chat.jsonl: line 1"]),
        ("*/coco.json", ["a", "b"]),
    ):
        found = folder.read(pattern)
        assert [sample.key for sample in found] == keys
        assert [sample.images[0].path for sample in found] == [str(folder.path / name / "1.png") for name in "ab"]


@pytest.mark.parametrize("pattern", ["run[1]/t-*.jsonl", "run[1]/t-{0..1}.jsonl", "run[[]1]/t-?.jsonl"])
def test_the_brackets_of_a_folder_that_is_there_are_no_glob(folder, pattern):
    for name in ("run[1]/t-0.jsonl", "run[1]/t-1.jsonl", "run1/t-0.jsonl", "run1/t-1.jsonl"):
        folder.write(name, [CHAT])
    assert open_source(folder.path / pattern).files == [folder.path / "run[1]" / f"t-{n}.jsonl" for n in (0, 1)]
    assert place_of(folder.path / pattern).base == (folder.path if "[[" in pattern else folder.path / "run[1]")


def coco_of(name):
    return {"images": [{"id": name, "file_name": "1.png"}], "annotations": [{"image_id": name, "caption": "A fox."}]}


def test_files_of_several_folders_that_share_images_want_their_folder(folder):
    folder.images("images/1.jpg")
    for name in "ab":
        folder.write(f"{name}/pope.json", json.dumps({"question_id": 1, "image": "1.jpg", "text": "?", "label": "yes"}))
    with pytest.raises(DataError, match=r"files of several folders; name the folder of their images"):
        open_source(folder.path / "*/pope.json")
    (sample,) = folder.read("*/pope.json", images=folder.path / "images")
    assert len(sample.texts) == 2


def test_a_range_with_a_gap_names_what_is_missing(folder):
    for number in (0, 2):
        folder.write(f"t-{number}.jsonl", [CHAT])
    with pytest.raises(DataError, match=r"t-1.jsonl is missing; put it there, or write a range without it"):
        open_source(folder.path / "t-{0..2}.jsonl")
    with pytest.raises(DataError, match=r"stands for over 100,000 files"):
        open_source(folder.path / "t-{0..200000}.jsonl")
