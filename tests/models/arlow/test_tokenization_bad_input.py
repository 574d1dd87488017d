"""What the tokenizers say to folders, vocabularies, texts and ids that cannot be."""

import pytest

from arlow_vl.errors import CheckpointError
from arlow_vl.models.arlow.tokenization_arlow import ArlowTokenizer
from arlow_vl.models.arlow.tokenization_arlow_fast import ArlowTokenizerFast
from arlow_vl.models.arlow.vocabulary_arlow import byte_vocab


def vocab_and_merges():
    vocab = byte_vocab()
    return {**vocab, "th": len(vocab), "the": len(vocab) + 1}, [("t", "h"), ("th", "e")]


@pytest.fixture(scope="module")
def slow() -> ArlowTokenizer:
    return ArlowTokenizer(*vocab_and_merges())


@pytest.fixture(params=[ArlowTokenizer, ArlowTokenizerFast])
def tokenizer(request):
    return request.param(*vocab_and_merges())


@pytest.mark.parametrize("loader", [ArlowTokenizer, ArlowTokenizerFast])
@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named(slow, loader, name, tmp_path):
    slow.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError) as caught:
        loader.from_pretrained(tmp_path)
    assert all(part in str(caught.value) for part in (str(tmp_path), name, "arlow tokenizer train"))


DAMAGE = [
    ("vocab.json", "{", "vocab.json is not JSON"),
    ("vocab.json", "[]", "vocab.json must map tokens to ids, got a JSON list"),
    ("vocab.json", "{}", "lacks 11 of the special tokens"),
    ("merges.txt", "#version: 0.2\nt h\nt h e\n", "merges.txt, line 3 must hold two tokens, got 't h e'"),
    ("merges.txt", "t \n", "merges.txt, line 1 must hold two tokens, got 't '"),
    ("merges.txt", "", "has no merge for 2 tokens, first 'th'"),
    ("merges.txt", "\udcff", "merges.txt is not UTF-8 text"),
    ("tokenizer_config.json", "{", "tokenizer.json or tokenizer_config.json is damaged"),
    ("tokenizer.json", "{", "tokenizer.json or tokenizer_config.json is damaged"),
    ("tokenizer.json", "{}", "tokenizer.json holds no BPE vocabulary"),
    ("tokenizer.json", "[]", "tokenizer.json holds no BPE vocabulary"),
    ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}}}', "tokenizer.json holds no BPE vocabulary"),
]


@pytest.mark.parametrize("loader", [ArlowTokenizer, ArlowTokenizerFast])
@pytest.mark.parametrize(("name", "content", "reason"), DAMAGE)
def test_a_damaged_file_is_named(slow, loader, name, content, reason, tmp_path):
    slow.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError) as caught:
        loader.from_pretrained(tmp_path)
    message = str(caught.value)
    assert message.startswith(str(tmp_path)) and reason in message and "; copy " in message and "\n" not in message


WRONG_VOCABULARIES = {
    "lacks 1 of the special tokens, first '<image>'": (lambda vocab: vocab.pop("<image>"), []),
    "lacks 1 of the single bytes, first 'Ġ'": (lambda vocab: vocab.pop("Ġ"), []),
    "lacks 1 of the tokens that merges name, first 'Ġx'": (lambda vocab: None, [("Ġ", "x")]),
    "has no merge for 1 tokens, first 'Ġx'": (lambda vocab: vocab.update({"Ġx": 267}), []),
    "the 267 tokens must have the ids from 0 on": (lambda vocab: vocab.update({"Ġ": 5}), []),
    "the 267 tokens must have the ids from 0 on, each once": (lambda vocab: vocab.update({"Ġ": "20"}), []),
}


@pytest.mark.parametrize("kind", [ArlowTokenizer, ArlowTokenizerFast])
@pytest.mark.parametrize("reason", WRONG_VOCABULARIES)
def test_a_vocabulary_that_would_lose_text_is_refused(kind, reason):
    vocab = byte_vocab()
    change, merges = WRONG_VOCABULARIES[reason]
    change(vocab)
    with pytest.raises(CheckpointError, match=f"^the vocabulary.*{reason}.*; copy vocab.json"):
        kind(vocab, merges)


@pytest.mark.parametrize("text", [5, b"word", 1.5, ["word", None], ["word", 5], [1, 2], {"text": "word"}])
def test_what_is_no_text_is_refused(tokenizer, text):
    with pytest.raises(ValueError, match=r"^a text must be a string, or a list of strings, got "):
        tokenizer(text)


@pytest.mark.parametrize("text", [[], (), [[]]])
def test_an_empty_batch_is_refused(tokenizer, text):
    with pytest.raises(ValueError, match=r"^there is no text to encode, got an empty list"):
        tokenizer(text)


def test_an_unknown_argument_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"^trunction is no argument that a tokenizer call takes"):
        tokenizer("word", trunction=True)


@pytest.mark.parametrize("ids", [-100, [1, -100], [1.5], "word"])
def test_ids_that_cannot_be_are_refused(tokenizer, ids):
    with pytest.raises(ValueError, match=r"^an id to decode must be a whole number from 0 on, got "):
        tokenizer.decode(ids)


def test_the_slow_one_says_that_it_has_no_offsets(slow):
    with pytest.raises(ValueError, match="use ArlowTokenizerFast"):
        slow("word", return_offsets_mapping=True)
