"""What GGUF can say of a tokenizer, and which ones it cannot."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, processors

from arlow_vl.errors import CheckpointError
from arlow_vl.models.convert.gguf_tokens import SPLITS, vocabulary_of
from arlow_vl.models.convert.gguf_writing import export_gguf
from arlow_vl.models.convert.importing import import_model
from arlow_vl.models.folders import load_tokenizer
from tests.models.convert.llama_cpp import complete, server
from tests.models.convert.made_llamas import TOKENIZERS, write_llama


def changed(name: str, **parts):
    """A tokenizer with other parts in its tokenizer.json; a part of `model` is given by its own name."""
    tokenizer = TOKENIZERS[name]()
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["model"] |= {key: parts.pop(key) for key in [*parts] if key in spec["model"]}
    spec |= parts
    tokenizer.backend_tokenizer.__setstate__(json.dumps(spec).encode())
    return tokenizer


def merges_without(name: str, word: str) -> list[list[str]]:
    merges = json.loads(TOKENIZERS[name]().backend_tokenizer.to_str())["model"]["merges"]
    return [merge for merge in merges if "".join(merge) != word]


def added(name: str, **flags):
    """With one more added token."""
    tokenizer = TOKENIZERS[name]()
    tokenizer.backend_tokenizer.add_tokens([AddedToken("think", **{"normalized": False} | flags)])
    return tokenizer


def begins_with(name: str, token: str) -> dict:
    index = TOKENIZERS[name]().convert_tokens_to_ids(token)
    return json.loads(
        processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, index)]).__getstate__()
    )


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (lambda: added("smol", single_word=True), "'athinkb'"),
        (lambda: added("smol", lstrip=True), "'a think b'"),
        (lambda: added("llama3", rstrip=True), "'a think b'"),
        (lambda: added("sentencepiece", normalized=True), "'athinkb'"),
        (lambda: changed("smol", post_processor=begins_with("smol", "<|endoftext|>")), "''"),
        (lambda: changed("smol", ignore_merges=True, merges=merges_without("smol", "Ġthe")), "' the'"),
        (lambda: changed("llama3", merges=merges_without("llama3", "Ġthe")), "' the'"),
        (lambda: changed("smol", end_of_word_suffix="x"), "' '"),
        (lambda: changed("sentencepiece", byte_fallback=False), "' in front'"),
    ],
)
def test_a_tokenizer_of_which_llama_cpp_would_make_other_ids_is_refused_with_a_text(tokenizer, text):
    tokenizer = tokenizer()
    with pytest.raises(CheckpointError) as caught:
        vocabulary_of(tokenizer, len(tokenizer), Path("a"))
    assert f"of the text {text}" in str(caught.value) and "export it as llama" in str(caught.value)


def test_added_tokens_and_words_that_differ_in_nothing_are_exported():
    for tokenizer in (added("smol"), added("llama3", special=True), changed("smol", ignore_merges=True)):
        vocabulary_of(tokenizer, len(tokenizer), Path("a"))


def test_sentencepiece_without_a_token_for_every_byte_is_refused():
    spec = json.loads(TOKENIZERS["sentencepiece"]().backend_tokenizer.to_str())
    vocab = {token.replace("<0x0A>", "<new>"): index for token, index in spec["model"]["vocab"].items()}
    with pytest.raises(CheckpointError, match="lacks some of the bytes <0x00> to <0xFF>"):
        vocabulary_of(changed("sentencepiece", vocab=vocab), 420, Path("a"))


def test_a_tokenizer_that_composes_accents_is_exported_and_it_is_told(tmp_path):
    spec = json.loads(TOKENIZERS["llama3"]().backend_tokenizer.to_str())
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": SPLITS["qwen2"]}
    tokenizer = changed("llama3", normalizer={"type": "NFC"}, pre_tokenizer=spec["pre_tokenizer"])
    import_model(write_llama(tmp_path / "source", tokenizer), tmp_path / "arlow")
    lines = export_gguf(tmp_path / "arlow", tmp_path / "model.gguf")
    assert [line for line in lines if "composes letters and accents" in line]
    reads, llama_cpp = load_tokenizer(tmp_path / "arlow"), server(tmp_path / "model.gguf")
    assert complete(llama_cpp, "café", 1, [])[1] == len(reads("café")["input_ids"])
