"""Documents become full rows, and batches keep the documents of a row apart."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.data.packing import bits_per_byte, collate_rows, pack_documents, unigram_entropy
from arlow_vl.errors import DataError
from arlow_vl.printing import number_of
from tests.tiny_runs import sentences, tiny_tokenizer, write_jsonl

BOS, EOS = 1, 2


def stream(rows) -> np.ndarray:
    return np.concatenate([rows[i] for i in range(len(rows))])


@pytest.fixture
def texts(tmp_path):
    return write_jsonl(tmp_path / "texts.jsonl", sentences(20))


def test_rows_hold_the_documents_one_after_another(tmp_path, texts):
    rows = pack_documents(texts, tiny_tokenizer(), 16, tmp_path)
    expected = [
        token
        for text in sentences(20)
        for token in [BOS, *tiny_tokenizer()(text, add_special_tokens=False)["input_ids"], EOS]
    ]
    assert stream(rows).tolist() == expected[: len(rows) * 16]
    assert len(rows) == len(expected) // 16
    assert rows[0].dtype == np.int64
    assert rows.facts.tokens == len(expected)


def test_text_that_spells_a_special_token_stays_text(tmp_path):
    texts = write_jsonl(tmp_path / "t.jsonl", ["<|endoftext|> <image> <|startoftext|>" * 3])
    tokens = stream(pack_documents(texts, tiny_tokenizer(), 8, tmp_path))
    assert np.flatnonzero(tokens < 11).tolist() == [0]
    assert tokens[0] == BOS


def test_max_tokens_stops_after_a_whole_document(tmp_path, texts):
    rows = pack_documents(texts, tiny_tokenizer(), 8, tmp_path, max_tokens=30)
    read = sentences(20)[: rows.facts.documents]
    assert rows.facts.utf8_bytes == sum(len(text.encode()) for text in read)
    assert 30 <= rows.facts.tokens < 31 + len(tiny_tokenizer()(read[-1])["input_ids"])


def test_the_second_time_nothing_is_tokenised(tmp_path, texts):
    first = pack_documents(texts, tiny_tokenizer(), 16, tmp_path / "cache")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/[!.]*")}
    second = pack_documents(texts, tiny_tokenizer(), 16, tmp_path / "cache")
    assert files
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/[!.]*")} == files
    assert stream(first).tolist() == stream(second).tolist()


def test_other_text_gets_other_rows_though_its_name_is_the_same(tmp_path, texts):
    before = pack_documents(texts, tiny_tokenizer(), 16, tmp_path)
    tokens = stream(before).tolist()
    write_jsonl(texts, sentences(20)[::-1])
    after = pack_documents(texts, tiny_tokenizer(), 16, tmp_path)
    assert before.fingerprint != after.fingerprint
    assert tokens != stream(after).tolist()
    assert len(list(tmp_path.glob("*/*.bin"))) == 1


def test_rows_that_other_text_has_replaced_are_not_read_as_the_old_ones(tmp_path, texts):
    rows = pack_documents(texts, tiny_tokenizer(), 16, tmp_path)
    write_jsonl(texts, sentences(20)[::-1])
    pack_documents(texts, tiny_tokenizer(), 16, tmp_path)
    with pytest.raises(FileNotFoundError):
        rows[0]


def test_rows_of_a_packing_that_was_killed_are_made_again(tmp_path, texts):
    rows = pack_documents(texts, tiny_tokenizer(), 16, tmp_path)
    expected = stream(rows).tolist()
    (rows.text.folder / "manifest.json").unlink()
    next(rows.text.folder.glob("*.bin")).write_bytes(b"half")
    assert stream(pack_documents(texts, tiny_tokenizer(), 16, tmp_path)).tolist() == expected


def test_too_little_text_is_an_error_that_names_the_file(tmp_path):
    texts = write_jsonl(tmp_path / "short.jsonl", ["a cat"])
    with pytest.raises(DataError, match=r"short.jsonl has \d+ tokens, fewer than one row of 500"):
        pack_documents(texts, tiny_tokenizer(), 500, tmp_path)


def test_bad_lines_are_counted_and_told(tmp_path, texts, capsys):
    texts.write_text("not json\n" + json.dumps({"text": ""}) + "\n" + texts.read_text())
    for _ in range(2):  # made, and found again
        assert sum(pack_documents(texts, tiny_tokenizer(), 16, tmp_path).text.manifest.skipped.values()) == 2
        assert "2 of 22 lines are skipped: bad_json 1 (as line 1), empty_text 1 (as line 2)" in capsys.readouterr().err


def test_too_many_bad_lines_are_an_error_also_where_the_rows_are_there_already(tmp_path, texts):
    texts.write_text("not json\n" * 180 + texts.read_text())
    pack_documents(texts, tiny_tokenizer(), 16, tmp_path, max_bad_fraction=0.9)
    with pytest.raises(DataError, match=r"180 of 200 lines are unusable"):
        pack_documents(texts, tiny_tokenizer(), 16, tmp_path)


def test_texts_under_another_key_are_not_called_too_little_text(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"content": "a cat"}\n' * 50)
    with pytest.raises(DataError, match=r"50 of 50 lines are unusable.*the key 'content'"):
        pack_documents(tmp_path / "t.jsonl", tiny_tokenizer(), 16, tmp_path)


def test_the_summary_says_what_is_in_no_row(tmp_path, texts):
    rows = pack_documents(texts, tiny_tokenizer(), 16, tmp_path)
    over = rows.facts.tokens % 16
    assert f"rows of 16 ({number_of(over, 'token')} over the last full row)" in rows.summary()
    assert "max_tokens" not in rows.summary()
    assert "max_tokens" in pack_documents(texts, tiny_tokenizer(), 16, tmp_path, max_tokens=30).summary()


def test_positions_start_again_with_each_document_and_row():
    batch = collate_rows([np.array([5, 6, BOS, 7, 8, 9]), np.array([BOS, 5, EOS, BOS, BOS, 6])], BOS)
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 3], [0, 1, 2, 0, 0, 1]]


def test_nothing_predicts_a_documents_first_token():
    batch = collate_rows([np.array([5, EOS, BOS, 7])], BOS)
    assert batch["labels"].tolist() == [[5, EOS, -100, 7]]
    assert batch["input_ids"].dtype == torch.int64


def test_one_token_that_is_bos_and_eos_parts_documents_once():
    both = EOS
    rows = [np.array([4, 5, both, both, 6, both]), np.array([both, 4, 5, both, both, 6])]
    rows.append(np.array([both, both, 4, 5, 6, 7]))  # the end of the row before, then a beginning
    batch = collate_rows(rows, both, both)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 0, 1], [0, 0, 1, 2, 3, 4]]
    ignored = [[False, False, False, True, False, False], [True, False, False, False, True, False]]
    assert (batch["labels"] == -100).tolist() == [*ignored, [False, True, False, False, False, False]]


@given(
    documents=st.lists(st.lists(st.integers(4, 9), min_size=1, max_size=5), min_size=2, max_size=8),
    width=st.integers(2, 9),
)
def test_documents_are_the_same_whether_bos_and_eos_differ_or_not(documents, width):
    def batch(bos: int, eos: int):
        stream = [token for document in documents for token in (bos, *document, eos)]
        rows = [np.array(stream[i : i + width]) for i in range(0, len(stream) - width + 1, width)]
        return collate_rows(rows, bos, eos) if rows else None

    two, one = batch(BOS, EOS), batch(EOS, EOS)
    if two is not None:
        first = two["position_ids"] == 0
        assert torch.equal(one["position_ids"] == 0, first)
        assert torch.equal(one["position_ids"], two["position_ids"])
        assert torch.equal(one["labels"] == -100, two["labels"] == -100)


def test_unigram_entropy_of_equal_shares_is_the_logarithm_of_their_number():
    assert unigram_entropy(np.array([0, 4, 4, 4, 4])) == pytest.approx(math.log(4))


def test_token_counts_leave_bos_out(tmp_path, texts):
    rows = pack_documents(texts, tiny_tokenizer(), 16, tmp_path)
    counts = rows.token_counts(300)
    assert counts[BOS] == 0
    assert counts.sum() == (rows.text.stream(0, rows.text.num_tokens) != BOS).sum()


def test_bits_per_byte_of_a_uniform_byte_model_are_eight():
    assert bits_per_byte(math.log(256), tokens_per_byte=1.0) == pytest.approx(8)
