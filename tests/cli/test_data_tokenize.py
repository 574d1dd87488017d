"""`arlow data tokenize`, and a run on what it wrote."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arlow_vl.cli import main
from tests.tiny_runs import sentences, tiny_tokenizer, write_text_recipe


@pytest.fixture
def folder(tmp_path):
    texts = sentences(60)
    (tmp_path / "texts").mkdir()
    for i in range(2):
        table = pa.table({"text": texts[i * 30 : i * 30 + 30]})
        pq.write_table(table, tmp_path / "texts" / f"{i}.parquet")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def tokenize(folder, *options: str) -> int:
    words = [str(folder / "texts"), "--tokenizer", str(folder / "tokenizer"), "--out", str(folder / "tokens"), *options]
    return main(["data", "tokenize", *words])


def test_two_commands_lead_from_parquet_to_a_trained_model(folder, capsys):
    assert tokenize(folder, "--workers", "2", "--shard-tokens", "500") == 0
    assert "60 documents, " in capsys.readouterr().out
    recipe = write_text_recipe(folder, train_text=str(folder / "tokens"))
    assert main(["fit", "--config", str(recipe), "--run.max_steps", "4"]) == 0
    told = capsys.readouterr().err
    assert f"{folder / 'tokens'}: 60 documents" in told
    assert (folder / "run" / "hf" / "config.json").is_file()


def test_a_recipe_may_name_parquet_itself(folder, capsys):
    recipe = write_text_recipe(folder, train_text=str(folder / "texts"), validation_text=str(folder / "texts" / "*0*"))
    assert main(["fit", "--config", str(recipe), "--run.max_steps", "4"]) == 0
    told = capsys.readouterr().err
    assert f"{folder / 'texts'}: 60 documents" in told
    assert "*0*: 30 documents" in told


def test_a_second_call_changes_nothing(folder):
    tokenize(folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "tokens").iterdir()}
    assert tokenize(folder) == 0
    after = {path: path.stat().st_mtime_ns for path in (folder / "tokens").iterdir()}
    assert {path.name for path in before if before[path] != after[path]} <= {".lock"}


def test_a_source_that_is_not_there_is_told_in_a_sentence(folder, capsys):
    out = ["--tokenizer", str(folder / "tokenizer"), "--out", str(folder / "tokens")]
    assert main(["data", "tokenize", str(folder / "gone*"), *out]) == 3
    assert capsys.readouterr().err.strip() == f"arlow: no file matches {folder}/gone*; name text that is there"
    assert not (folder / "tokens").exists()


def test_too_much_bad_text_ends_with_the_status_of_bad_data(folder, capsys):
    (folder / "texts" / "a.jsonl").write_text("broken\n" * 20 + json.dumps({"text": "a cat"}))
    assert tokenize(folder) == 3
    told = "20 of 81 documents are unusable, the limit is 10%: bad_json 20 (as a.jsonl: line 1)"
    assert told in capsys.readouterr().err
    assert tokenize(folder, "--max-bad-fraction", "0.5") == 0


def test_a_folder_without_a_tokenizer_is_told(folder, capsys):
    words = ["--tokenizer", str(folder), "--out", str(folder / "tokens")]
    assert main(["data", "tokenize", str(folder / "texts"), *words]) == 4
    assert "holds no tokenizer.json; `arlow tokenizer train` makes one" in capsys.readouterr().err
