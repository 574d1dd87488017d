"""Text lies in files of several formats, folders and globs; whatever a file holds, its documents are counted."""

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arlow_vl.data import text_readers
from arlow_vl.data.text import LineTally
from arlow_vl.data.text_files import TextPart, format_of, parts_of, text_files
from arlow_vl.data.text_readers import DocumentReader
from arlow_vl.errors import DataError

TEXTS = ["one", " two\n", "dreißig 漢字 \U0001f600", "<|endoftext|></s>", "x" * 5000]


def lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text, "id": 3}).encode() + b"\n" for text in texts)


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


def write_arrow(path: Path, table: pa.Table, *, stream: bool) -> None:
    with pa.OSFile(str(path), "wb") as file:
        writer = (pa.ipc.new_stream if stream else pa.ipc.new_file)(file, table.schema)
        writer.write_table(table, max_chunksize=2)
        writer.close()


def table(texts: list[str | None], kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"id": list(range(len(texts))), "text": pa.array(texts, kind or pa.string())})


FORMATS = {
    "a.jsonl": lambda path, texts: path.write_bytes(lines(texts)),
    "a.jsonl.gz": lambda path, texts: path.write_bytes(gzip.compress(lines(texts))),
    "a.json.zst": lambda path, texts: path.write_bytes(zstd(lines(texts))),
    "b.jsonl": lambda path, texts: path.write_bytes(gzip.compress(lines(texts))),  # named by its content
    "a.parquet": lambda path, texts: pq.write_table(table(texts), path, row_group_size=2),
    "b.parquet": lambda path, texts: pq.write_table(table(texts, pa.dictionary(pa.int32(), pa.string())), path),
    "a.arrow": lambda path, texts: write_arrow(path, table(texts, pa.large_string()), stream=False),
    "b.arrow": lambda path, texts: write_arrow(path, table(texts), stream=True),
}


def read(path: Path) -> tuple[list[str], LineTally]:
    reader = DocumentReader(TextPart(path, path.stat().st_size))
    return list(reader), reader.tally


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_documents(tmp_path, name):
    FORMATS[name](tmp_path / name, TEXTS)
    documents, tally = read(tmp_path / name)
    assert documents == TEXTS
    assert (tally.used, tally.skipped) == (5, {})


@pytest.mark.parametrize("name", FORMATS)
def test_the_hash_is_that_of_the_file(tmp_path, name):
    import hashlib

    FORMATS[name](tmp_path / name, TEXTS)
    reader = DocumentReader(TextPart(tmp_path / name, 1))
    list(reader)
    assert reader.sha256() == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=9), st.integers(9, 90))
def test_parts_of_a_file_hold_each_line_once(tmp_path, texts, part_bytes):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(texts).replace(b"\n", b"\n\n", 2))
    whole, tally = read(path)
    readers = [DocumentReader(part) for part in parts_of(path, part_bytes)]
    assert [document for reader in readers for document in reader] == whole
    assert sum(reader.tally.skipped.total() for reader in readers) == tally.skipped.total()


def test_parts_of_a_parquet_file_are_groups_of_rows_that_keep_their_numbers(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(table([*TEXTS, None]), path, row_group_size=2)
    readers = [DocumentReader(part) for part in parts_of(path, 1)]
    assert [list(reader) for reader in readers] == [TEXTS[:2], TEXTS[2:4], TEXTS[4:]]
    assert readers[2].tally.examples == {"missing_text": "row 6"}


@pytest.mark.parametrize(
    ("texts", "reason"), [([None], "missing_text"), (["a\0"], "nul_in_text"), ([" "], "empty_text")]
)
def test_an_unusable_row_is_counted_by_reason(tmp_path, texts, reason):
    pq.write_table(table(["one", *texts]), tmp_path / "a.parquet")
    documents, tally = read(tmp_path / "a.parquet")
    assert (documents, tally.skipped, tally.examples) == (["one"], {reason: 1}, {reason: "row 2"})


def test_a_row_that_is_not_utf8_is_counted(tmp_path):
    column = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 2, 3], "i4")), pa.py_buffer(b"\xff\xfea"))
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    documents, tally = read(tmp_path / "a.parquet")
    assert (documents, tally.skipped) == (["a"], {"not_utf8": 1})


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"content": ["a"] * 5, "id": [1] * 5}, "row 1, which has the columns 'content', 'id': the document belongs"),
        ({"text": [1] * 5}, "row 1, a int64: the document belongs under 'text' as a string"),
        ({"text": [["a"]] * 5}, "row 1, a list<element: string>: the document belongs"),
    ],
)
def test_rows_without_a_column_of_strings_are_told_with_what_there_is(tmp_path, columns, told):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    documents, tally = read(tmp_path / "a.parquet")
    assert (documents, tally.skipped) == ([], {"missing_text": 5})
    assert tally.examples["missing_text"].startswith(told)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_two_columns_of_one_name_are_told_and_neither_is_taken(tmp_path, name):
    twice = pa.Table.from_arrays([pa.array(["a"] * 5), pa.array(["b"] * 5)], ["text", "text"])
    if name == "a.parquet":
        pq.write_table(twice, tmp_path / name)
    else:
        with pa.OSFile(str(tmp_path / name), "wb") as file, pa.ipc.new_file(file, twice.schema) as writer:
            writer.write_table(twice)
    documents, tally = read(tmp_path / name)
    assert (documents, tally.skipped) == ([], {"missing_text": 5})
    assert tally.examples["missing_text"] == "row 1, which has several columns 'text': rename or remove all but one"


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_utf16_is_one_sentence_and_no_heap_of_bad_lines(tmp_path, name):
    (tmp_path / name).write_bytes('{"text": "one"}\n'.encode("utf-16"))
    with pytest.raises(DataError, match=rf"{name}: is UTF-16 text; save it as UTF-8"):
        read(tmp_path / name)


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_cut_compressed_file_is_one_named_fault_and_what_was_whole_is_used(tmp_path, pack):
    rng = np.random.default_rng(0)
    texts = [rng.bytes(600).hex() for _ in range(500)]
    data = pack(lines(texts))
    (tmp_path / "a.jsonl.x").write_bytes(data[: len(data) * 3 // 4])
    documents, tally = read(tmp_path / "a.jsonl.x")
    assert documents == texts[: len(documents)]
    assert len(documents) > 100
    assert tally.skipped == {"truncated_file": 1}
    assert tally.examples["truncated_file"].startswith(f"line {len(documents) + 1:,}: ")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.zst", "a.parquet", "a.arrow", "b.arrow"])
@pytest.mark.parametrize("damage", ["cut", "overwritten", "other", "empty"])
def test_a_damaged_file_is_at_most_one_fault_and_never_a_traceback(tmp_path, name, damage):
    path = tmp_path / name
    FORMATS[name](path, [os.urandom(300).hex() for _ in range(50)])
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half : half + 200] = b"\xa5" * 200
    path.write_bytes({"cut": bytes(data[:half]), "overwritten": bytes(data), "other": b"{}", "empty": b""}[damage])
    documents, tally = read(path)
    assert len(documents) == tally.used
    assert len(documents) < 50 or damage == "overwritten"
    assert {"truncated_file", "damaged_file"} & tally.skipped.keys() or damage == "overwritten"


def test_a_file_that_is_not_what_its_name_says_is_told(tmp_path):
    (tmp_path / "a.parquet").write_text('{"text": "one"}')
    _, tally = read(tmp_path / "a.parquet")
    assert tally.examples == {"damaged_file": "line 1, which does not begin as a .parquet file does"}


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_file_that_unpacks_to_much_more_costs_little_memory(tmp_path, pack):
    (tmp_path / "a.jsonl").write_bytes(
        pack(lines(["one"]) + b'{"text": "' + b"a" * 40_000_000 + b'"}\n' + lines(["two"]))
    )
    tracemalloc.start()
    documents, tally = read(tmp_path / "a.jsonl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (documents, tally.skipped) == (["one", "two"], {"line_too_long": 1})
    assert peak < 60_000_000


def test_a_bomb_is_given_up_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(text_readers, "FREE_EXPANSION", 2**20)
    (tmp_path / "a.jsonl").write_bytes(zstd(lines(["one"]) + b" " * 100_000_000))
    documents, tally = read(tmp_path / "a.jsonl")
    assert (documents, tally.skipped) == (["one"], {"expands_too_far": 1})


def test_a_plain_text_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffcafé\r\n".encode())
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "c.txt").write_bytes(b" \n")
    assert read(tmp_path / "a.txt")[0] == ["café\r\n"]
    assert read(tmp_path / "b.txt")[1].examples == {"not_utf8": "document 1"}
    assert read(tmp_path / "c.txt")[1].skipped == {"empty_text": 1}


def test_a_plain_text_over_the_limit_is_counted_with_advice(tmp_path, monkeypatch):
    monkeypatch.setattr(text_readers, "MAX_TEXT_BYTES", 2**20)
    (tmp_path / "a.txt").write_bytes(b"a" * (2**20 + 1))
    assert read(tmp_path / "a.txt")[1].examples == {"text_too_large": "document 1, over 1 MiB: write it as JSON lines"}


def test_a_folder_gives_its_texts_in_sorted_order(tmp_path):
    for name in ("b.jsonl", "a/z.txt", "a/b.parquet", ".hidden/x.txt", "__MACOSX/y.txt", "notes.json", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    os.mkfifo(tmp_path / "fifo.txt")
    assert [str(path.relative_to(tmp_path)) for path in text_files([tmp_path])] == ["a/b.parquet", "a/z.txt", "b.jsonl"]
    assert text_files([tmp_path / "*" / "*.txt"]) == [tmp_path / "a" / "z.txt"]
    assert text_files([tmp_path / "b.jsonl", tmp_path / "a"])[0].name == "b.jsonl"


def test_a_glob_that_matches_folders_gives_each_text_once(tmp_path):
    for name in ("a/b/x.txt", "a/y.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    assert sorted(text_files([tmp_path / "**" / "*"])) == [tmp_path / "a" / "b" / "x.txt", tmp_path / "a" / "y.txt"]


@pytest.mark.parametrize("pattern", ["run[1]/?.txt", "run[1]/{0..1}.txt"])
def test_a_range_or_glob_below_a_folder_with_brackets_finds_its_texts(tmp_path, pattern):
    (tmp_path / "run[1]").mkdir()
    for number in (0, 1):
        (tmp_path / "run[1]" / f"{number}.txt").write_text("one")
    assert text_files([tmp_path / pattern]) == [tmp_path / "run[1]" / f"{number}.txt" for number in (0, 1)]


def test_a_hidden_folder_that_cannot_be_listed_costs_nothing(tmp_path, monkeypatch):
    (tmp_path / ".Trashes").mkdir()
    (tmp_path / "a.txt").write_text("one")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith(".Trashes"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert text_files([tmp_path]) == [tmp_path / "a.txt"]


def test_a_saved_dataset_gives_its_files_in_its_order(tmp_path):
    for i, texts in enumerate((["one"], ["two"])):
        write_arrow(tmp_path / f"data-{i:05d}-of-00002.arrow", table(texts), stream=True)
    names = [{"filename": f"data-{i:05d}-of-00002.arrow"} for i in (1, 0)]
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": names}))
    assert [document for path in text_files([tmp_path]) for document in read(path)[0]] == ["two", "one"]
    (tmp_path / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"lacks data-00001-of-00002.arrow.*copy the whole folder"):
        text_files([tmp_path])


def bad_sources(folder: Path) -> dict[str, tuple[list[Path], str]]:
    (folder / "empty").mkdir()
    (folder / "splits" / "train").mkdir(parents=True)
    (folder / "splits" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (folder / "a.jsonl").write_text("{}")
    os.mkfifo(folder / "fifo")
    return {
        "missing": ([folder / "gone.jsonl"], r"no such file or folder: .*gone\.jsonl"),
        "fifo": ([folder / "fifo"], "not a regular file"),
        "no match": ([folder / "*.parquet"], r"no file matches .*\*\.parquet"),
        "gap": ([folder / "{1..2}.jsonl"], r"no file matches .*/1\.jsonl"),
        "empty": ([folder / "empty"], r"empty holds no text; it needs files that end in \.jsonl"),
        "splits": ([folder / "splits"], r"several splits \(train\); name one, as .*splits/train"),
        "twice": ([folder / "a.jsonl", folder / "empty" / ".." / "a.jsonl"], "comes twice; name each text once"),
    }


@pytest.mark.parametrize("case", ["missing", "fifo", "no match", "gap", "empty", "splits", "twice"])
def test_a_source_without_text_is_told_in_a_sentence(tmp_path, case):
    sources, sentence = bad_sources(tmp_path)[case]
    with pytest.raises(DataError, match=sentence):
        text_files(sources)


def test_the_content_goes_before_the_name(tmp_path):
    FORMATS["a.parquet"](tmp_path / "a.jsonl", TEXTS)
    assert format_of(tmp_path / "a.jsonl") == ("parquet", None)
