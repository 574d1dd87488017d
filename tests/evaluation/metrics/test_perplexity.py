"""Every token scored once, with the context that the window leaves."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.evaluation.metrics.perplexity import bits_per_byte, perplexity, windows

sizes = st.integers(2, 9).flatmap(lambda window: st.tuples(st.just(window), st.integers(1, window - 1)))


@given(st.integers(0, 60), sizes)
def test_every_token_but_the_first_is_scored_once_in_a_window_as_full_as_can_be(tokens, size):
    window, stride = size
    parts = list(windows(tokens, window=window, stride=stride))
    scored = [place for part in parts for place in range(part.score_from, part.end)]
    assert scored == list(range(1, tokens))
    assert all(part.end - part.begin == min(window, tokens) for part in parts)
    assert all(part.score_from - part.begin >= window - stride for part in parts[1:])


def test_the_windows_are_those_of_the_picture():
    found = [(part.begin, part.end, part.score_from) for part in windows(10, window=6, stride=3)]
    assert found == [(0, 6, 1), (3, 9, 6), (4, 10, 9)]


def text_log_probability(tokens, log_probabilities, *, window, stride):
    """The sum over all tokens but the first, read in windows."""
    parts = []
    for part in windows(len(tokens), window=window, stride=stride):
        of_window = log_probabilities(tokens[part.begin : part.end])  # one fewer than tokens
        parts += of_window[part.score_from - part.begin - 1 :]
    return math.fsum(parts)


def bigrams(tokens):
    """A model that looks one token back: its log-probabilities depend on no window."""
    return [-abs(a - b) - 1.0 for a, b in pairwise(tokens)]


@given(st.lists(st.integers(0, 5), max_size=40), sizes)
def test_a_model_that_looks_one_token_back_scores_the_same_in_any_window(tokens, size):
    window, stride = size
    total = text_log_probability(tokens, bigrams, window=window, stride=stride)
    assert total == pytest.approx(sum(bigrams(tokens)))


def test_a_stride_of_one_gives_every_token_the_whole_window_before_it():
    def context(tokens):
        return [float(place) for place in range(1, len(tokens))]

    assert text_log_probability([0] * 7, context, window=4, stride=1) == 1 + 2 + 3 + 3 + 3 + 3
    assert text_log_probability([0] * 7, context, window=4, stride=3) == 1 + 2 + 3 + 1 + 2 + 3


def test_an_even_guess_has_the_perplexity_of_its_choices_and_their_bits():
    sums = np.array([[-10 * math.log(8), 10, 30], [-4 * math.log(8), 4, 12]]).sum(axis=0)
    assert perplexity(sums) == pytest.approx(8)
    assert bits_per_byte(sums) == pytest.approx(1)


@pytest.mark.parametrize(
    ("window", "stride", "sentence"),
    [(1, 1, "two tokens at least"), (8, 8, "from 1 to 7"), (8, 0, "from 1 to 7, one less than the window, got 0")],
)
def test_a_window_that_cannot_score_every_token_is_refused(window, stride, sentence):
    with pytest.raises(ValueError, match=sentence):
        list(windows(20, window=window, stride=stride))
