"""The words of captions, against the official Java tokeniser's answers."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow_vl.evaluation.metrics.ptb import tokenize_by_rules, tokenize_caption

OFFICIAL = json.loads(Path(__file__).with_name("coco_scores.json").read_text(encoding="utf-8"))["tokens"]


@pytest.mark.parametrize(("line", "words"), OFFICIAL)
def test_words_are_those_of_the_official_tokeniser(line, words):
    assert tokenize_caption(line) == words


@given(st.text())
def test_any_text_gives_words_without_space_or_upper_case(line):
    for word in tokenize_caption(line):
        assert word == word.lower() and word.split() == [word]


WORDS = "a A dog cannot Gonna wanna gotta gimme st Mass dr no etc I x The It café o'clock U.S t-shirt 3 and/or".split()
parts = st.sampled_from([*WORDS, " ", "  ", ", ", ",", ".", ". ", "\n", "-", "!"])


@settings(max_examples=400)
@given(st.lists(parts, max_size=8).map("".join) | st.lists(st.sampled_from(WORDS)).map(" ".join).map("{}.".format))
def test_captions_of_plain_words_are_cut_as_the_rules_cut_them(line):
    assert tokenize_caption(line) == tokenize_by_rules(line)


@pytest.mark.parametrize("caption", ["A dog, two cats and a hat.", "a red car"])
def test_plain_captions_lose_commas_and_the_full_stop(caption):
    assert tokenize_caption(caption) == caption.lower().replace(",", "").rstrip(".").split()
