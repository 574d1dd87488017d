"""Intervals: of which width, paired, and the same on every run."""

import tracemalloc

import numpy as np
import pytest

from arlow_vl.evaluation import bootstrap
from arlow_vl.evaluation.bootstrap import (
    Interval,
    difference_interval,
    draw_weights,
    metric_interval,
    resample,
    summarise,
    weights_in_blocks,
)
from arlow_vl.evaluation.metrics.captions import bleu, caption_scores
from arlow_vl.evaluation.metrics.sums import mean


def points(values):
    return np.stack([values, np.ones(len(values))], axis=1)


@pytest.fixture(scope="module")
def weights():
    return draw_weights(400, resamples=2000)


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(1).normal(3, 2, size=400)


def test_every_resample_is_as_large_as_the_original(weights):
    assert (weights.sum(axis=1) == 400).all()


def test_resamples_in_blocks_are_those_that_are_drawn_at_once(monkeypatch):
    drawn = np.random.default_rng(0).integers(7, size=(10, 7))
    monkeypatch.setattr(bootstrap, "MOST_WEIGHTS", 3 * 7 + 1)
    blocks = list(weights_in_blocks(7, resamples=10))
    assert [len(block) for block in blocks] == [3, 3, 3, 1]
    expected = [np.bincount(row, minlength=7) for row in drawn]
    np.testing.assert_array_equal(np.concatenate(blocks), expected)
    np.testing.assert_array_equal(draw_weights(7, resamples=10), expected)


def test_the_resamples_of_many_images_are_not_in_memory_together():
    """A thousand of 20,000 are 160 MB, and were drawn in three times as much."""
    rows = points(np.arange(20_000.0))
    tracemalloc.start()
    values = resample(20_000, lambda weights: {"mean": mean(weights @ rows)})["mean"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(values) == bootstrap.RESAMPLES and values.mean() == pytest.approx(10_000, rel=1e-3)
    assert peak < 160e6


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation(weights, values):
    interval = metric_interval(points(values), mean, weights)
    error = values.std() / np.sqrt(len(values))
    assert interval.estimate == pytest.approx(values.mean())
    # 2,000 resamples place the ends of the interval within a tenth of their distance.
    assert [interval.low, interval.high] == pytest.approx(
        values.mean() + 1.96 * error * np.array([-1, 1]), abs=0.2 * error
    )


def test_the_same_seed_gives_the_same_interval(values):
    first, second = (metric_interval(points(values), mean, draw_weights(400, seed=3)) for _ in range(2))
    assert first == second


def test_a_system_does_not_differ_from_itself(weights, values):
    interval = difference_interval(points(values), points(values), mean, weights)
    assert (interval.estimate, interval.low, interval.high, interval.is_outside_zero) == (0, 0, 0, False)


def test_pairing_sees_a_small_steady_difference(weights, values):
    """It is a twentieth of the spread of the samples, and both systems' own intervals overlap."""
    better = values + 0.1
    assert metric_interval(points(better), mean, weights).low < metric_interval(points(values), mean, weights).high
    assert difference_interval(points(better), points(values), mean, weights).is_outside_zero


def test_a_resampled_bleu_is_the_bleu_of_the_resampled_corpus():
    references = {str(i): [f"a dog number {i} runs home"] for i in range(6)}
    predictions = {key: f"a dog number {i % 4} runs" for i, key in enumerate(references)}
    row = draw_weights(6, resamples=1, seed=2)
    drawn = [str(i) for i in range(6) for _ in range(int(row[0, i]))]
    corpus = caption_scores(
        {str(n): predictions[key] for n, key in enumerate(drawn)},
        {str(n): references[key] for n, key in enumerate(drawn)},
    )
    counts = caption_scores(predictions, references).bleu_counts
    np.testing.assert_allclose(bleu(row @ counts)[0], corpus.bleu, rtol=1e-12)


def test_a_resample_without_a_sample_of_the_kind_has_no_value_and_is_left_out():
    """Of two samples among 60 one resample in e^2 has none; both are right, so nothing of them can be less than 1."""
    weights, group = draw_weights(60), np.zeros((60, 2))
    group[:2] = 1
    assert np.isnan(mean(weights @ group)).any()
    assert metric_interval(group, mean, weights) == Interval(1.0, 1.0, 1.0)
    assert difference_interval(group, group * [0, 1], mean, weights) == Interval(1.0, 1.0, 1.0)


def test_sums_in_another_order_are_no_difference():
    """0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ by 1e-16 in every resample."""
    interval = summarise(1e-16, np.full(100, 1e-16))
    assert not interval.is_outside_zero
    assert summarise(1e-6, np.full(100, 1e-6)).is_outside_zero
