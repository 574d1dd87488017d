"""The words of captions, against the official Java tokeniser's answers."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow_vl.evaluation.metrics.ptb import tokenize_caption

OFFICIAL = json.loads(Path(__file__).with_name("coco_scores.json").read_text(encoding="utf-8"))["tokens"]


@pytest.mark.parametrize(("line", "words"), OFFICIAL)
def test_words_are_those_of_the_official_tokeniser(line, words):
    assert tokenize_caption(line) == words


@settings(deadline=None)
@given(st.text())
def test_any_text_gives_words_without_space_or_upper_case(line):
    for word in tokenize_caption(line):
        assert word == word.lower() and word.split() == [word]
