"""`arlow tokenizer train`."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from arlow_vl.cli import build_parser
from arlow_vl.errors import DataError
from arlow_vl.models.arlow.tokenization_arlow import ArlowTokenizer
from arlow_vl.models.folder_writing import find_changes
from arlow_vl.printing import number_of

TEXT = "The cat sat on the mat, and the cat saw that the mat was flat.\n" * 20


def train(*arguments) -> None:
    args = build_parser().parse_args(["tokenizer", "train", *map(str, arguments)])
    args.run(args)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_a_text_file_becomes_a_tokenizer_folder(text_file, tmp_path, capsys):
    train(text_file, "--vocab-size", 280, "--output", tmp_path / "out")
    assert len(ArlowTokenizer.from_pretrained(tmp_path / "out")) == 280
    report = f"{tmp_path / 'out'}: 280 entries, learned from {len(TEXT):,} bytes in 1 document"
    assert capsys.readouterr().out.splitlines() == [report]


def test_a_tokenizer_that_is_there_is_not_replaced(text_file, tmp_path):
    """Models were trained with it."""
    train(text_file, "--vocab-size", 280, "--output", tmp_path / "out")
    before = (tmp_path / "out" / "tokenizer.json").read_bytes()
    with pytest.raises(ValueError, match="out exists already and is not empty; name a new folder"):
        train(text_file, "--vocab-size", 300, "--output", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == before
    assert find_changes(tmp_path / "out") == []


def test_json_lines_are_documents_and_bad_lines_are_told(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(f"{json.dumps({'text': TEXT})}\nbroken\n{json.dumps({'text': TEXT})}\n")
    train(tmp_path / "a.jsonl", "--vocab-size", 280, "--output", tmp_path / "out", "--max-bad-fraction", 0.5)
    report, told = capsys.readouterr()
    assert "in 2 documents" in report
    assert "1 of 3 lines are skipped: bad_json 1 (as line 2)" in told


@pytest.mark.parametrize("name", ["a.ndjson", "A.JSONL", "corpus", "a.jsonl.gz", "a.parquet", "texts"])
def test_text_is_read_by_the_rules_of_all_commands(tmp_path, capsys, name):
    """As prose, JSON lines would teach the tokenizer the syntax of JSON."""
    path, lines = tmp_path / name, f"{json.dumps({'text': TEXT, 'url': 'https://a.b'})}\n".encode() * 2
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": [TEXT, TEXT]}), path)
    elif name == "texts":
        path.mkdir()
        (path / "a.jsonl").write_bytes(lines)
    else:
        path.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    train(path, "--vocab-size", 270, "--output", tmp_path / "out")
    assert f"learned from {2 * len(TEXT):,} bytes in 2 documents" in capsys.readouterr().out


@pytest.mark.parametrize("options", [(), ("--max-bytes", 200_000)])
def test_too_many_bad_lines_end_it_before_anything_is_learnt(tmp_path, options):
    (tmp_path / "a.jsonl").write_text("broken\n" * 450 + f"{json.dumps({'text': TEXT * 4})}\n" * 50)
    with pytest.raises(DataError, match=r"a\.jsonl: 450 of \d+ lines are unusable, the limit is 10%: bad_json 450"):
        train(tmp_path / "a.jsonl", "--vocab-size", 280, "--output", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("limit", "documents"), [(1000, 1), (len(TEXT), 1), (len(TEXT) + 5, 2), (10**6, 2)])
def test_only_the_first_bytes_are_learned_from(text_file, tmp_path, capsys, limit, documents):
    other = tmp_path / "other.txt"
    other.write_text(TEXT)
    train(text_file, other, "--vocab-size", 270, "--output", tmp_path / "out", "--max-bytes", limit)
    assert f"{min(limit, 2 * len(TEXT)):,} bytes in {number_of(documents, 'document')}" in capsys.readouterr().out


def test_a_character_is_not_cut_in_two(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("ééé", encoding="utf-8")
    train(path, "--vocab-size", 267, "--output", tmp_path / "out", "--max-bytes", 3)
    with pytest.raises(ValueError, match="--max-bytes 1 cuts the first character of the text; raise it"):
        train(path, "--vocab-size", 267, "--output", tmp_path / "other", "--max-bytes", 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (("--vocab-size", 10**11), ValueError, "--vocab-size must be at most 1,048,576, got 100,000,000,000"),
        (("--vocab-size", 100), ValueError, "vocab_size must be at least 267.*got 100"),
        (
            ("--vocab-size", 280, "--max-bytes", 0),
            ValueError,
            "--max-bytes: must be a whole number of at least 1, got '0'",
        ),
    ],
)
def test_impossible_sizes_are_refused(text_file, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        train(text_file, "--output", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_empty_text_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"empty\.txt: 1 of 1 documents is unusable, .*empty_text 1"):
        train(tmp_path / "empty.txt", "--vocab-size", 280, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_text_is_named(tmp_path):
    with pytest.raises(DataError, match=r"missing\.txt"):
        train(tmp_path / "missing.txt", "--vocab-size", 280, "--output", tmp_path / "out")


def test_a_file_as_output_is_refused(text_file):
    with pytest.raises(ValueError, match="is a file; name a folder"):
        train(text_file, "--vocab-size", 280, "--output", text_file)
