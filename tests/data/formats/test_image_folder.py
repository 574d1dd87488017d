"""Folders of images with a table of captions or a text file beside each image."""

import base64
import json
import os
import tracemalloc

import pytest

from arlow_vl.data.formats.detect import open_source
from arlow_vl.errors import DataError
from tests.data.formats.conftest import turns_of
from tests.outside_data import JPEG


def captions(samples) -> dict[str, list[str]]:
    return {sample.key: [text[-1][1] for text in turns_of(sample)] for sample in samples}


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("metadata.csv", "file_name,text\na.jpg,A fox.\nsub/b.png,A dog.\na.jpg,Red.\n"),
        ("captions.csv", '\ufeffid,caption,image\r\n1,"A fox.",a.jpg\r\n2,"A dog.",sub/b.png\r\n3,Red.,a.jpg\r\n'),
        ("captions.tsv", "path\tcaption\na.jpg\tA fox.\nsub/b.png\tA dog.\na.jpg\tRed.\n"),
        (
            "metadata.jsonl",
            "".join(
                json.dumps({"filename": name, "text": text}) + "\n"
                for name, text in (("a.jpg", "A fox."), ("sub/b.png", "A dog."), ("a.jpg", "Red."))
            ),
        ),
    ],
)
def test_a_table_is_found_with_its_columns(folder, name, table):
    folder.images("a.jpg", "sub/b.png", "unused.jpg").write(name, table)
    assert captions(folder.read()) == {"a.jpg": ["A fox.", "Red."], "sub/b.png": ["A dog."]}
    assert (folder.source.format, folder.source.files) == ("captions", [folder.path / name])
    assert folder.skipped == {}


def test_a_table_with_questions_gives_the_questions_of_each_image(folder):
    table = "image,question,answer,kind\na.jpg,What is it?,a fox,animal\na.jpg,Is it red?,yes,yes/no\n"
    folder.images("a.jpg").write("captions.csv", table)
    (sample,) = folder.read()
    assert [(text.task, text.kind) for text in sample.texts] == [("question", "animal"), ("question", "yes/no")]
    assert [text.messages[-1]["content"] for text in sample.texts] == ["a fox", "yes"]
    assert sample.texts[0].messages[0]["content"][1]["text"] == "What is it?"
    assert folder.skipped == {}


def test_a_row_without_a_question_is_a_caption_and_a_question_without_an_answer_is_left_out(folder):
    table = "image,text,question,answer\na.jpg,A fox.,,\na.jpg,,What is it?,\na.jpg,,What is it?,a fox\n"
    folder.images("a.jpg").write("captions.csv", table)
    (sample,) = folder.read()
    assert [text.task for text in sample.texts] == ["caption", "question"]
    assert (folder.skipped, folder.texts_skipped) == ({}, {"empty_answer": 1})
    assert [bad.task for bad in folder.source.tally.bad_texts] == ["question"]


def test_a_row_that_holds_its_image_comes_before_the_rows_behind_it_are_read(folder):
    url = "data:image/jpeg;base64," + base64.b64encode(JPEG).decode()
    folder.write("metadata.jsonl", f"{json.dumps({'file_name': url, 'text': 'A fox.'})}\n{{\n")
    source = open_source(folder.path / "metadata.jsonl")
    samples = source.iterate()
    assert next(samples).images == (JPEG,)
    assert source.tally.bad == []
    assert list(samples) == [] and source.tally.skipped == {"bad_json": 1}


def test_a_row_that_waits_for_others_of_its_image_takes_little_memory(folder):
    names = [f"{n:04d}.jpg" for n in range(1000)]
    rows = [{"file_name": name, "text": f"A fox sleeps in the snow, no. {name}"} for name in names]
    folder.images(*names).write("metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    samples = open_source(folder.path / "metadata.jsonl").iterate()
    tracemalloc.start()
    try:
        next(samples)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 900 * len(rows)  # some 600 bytes a row; as objects of Python they take 1,300


def test_rows_that_cannot_be_used_are_named_by_their_line(folder):
    table = b"file_name,text\na.jpg,A fox, sitting\na.jpg,\na.jpg\n,x\ngone.jpg,x\n../a.jpg,x\na.jpg,\xff\na.jpg,good\n"
    folder.images("a.jpg").write("metadata.csv", table)
    assert captions(folder.read()) == {"a.jpg": ["good"]}
    assert [(bad.name.rpartition(" ")[2], bad.reason) for bad in folder.source.tally.bad] == [
        ("2", "too_many_columns"),
        ("5", "missing_image"),
        ("6", "missing_image_file"),
        ("7", "unsafe_image_path"),
        ("8", "not_utf8"),
    ]
    assert [(bad.name.rpartition(" ")[2], bad.reason) for bad in folder.source.tally.bad_texts] == [
        ("3", "empty_text"),
        ("4", "missing_text"),
    ]


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl"])
def test_an_image_that_cannot_be_used_is_one_bad_sample_however_many_rows_name_it(folder, name):
    images = ["a.jpg", "gone.jpg", "../b.jpg", "http://h/c.jpg", ""]
    rows = [{"image": image, "text": text} for text in ("One.", "Two.", "Three.") for image in images]
    table = "image,text\n" + "".join(f"{row['image']},{row['text']}\n" for row in rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    folder.images("a.jpg").write(name, table if name.endswith("csv") else lines)
    assert captions(folder.read()) == {"a.jpg": ["One.", "Two.", "Three."]}
    tally = folder.source.tally
    assert [(bad.reason, bad.members) for bad in tally.bad] == [
        ("missing_image_file", 3),
        ("unsafe_image_path", 3),
        ("image_url_not_fetched", 3),
        *[("missing_image", 1)] * 3,
    ]
    assert (tally.samples, tally.texts, tally.bad_texts) == (1, 3, [])


def test_an_image_that_is_left_without_a_text_is_a_bad_sample_and_its_texts_are_bad_texts(folder):
    folder.images("a.jpg", "b.jpg").write("captions.csv", "image,text\na.jpg,\nb.jpg,B.\na.jpg,\n")
    assert captions(folder.read()) == {"b.jpg": ["B."]}
    tally = folder.source.tally
    assert [(bad.name, bad.reason, bad.members) for bad in tally.bad] == [("image a.jpg", "missing_text", 0)]
    assert [(bad.name, bad.reason) for bad in tally.bad_texts] == [
        ("captions.csv: line 2", "empty_text"),
        ("captions.csv: line 4", "empty_text"),
    ]


def test_an_image_stands_where_its_first_usable_row_is(folder):
    folder.images("a.jpg", "b.jpg").write("captions.csv", "image,text\na.jpg,\nb.jpg,B.\na.jpg,A.\n")
    assert list(captions(folder.read())) == ["b.jpg", "a.jpg"]


def test_a_quote_without_an_end_costs_its_rows_and_no_traceback(folder):
    folder.images("a.jpg").write("metadata.csv", 'file_name,text\na.jpg,good\na.jpg,"' + "x" * 2**17 + "\nx,y\n")
    assert captions(folder.read()) == {"a.jpg": ["good"]}
    assert folder.skipped["bad_csv"] == 2


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("name\n", r"no column of images, which has the column 'name'; name it image or file_name"),
        (
            "image,words\n",
            r"no column of texts, which has the columns 'image', 'words'; name it text or caption or que",
        ),
        ("", r"no column of images, which has no columns"),
    ],
)
def test_columns_that_are_not_there_are_one_sentence(folder, table, sentence):
    folder.write("metadata.csv", table)
    with pytest.raises(DataError, match=sentence):
        folder.read()


def test_text_files_beside_the_images_are_captions(folder):
    folder.images("b.jpg", "sub/photo.0001.PNG", "two.jpg", "two.png", "alone.jpg", "._b.jpg")
    for name in ("b.txt", "sub/photo.0001.txt", "two.txt", "._b.txt"):
        folder.write(name, f"\ufeff caption of {name} \n")
    folder.write("words.txt", "of no image")
    folder.write("empty.txt", b"")
    folder.images("empty.jpg", "notes.pdf")
    assert captions(folder.read()) == {"b": ["caption of b.txt"], "sub/photo.0001": ["caption of sub/photo.0001.txt"]}
    assert folder.skipped == {"several_images": 1, "missing_image": 1, "missing_text": 1, "empty_text": 1}
    assert dict(folder.source.tally.ignored) == {"hidden_file": 2, ".pdf": 1}
    assert len(folder.source.files) == 5


def test_captions_beside_images_take_no_other_folder(folder, tmp_path_factory):
    folder.images("a.jpg").write("a.txt", "x")
    with pytest.raises(DataError, match="name no other folder of images"):
        folder.read(images=tmp_path_factory.mktemp("other"))


def test_a_quote_that_nobody_closed_costs_every_line_it_reaches_and_makes_no_caption(folder):
    rows = "".join(f"a.jpg,Fox {number}.\n" for number in range(5))
    folder.images("a.jpg").write("metadata.csv", f'file_name,text\na.jpg,One.\na.jpg,"Two.\n{rows}')
    assert captions(folder.read()) == {"a.jpg": ["One."]}
    (bad,) = folder.source.tally.bad
    assert (bad.name, bad.reason, bad.count) == ("metadata.csv: line 3", "bad_csv", 6)
    assert "over 6 lines; close each quote that begins a cell" in bad.detail


def test_a_quote_that_ends_too_soon_is_no_caption(folder):
    table = 'file_name,text\na.jpg,"A fox" in snow.\na.jpg,A "red" fox.\na.jpg,"A ""wet""\nfox."\n'
    folder.images("a.jpg").write("metadata.csv", table)
    assert captions(folder.read()) == {"a.jpg": ['A "red" fox.', 'A "wet"\nfox.']}
    assert [(bad.name, bad.reason) for bad in folder.source.tally.bad] == [("metadata.csv: line 2", "bad_csv")]


@pytest.mark.parametrize(
    ("name", "table", "sentence"),
    [
        (
            "metadata.csv",
            b"file_name;text\na.jpg;A fox.\n",
            r"its columns are separated by ';'; write commas in a \.csv",
        ),
        ("metadata.csv", b"file_name\ttext\na.jpg\tA fox.\n", r"separated by '\\t'; .* name a table with tabs \.tsv"),
        ("metadata.csv", b"file_name,text,text\na.jpg,A fox.,Un renard.\n", "two columns are called 'text'; rename or"),
        ("metadata.csv", "file_name,text\na.jpg,A fox.\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "A fox."}\n'.encode("utf-16"), "is UTF-16 text"),
    ],
)
def test_a_table_of_another_kind_is_one_sentence(folder, name, table, sentence):
    folder.images("a.jpg").write(name, table)
    with pytest.raises(DataError, match=sentence):
        folder.read()


def test_a_name_with_its_accents_written_apart_is_the_same_file(folder):
    together, apart = "caf\u00e9.jpg", "cafe\u0301.jpg"
    folder.images(together).write("metadata.csv", f"file_name,text\n{apart},A fox.\n{together},Red.\n")
    assert captions(folder.read()) == {together: ["A fox.", "Red."]}
    assert folder.skipped == {}


def test_linked_folders_are_read_once_however_they_are_linked(folder, tmp_path_factory):
    far = tmp_path_factory.mktemp("far")
    (far / "b.png").write_bytes(JPEG)
    (far / "b.txt").write_text("A bird.")
    folder.images("in/a.png").write("in/a.txt", "A cat.")
    (folder.path / "linked").symlink_to(far)
    (folder.path / "linked-again").symlink_to(far)
    (folder.path / "in/loop").symlink_to(folder.path)
    assert captions(folder.read()) == {"in/a": ["A cat."], "linked/b": ["A bird."]}


def test_a_folder_that_cannot_be_listed_is_named(folder, monkeypatch):
    folder.images("a.png", "closed/b.png").write("a.txt", "A cat.")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"closed: cannot be listed \(Permission denied\)"):
        folder.read()


def test_two_texts_of_one_image_are_told(folder):
    folder.images("c.jpg", "d.jpg").write("c.txt", "One.")
    folder.write("c.TXT", "Two.")
    folder.write("d.txt", "A dog.")
    assert captions(folder.read()) == {"d": ["A dog."]}
    assert folder.skipped == {"several_texts": 1}


def test_a_table_may_hold_its_images(folder):
    url = "data:image/jpeg;base64," + base64.b64encode(JPEG + bytes(200_000)).decode()
    folder.write("captions.csv", f'image,text\n"{url}",A fox.\n')
    (sample,) = folder.read()
    assert sample.images == (JPEG + bytes(200_000),)
