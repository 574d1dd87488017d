"""Pieces of text come as early as they are sure, and together are the whole text up to a stop text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow_vl.data.prompts import plain_ids
from arlow_vl.serving.remembered import Remembered
from arlow_vl.serving.text_stream import TextStream
from tests.tiny_runs import tiny_tokenizer


def pieces(ids, stop=()) -> tuple[list[str], TextStream]:
    stream = TextStream(tiny_tokenizer(), tuple(stop))
    return [*(stream.push(token) for token in ids), stream.rest()], stream


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_the_pieces_of_any_text_are_that_text(text):
    (ids,) = plain_ids(tiny_tokenizer(), [text])
    expected = tiny_tokenizer().decode(ids, skip_special_tokens=True)
    assert "".join(pieces(ids)[0]) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(8, 299), max_size=20))
def test_the_pieces_of_any_tokens_are_the_decoded_text(ids):
    assert "".join(pieces(ids)[0]) == tiny_tokenizer().decode(ids, skip_special_tokens=True)


def test_half_a_character_waits_for_its_other_half():
    (ids,) = plain_ids(tiny_tokenizer(), ["né🦊"])
    shown, _ = pieces(ids)
    assert len(ids) > 4 and "".join(shown) == "né🦊" and "\ufffd" not in "".join(shown)


@settings(max_examples=80, deadline=None)
@given(st.text("abc ", max_size=30), st.lists(st.text("abc ", min_size=1, max_size=4), min_size=1, max_size=3))
def test_an_answer_ends_in_front_of_the_first_stop_text(text, stop):
    (ids,) = plain_ids(tiny_tokenizer(), [text])
    text = tiny_tokenizer().decode(ids, skip_special_tokens=True)
    stream, shown = TextStream(tiny_tokenizer(), tuple(stop)), ""
    for token in ids:
        shown += stream.push(token)
        if stream.is_stopped:
            break
    shown += stream.rest()
    first = min((place for one in stop if (place := text.find(one)) >= 0), default=None)
    if first is None:
        assert shown == text and not stream.is_stopped
    else:  # a stop text that ends earlier may begin later
        assert stream.is_stopped and text.startswith(shown) and not any(one in shown for one in stop)
        assert any(text.startswith(one, len(shown)) for one in stop)


def test_text_that_may_become_a_stop_text_is_held_back():
    (ids,) = plain_ids(tiny_tokenizer(), ["a##b"])
    shown, stream = pieces(ids, ["###"])
    assert "".join(shown) == "a##b" and not stream.is_stopped
    assert all(not piece.endswith("#") for piece in shown)


def test_what_was_used_longest_ago_is_forgotten_first():
    memory = Remembered(10)
    for name in "abc":
        memory.put(name, name.upper(), 4)
        memory.get("a")
    assert [memory.get(name) for name in "abc"] == ["A", None, "C"] and memory.bytes == 8
    memory.put("whole", "W", 11)
    assert memory.get("whole") is None and len(memory) == 2
    memory.put("a", "B", 6)
    assert memory.get("a") == "B" and memory.bytes == 10


@pytest.mark.parametrize("size", [1, 5])
def test_memory_never_holds_more_than_its_bound(size):
    memory = Remembered(12)
    for number in range(50):
        memory.put(number, number, size)
        assert memory.bytes <= 12 and memory.bytes == size * len(memory)
