"""CIDEr-D and BLEU, against the official scorers' numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.evaluation.metrics.captions import bleu, bleu_counts, caption_scores, cider_scores, match_ngrams
from arlow_vl.evaluation.metrics.rouge import longest_common_subsequence, rouge_l
from tests.evaluation.metrics import plain_scorers

OFFICIAL = json.loads(Path(__file__).with_name("coco_scores.json").read_text(encoding="utf-8"))
# Both add the same numbers in another order.
SUMMATION = 1e-12


@pytest.fixture(scope="module")
def scores():
    return caption_scores(OFFICIAL["predictions"], OFFICIAL["references"])


def test_cider_d_equals_the_official_scorer(scores):
    assert scores.cider == pytest.approx(OFFICIAL["official"]["cider"], abs=SUMMATION)


def test_cider_d_of_each_sample_equals_the_official_scorer(scores):
    assert scores.cider_per_sample == pytest.approx(OFFICIAL["official"]["cider_per_sample"], abs=SUMMATION)


def test_bleu_equals_the_official_scorer(scores):
    assert scores.bleu == pytest.approx(OFFICIAL["official"]["bleu"], abs=SUMMATION)


def test_a_reference_word_for_word_scores_10():
    references = {"a": ["a brown dog runs home"], "b": ["the cat sleeps all day"]}
    scores = caption_scores({key: captions[0] for key, captions in references.items()}, references)
    assert scores.cider_per_sample == pytest.approx([10, 10])


def test_an_empty_caption_scores_0():
    scores = caption_scores({"a": "", "b": ""}, {"a": ["a dog"], "b": ["a cat"]})
    assert scores.cider == 0
    assert max(scores.bleu) < 1e-6


def test_bleu_of_many_totals_at_once_equals_bleu_of_each():
    rows = bleu_counts(match_ngrams([["a", "dog"], ["a"] * 5], [[["a", "dog", "runs"]], [["a"]]]))
    np.testing.assert_array_equal(bleu(rows), np.stack([bleu(row) for row in rows]))


def test_bleu_takes_the_reference_closest_in_length():
    (row,) = bleu_counts(match_ngrams([["a", "b"]], [[["a", "b", "c"], ["a"], ["x"] * 9]]))
    assert row[-2:].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("predictions", "references", "sentence"),
    [
        ({"a": "x"}, {"a": ["x"], "b": ["y"]}, "differ in 1 image, the first is 'b'"),
        ({"a": "x"}, {"a": []}, "image 'a' has no reference"),
        ({}, {}, "no captions to score"),
    ],
)
def test_what_cannot_be_scored_is_named(predictions, references, sentence):
    with pytest.raises(ValueError, match=sentence):
        caption_scores(predictions, references)


@pytest.mark.parametrize("caption", ["zzz", "", "...", "a dog"])
def test_without_a_matching_ngram_of_an_order_bleu_is_exactly_0(caption):
    """The official code gives 1e-4 and less of its epsilons, or 0.03 where no caption is long enough to match."""
    scores = caption_scores({"a": caption, "b": caption}, {"a": ["a red dog runs home"], "b": ["a cat sits down here"]})
    assert scores.bleu[2:] == [0, 0]
    assert (scores.bleu[0] > 0) is (caption == "a dog")


def test_captions_too_short_for_an_ngram_score_0_and_not_the_root_of_an_epsilon():
    scores = caption_scores({"a": "red dog", "b": "blue cat"}, {"a": ["red dog"], "b": ["blue cat"]})
    assert scores.bleu[:2] == pytest.approx([1, 1])
    assert scores.bleu[2:] == [0, 0]


def test_an_empty_caption_scores_0_beside_a_reference_without_words():
    scores = caption_scores({"a": "", "b": "a cat"}, {"a": ["..."], "b": ["a cat"]})
    assert scores.cider_per_sample[0] == 0
    assert np.isfinite(scores.bleu).all()


captions = st.lists(st.sampled_from("a dog runs home over the hill".split()), max_size=9)
samples = st.lists(st.tuples(captions, st.lists(captions, min_size=1, max_size=4)), min_size=1, max_size=5)


@given(samples)
def test_any_captions_score_as_the_definitions_say(pairs):
    candidates, targets = (list(column) for column in zip(*pairs, strict=True))
    matches = match_ngrams(candidates, targets)
    cider_d, cider = cider_scores(matches)
    np.testing.assert_allclose(cider_d, plain_scorers.cider(candidates, targets, is_d=True), atol=SUMMATION)
    np.testing.assert_allclose(cider, plain_scorers.cider(candidates, targets, is_d=False), atol=SUMMATION)
    np.testing.assert_array_equal(bleu_counts(matches), [plain_scorers.bleu_row(*pair) for pair in pairs])


def test_cider_without_clipping_rewards_a_repeated_word_and_cider_d_does_not():
    targets = [[["red", "dog"]], [["blue", "cat"]]]
    repeated = match_ngrams([["red"] * 9, ["blue", "cat"]], targets)
    said_once = match_ngrams([["red"], ["blue", "cat"]], targets)
    assert cider_scores(repeated)[1][0] == pytest.approx(cider_scores(said_once)[1][0])
    assert cider_scores(repeated)[0][0] < cider_scores(said_once)[0][0] / 2


@given(captions, captions)
def test_the_longest_common_subsequence_is_the_textbooks(one, other):
    assert longest_common_subsequence(one, other) == plain_scorers.common_subsequence(one, other)


def test_rouge_l_takes_the_best_precision_and_the_best_recall_of_any_reference():
    """Precision 2/3 of the first, recall 1 of the second: 2.44 * 2/3 / (1 + 1.44 * 2/3)."""
    references = [["a", "dog", "on", "a", "hill"], ["dog"]]
    assert rouge_l(["a", "dog", "runs"], references) == pytest.approx(2.44 * 2 / 3 / (1 + 1.44 * 2 / 3))


@pytest.mark.parametrize("words", [[], ["cat"]])
def test_a_caption_that_shares_no_word_has_a_rouge_l_of_0(words):
    assert rouge_l(words, [["dog"], []]) == 0
