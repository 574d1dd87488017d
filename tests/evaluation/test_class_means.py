import tracemalloc

import numpy as np
import pytest

from arlow_vl.evaluation import class_means
from arlow_vl.evaluation.class_means import captions_by_mean, nearest_class_means, shrunk_covariance
from experiments.plain_controls import nearest_neighbour


def spread_captions(rng, rows):
    """Two captions along one narrow axis; eight axes spread far and say nothing."""
    labels = rng.integers(2, size=rows)
    features = np.column_stack([labels + 0.1 * rng.normal(size=rows), 2 * rng.normal(size=(rows, 8))])
    return features.astype(np.float32), [f"caption {label}" for label in labels]


def test_whitening_names_what_the_nearest_image_does_not():
    rng = np.random.default_rng(0)
    train, captions = spread_captions(rng, 300)
    test, truth = spread_captions(rng, 100)

    def right(said):
        return sum(a == b for a, b in zip(said, truth, strict=True))

    assert right(nearest_class_means(train, captions, test)) > 95
    assert right(nearest_neighbour(train, captions, test)) < 80


def test_images_of_one_caption_each_are_named_by_the_nearest():
    train = np.eye(4, dtype=np.float32)
    assert nearest_class_means(train, list("abcd"), train[[2, 0]] * 3) == ["c", "a"]


def test_the_nearest_come_first_and_of_equally_near_ones_the_first_by_the_alphabet(monkeypatch):
    train = np.repeat(np.eye(3, dtype=np.float32), 2, axis=0)  # two captions for each direction
    monkeypatch.setattr(class_means, "MOST_SIMILARITIES", 2 * 6)  # two of five images at once
    found = captions_by_mean(train, list("fdbeca"), train[[0, 2, 4, 0, 2]], 2)
    assert found == [["d", "f"], ["b", "e"], ["a", "c"], ["d", "f"], ["b", "e"]]


def test_the_similarities_of_many_images_and_captions_are_not_in_memory_together():
    """A thousand times 20,000 are 160 MB, and were sorted in three times as much."""
    rng, captions = np.random.default_rng(0), [f"caption {number:05}" for number in range(20_000)]
    train = rng.normal(size=(20_000, 8))
    tracemalloc.start()
    found = nearest_class_means(train, captions, train[:1000])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == captions[:1000] and peak < 100e6


@pytest.mark.parametrize("rows", [5, 50, 5000])
def test_the_covariance_is_invertible_and_nears_the_sample_s_with_more_rows(rows):
    rng = np.random.default_rng(1)
    scale = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    residuals = rng.normal(size=(rows, 6)) * scale
    covariance = shrunk_covariance(residuals, freedom=rows)
    assert np.linalg.eigvalsh(covariance).min() > 0
    if rows == 5000:
        assert np.allclose(covariance, residuals.T @ residuals / rows, rtol=0.02, atol=0.05)


def test_the_amount_of_shrinkage_is_that_of_the_paper():
    """Equation 23 written out once more, term by term."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(12, 4)) * np.array([1.0, 1.0, 2.0, 3.0])
    n, p, s = 12, 4, x.T @ x / 12
    numerator = (1 - 2 / p) * np.trace(s @ s) + np.trace(s) ** 2
    rho = min(1, numerator / ((n + 1 - 2 / p) * (np.trace(s @ s) - np.trace(s) ** 2 / p)))
    assert 0 < rho < 1
    np.testing.assert_allclose(
        shrunk_covariance(x, freedom=n), (1 - rho) * s + rho * np.trace(s) / p * np.eye(p), rtol=1e-12
    )
