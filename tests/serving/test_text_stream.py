"""Tokens become pieces of text that never change, up to a stop text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from arlow_vl.serving.text_stream import TextStream
from tests.tiny_runs import tiny_tokenizer

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)


def streamed(tokenizer, ids, **settings):
    stream = TextStream(tokenizer, **settings)
    pieces = [stream.push(token) for token in ids]
    return [*pieces, stream.rest()], stream


@given(st.lists(st.integers(0, 299), max_size=30))
def test_the_pieces_of_any_tokens_are_their_text(ids):
    tokenizer = tiny_tokenizer()
    pieces, _ = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@given(TEXTS, TEXTS, st.lists(st.text("ab €", min_size=1, max_size=3), max_size=3))
def test_an_answer_ends_where_a_stop_text_begins_and_shows_no_part_of_it(before, behind, stops):
    tokenizer = tiny_tokenizer()
    text = before + "".join(stops[:1]) + behind
    pieces, stream = streamed(tokenizer, tokenizer(text, add_special_tokens=False).input_ids, stop=stops)
    shown = "".join(pieces)
    assert text.startswith(shown)
    assert stream.is_stopped is any(stop in text for stop in stops)
    assert not any(stop in shown for stop in stops)
    if stream.is_stopped:
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
    else:
        assert shown == text


def test_a_character_comes_whole():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("€", add_special_tokens=False).input_ids
    assert len(ids) == 3
    assert streamed(tokenizer, ids)[0] == ["", "", "€", ""]


def test_what_may_begin_a_stop_text_is_held_back():
    tokenizer = tiny_tokenizer()
    ids = [tokenizer(letter, add_special_tokens=False).input_ids[0] for letter in "zEzENDz"]
    pieces, stream = streamed(tokenizer, ids, stop=["END"])
    assert pieces == ["z", "", "Ez", "", "", "", "", ""] and stream.is_stopped


@pytest.fixture(scope="module")
def metaspace():
    """As sentencepiece's: a space is the beginning of a word's token, and goes where a text begins."""
    words = {"<unk>": 0, "▁The": 1, "▁first": 2, "s": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_behind_a_prompt_the_first_word_keeps_its_space(metaspace):
    assert metaspace.decode([2, 3]) == "firsts"
    assert streamed(metaspace, [2, 3, 2], prompt=[1])[0] == [" first", "s", " first", ""]
    assert streamed(metaspace, [2, 3, 2])[0] == ["first", "s", " first", ""]
