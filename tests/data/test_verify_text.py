"""Text and tokenised text are verified as they are read: every bad line is named, every damaged shard is."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from arlow_vl.cli import main
from arlow_vl.data.tokens.shards import TokenLimits
from arlow_vl.data.tokens.write import tokenize_text
from arlow_vl.data.verify_text import is_text, verify_text
from arlow_vl.errors import DataError
from tests.tiny_runs import sentences, tiny_tokenizer, write_jsonl


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    write_jsonl(folder / "a.jsonl", sentences(40))
    tokenize_text([folder / "a.jsonl"], tiny_tokenizer(), folder / "out", limits=TokenLimits(shard_tokens=300))
    return folder / "out"


@pytest.fixture
def arlow(capsys):
    def arlow(*words) -> tuple[int, str, str]:
        status = main(["data", "verify", *map(str, words)])
        return status, *capsys.readouterr()

    return arlow


def test_every_bad_line_is_named_with_its_reason(tmp_path, arlow):
    lines = [*(json.dumps({"text": text}) for text in sentences(18)), "{", json.dumps({"text": ""})]
    (tmp_path / "a.jsonl").write_text("\n".join([lines[0], *lines[-2:], *lines[1:-2]]) + "\n")
    status, out, err = arlow(tmp_path / "a.jsonl")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "18 documents can be used, 2 skipped (bad_json 1, empty_text 1)",
        "a.jsonl: line 2: bad_json",
        "a.jsonl: line 3: empty_text",
        "docs/data.md and docs/formats.md say what each reason means",
        "training may start, and leaves out what was skipped",
    ]
    status, _, err = arlow(tmp_path / "a.jsonl", "--max-bad-fraction", "0.05")
    assert status == 3
    assert "2 of 20 lines, rows or documents are unusable, the limit is 5%" in err


def test_a_cut_file_ends_with_3_however_little_of_it_is_known_to_be_lost(tmp_path, arlow):
    packed = gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in sentences(400)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    status, out, _ = arlow(tmp_path / "a.jsonl.gz", "--json")
    report = json.loads(out)
    assert status == 3
    assert 20 < report["documents"] < 400
    assert [fault["shard"] for fault in report["shard_faults"]] == [str(tmp_path / "a.jsonl.gz")]
    assert report["shard_faults"][0]["reason"] == "truncated_file: the compressed data end too soon"


def test_a_file_with_nothing_in_it_is_one_sentence(tmp_path, arlow):
    (tmp_path / "a.jsonl").write_text("")
    status, _, err = arlow(tmp_path / "a.jsonl", "--format", "text")
    assert (status, err) == (3, f"arlow: {tmp_path}/a.jsonl: nothing there can be used; name other data\n")


def test_json_names_all(tmp_path, arlow):
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps({"text": "yes"}), *["{"] * 60]))
    status, out, _ = arlow(tmp_path / "a.jsonl", "--json")
    report = json.loads(out)
    assert status == 3
    assert (report["documents"], report["skipped"], report["shard_faults"]) == (1, {"bad_json": 60}, [])
    assert report["bad_samples"][-1]["name"] == "a.jsonl: line 61"


@pytest.mark.parametrize("workers", [1, 3])
def test_files_of_all_kinds_are_read(tmp_path, workers):
    write_jsonl(tmp_path / "a.jsonl", sentences(3))
    (tmp_path / "b.txt").write_text("one document")
    (tmp_path / "c.txt").write_bytes(b"\xff")
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "packed"}) + "\n")
    table = pyarrow.table({"text": ["a", None, "c"]})
    pyarrow.parquet.write_table(table, tmp_path / "e.parquet")
    found = verify_text([tmp_path], workers=workers)
    assert found.tally.samples == 3 + 1 + 1 + 2
    assert [(bad.name, bad.reason) for bad in found.tally.bad] == [
        ("c.txt: document 1", "not_utf8"),
        ("e.parquet: row 2", "missing_text"),
    ]


def test_the_limit_is_of_each_text_by_itself_and_texts_of_one_name_are_told_apart(tmp_path):
    for name, lines in {"a": sentences(40), "b": sentences(1)}.items():
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "c.jsonl", [*lines, ""])
    found = verify_text([tmp_path / "a", tmp_path / "b"])
    assert [bad.name for bad in found.tally.bad] == ["a/c.jsonl: line 41", "b/c.jsonl: line 2"]
    with pytest.raises(DataError, match=r"/b: 1 of 2 lines, rows or documents is unusable, the limit is 10%"):
        found.check()
    found.check(0.5)


def test_text_is_known_where_it_says_so_itself(tmp_path, tokens):
    write_jsonl(tmp_path / "a.jsonl", ["text"])
    (tmp_path / "captions.jsonl").write_text(json.dumps({"file_name": "1.jpg", "text": "a cat"}) + "\n")
    (tmp_path / "b.txt").write_text("text")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "c.parquet")
    assert [is_text(tmp_path / name) for name in ("a.jsonl", "b.txt", "captions.jsonl", "c.parquet")] == [
        True,
        True,
        False,
        False,
    ]
    assert is_text(tmp_path / "c.parquet", "text") and not is_text(tmp_path / "a.jsonl", "conversations")
    assert is_text(tokens) and not is_text(tmp_path)


def test_text_and_images_are_not_verified_together(tmp_path, arlow):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "photos").mkdir()
    status, _, err = arlow(tmp_path / "a.txt", tmp_path / "photos")
    assert status == 3
    assert f"{tmp_path}/a.txt is text alone, and {tmp_path}/photos is not; verify them one after the other" in err


def test_whole_tokens_end_with_0(tokens, arlow):
    assert arlow(tokens) == (0, "40 documents can be used, 0 skipped\ntraining may start\n", "")


def flip_a_token(folder: Path, name: str) -> None:
    values = bytearray((folder / f"{name}.bin").read_bytes())
    values[4] ^= 1
    (folder / f"{name}.bin").write_bytes(values)


def move_a_start(folder: Path, name: str) -> None:
    starts = np.fromfile(folder / f"{name}.idx", "<u8")
    starts[1] += 1
    starts.tofile(folder / f"{name}.idx")


def break_the_index(folder: Path, name: str) -> None:
    starts = np.fromfile(folder / f"{name}.idx", "<u8")
    starts[1] = 2**63
    starts.tofile(folder / f"{name}.idx")


def cut_a_shard(folder: Path, name: str) -> None:
    (folder / f"{name}.bin").write_bytes((folder / f"{name}.bin").read_bytes()[:-2])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (flip_a_token, "SHA-256 differs from manifest.json"),
        (move_a_start, "documents do not begin with bos and end with eos where its .idx says"),
        (break_the_index, ".idx is damaged"),
        (cut_a_shard, "copy it again"),
    ],
)
def test_damaged_tokens_are_named(tokens, tmp_path, arlow, damage, sentence):
    folder = Path(shutil.copytree(tokens, tmp_path / "tokens"))
    name = json.loads((folder / "manifest.json").read_text())["shards"][1]["name"]
    damage(folder, name)
    status, out, err = arlow(folder)
    assert (status, err) == (3, "arlow: 1 fault in the files; copy or make them again before training\n")
    assert "1 shard fault\n" in out
    assert sentence in out and (name in out)
