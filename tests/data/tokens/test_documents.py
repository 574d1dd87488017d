"""Tokenised text as items of a mixture."""

import json
import tracemalloc

from arlow_vl.data.prompts import IGNORED
from arlow_vl.data.tokens.documents import TokenDocuments
from arlow_vl.data.tokens.shards import TokenLimits
from arlow_vl.data.tokens.write import tokenize_text
from tests.tiny_runs import sentences, tiny_tokenizer


def documents_of(tmp_path, max_length: int) -> tuple[TokenDocuments, list[list[int]]]:
    texts, tokenizer = sentences(9), tiny_tokenizer()
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokens = tokenize_text([tmp_path / "a.jsonl"], tokenizer, tmp_path / "tokens", limits=TokenLimits(shard_tokens=200))
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    whole = [[tokenizer.bos_token_id, *some, tokenizer.eos_token_id] for some in ids]
    return TokenDocuments(tokens, max_length=max_length), whole


def test_a_long_document_goes_on_in_the_next_item(tmp_path):
    documents, whole = documents_of(tmp_path, 24)
    pieces = [(n, text[start : start + 24]) for n, text in enumerate(whole) for start in range(0, len(text), 24)]
    assert len(documents) == len(pieces) > len(whole)
    for index, (number, ids) in enumerate(pieces):
        item = documents[index]
        assert item.images == [] and item.texts[0].ids == ids
        assert item.texts[0].labels == [IGNORED, *ids[1:]]
        assert documents.length(index) == (len(ids), 0)
        assert documents.key(index).startswith(f"document {number}")
    assert len({documents.key(index) for index in range(len(documents))}) == len(documents)


def test_a_piece_of_a_book_costs_what_the_piece_holds(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "\n".join(sentences(3000))}))
    tokens = tokenize_text([tmp_path / "a.jsonl"], tiny_tokenizer(), tmp_path / "tokens")
    documents = TokenDocuments(tokens, max_length=16)
    documents[0]
    tracemalloc.start()
    try:
        documents[len(documents) // 2]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < tokens.length(0) // 2  # bytes; the book's ids as numbers of Python take eight a token or more


def test_other_lengths_are_other_data(tmp_path):
    assert documents_of(tmp_path, 24)[0].fingerprint != documents_of(tmp_path, 25)[0].fingerprint
