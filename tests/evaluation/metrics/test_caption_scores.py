"""CIDEr-D and BLEU, against the official scorers' numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from arlow_vl.evaluation.metrics.captions import bleu, bleu_counts, caption_scores

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
    rows = np.array([bleu_counts(["a", "dog"], [["a", "dog", "runs"]]), bleu_counts(["a"] * 5, [["a"]])], dtype=float)
    np.testing.assert_array_equal(bleu(rows), np.stack([bleu(row) for row in rows]))


def test_bleu_takes_the_reference_closest_in_length():
    assert bleu_counts(["a", "b"], [["a", "b", "c"], ["a"], ["x"] * 9])[-2:] == [2, 1]


@pytest.mark.parametrize(
    ("predictions", "references", "sentence"),
    [
        ({"a": "x"}, {"a": ["x"], "b": ["y"]}, "differ in 1 images, the first is 'b'"),
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
