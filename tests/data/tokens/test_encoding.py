"""tiktoken gives a tokenizer's ids, or the tokenizer itself does."""

import functools
import json
import pickle
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from arlow_vl.data.tokens.encoding import LLAMA3_REGEX, Encoder, OtherTokenizer, tiktoken_encode
from arlow_vl.models.arlow.chat_arlow import QUOTE
from arlow_vl.models.arlow.tokenization_arlow_fast import train_tokenizer
from arlow_vl.models.arlow.vocabulary_arlow import SPECIAL_TOKENS
from tests.tiny_runs import sentences

ALPHABET = "ab the'sLL \t\r\n\x0b\x1c\x85\xa0\u2003\u2028\u3000éßſあ漢ก\u0301\U0001f600١²½!?-_\x00\ufeff\ufffd09"
WORDS = st.sampled_from([*SPECIAL_TOKENS, QUOTE, "'re", "'S", "the", " the cat", "\n\n  ", "  \r\n", "<|im_", " " * 99])
TEXTS = st.lists(WORDS | st.text(max_size=9) | st.text(ALPHABET, max_size=20), max_size=12).map("".join)
LONG_WORDS = st.builds(lambda word, times: word * times, st.text(ALPHABET, min_size=1, max_size=5), st.just(1000))


@functools.cache
def tokenizer():
    return train_tokenizer(
        [*sentences(200), "l'été, “naïve” 漢字かな 漢字かな ١٢٣ 12345 \n\n\t\tif x:\r\n  y\n" * 20], 600
    )


@functools.cache
def llama3() -> tuple[Tokenizer, Encoder]:
    """The tokenizer with the regex of Llama 3 and no normalizer."""
    changed = spec()
    changed["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = LLAMA3_REGEX
    changed["normalizer"] = None
    backend = Tokenizer.from_str(json.dumps(changed))
    backend.encode_special_tokens = True
    return backend, tiktoken_encode(json.dumps(changed))


def spec() -> dict:
    return json.loads(tokenizer().backend_tokenizer.to_str())


def expected(texts: list[str]) -> list[list[int]]:
    return tokenizer()(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]


@functools.cache
def fast():
    return tiktoken_encode(json.dumps(spec()))


@settings(max_examples=150)
@given(TEXTS | LONG_WORDS)
def test_tiktoken_gives_the_tokenizers_ids(text):
    assert fast()(text) == expected([text])[0]


@settings(max_examples=200)
@given(TEXTS)
def test_tiktoken_gives_the_ids_under_llama_3s_regex(text):
    backend, encode = llama3()
    assert encode(text) in (None, backend.encode(text, add_special_tokens=False).ids)


def test_every_assigned_character_is_cut_alike():
    known = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in ("Cs", "Co", "Cn")]
    later = [chr(c) for c in (0x558, 0x107BB, 0x1E6C0, 0x3347A, 0x3FC3F, 0xE0FFF, 0x10FFFF)]
    texts = [f"a{c}1{c} {c}\n" for c in (*known[::15], *known[:2000], *later)]
    assert [fast()(text) for text in texts] == expected(texts)


def test_a_long_text_in_parts_has_the_same_ids():
    text = ("one line\n\n  and another \n" * 9 + "\n\t" * 5 + "x" * 9) * 3000
    assert len(text) > 2**19
    assert fast()(text) == expected([text])[0]


def test_white_space_too_long_for_tiktoken_goes_to_the_tokenizer():
    text = "a" + " " * 100_000 + "b"
    assert fast()(text) is None
    assert list(Encoder(tokenizer())([text, "the cat"])) == expected([text, "the cat"])


def test_arlows_own_tokenizer_needs_no_fallback():
    encoder = Encoder(tokenizer())
    assert list(encoder(sentences(5))) == expected(sentences(5))
    assert encoder.reason is None


def test_an_encoder_reaches_a_process_that_is_not_forked():
    encoder = pickle.loads(pickle.dumps(Encoder(tokenizer())))
    assert list(encoder(sentences(5))) == expected(sentences(5))
    assert encoder.reason is None


def change(path: str, value):
    changed = spec()
    *parents, last = path.split(".")
    functools.reduce(lambda at, key: at[int(key) if key.isdigit() else key], parents, changed)[last] = value
    return json.dumps(changed)


def swapped_merges() -> str:
    changed = spec()
    merges = changed["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    return json.dumps(changed)


def unreachable_entry() -> str:
    """`ab` is joined before `abc` could be joined of `a` and `bc`."""
    changed = spec()
    entries = ["ab", "bc", "abc"]
    changed["model"]["vocab"] = {
        **{token: i for token, i in changed["model"]["vocab"].items() if i < 267},
        **{entry: 1000 + i for i, entry in enumerate(entries)},
    }
    changed["model"]["merges"] = [["a", "b"], ["b", "c"], ["a", "bc"]]
    return json.dumps(changed)


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (lambda: change("normalizer", {"type": "NFC"}), "normalises text \\(NFC\\)"),
        (lambda: change("pre_tokenizer.pretokenizers.0.pattern", {"Regex": r"\w+"}), "cuts text into words"),
        (lambda: change("pre_tokenizer", None), "cuts text into words"),
        (lambda: change("model.dropout", 0.1), "no plain byte-level BPE"),
        (lambda: change("added_tokens.0.special", False), "added tokens"),
        (swapped_merges, "order of its merges"),
        (unreachable_entry, "do not lead to each"),
    ],
)
def test_a_tokenizer_that_tiktoken_might_not_match_is_known_by_its_definition(backend, reason):
    with pytest.raises(OtherTokenizer, match=reason):
        tiktoken_encode(backend())


def test_other_ids_in_the_text_itself_end_tiktokens_use_with_a_reason():
    encoder = Encoder(tokenizer())
    encoder._fast = lambda text: [0]
    assert list(encoder(sentences(3))) == expected(sentences(3))
    assert "other ids" in encoder.reason
