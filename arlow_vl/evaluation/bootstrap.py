"""Paired bootstrap intervals of a score, and of the difference of two systems.

Every metric here is a function of sums over samples (of n-grams, points or questions), so a resample is a row of
weights, and the sums of all resamples are one matrix product. All systems share the rows, which makes the bootstrap
paired (Koehn, 2004, W04-3250).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from arlow_vl.evaluation.metrics.sums import Values

LEVEL = 0.95
RESAMPLES, SEED = 1000, 0
NOISE = 1e-9
"""Largest difference that is taken for rounding: processors add float64 numbers in different orders."""

MOST_WEIGHTS = 2**22
"""Largest number of weights that are in memory at once, 32 MB; a single resample may have more."""

Key = TypeVar("Key")
ValueOfSums = Callable[[np.ndarray], Values]
"""Turns sums of sample statistics, (..., statistics), into values, (...); NaN where there is nothing to score."""


@dataclass(frozen=True)
class Interval:
    """A value on all samples, with the percentile interval over the resamples in which it is defined."""

    estimate: float
    low: float
    high: float

    @property
    def is_outside_zero(self) -> bool:
        return self.low > NOISE or self.high < -NOISE


def draw_weights(
    samples: int, *, resamples: int = RESAMPLES, seed: int = SEED
) -> Float[np.ndarray, "resamples samples"]:
    """Draws resamples as large as the original; returns how often each sample occurs in each of them."""
    return np.concatenate(list(weights_in_blocks(samples, resamples=resamples, seed=seed)))


def weights_in_blocks(
    samples: int, *, resamples: int = RESAMPLES, seed: int = SEED
) -> Iterator[Float[np.ndarray, "some samples"]]:
    """Yields the rows of `draw_weights`, as many at once as `MOST_WEIGHTS` allows."""
    rng, most = np.random.default_rng(seed), max(1, MOST_WEIGHTS // samples)
    for start in range(0, resamples, most):
        rows = min(most, resamples - start)
        drawn = rng.integers(samples, size=(rows, samples))
        drawn += samples * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * samples).reshape(rows, samples).astype(np.float64)


def resample(
    samples: int, values: Callable[[Float[np.ndarray, "some samples"]], Mapping[Key, Values]]
) -> dict[Key, Float[np.ndarray, " resamples"]]:
    """Returns each of some values on all resamples; `values` computes them for a block of weights."""
    blocks = [values(weights) for weights in weights_in_blocks(samples)]
    return {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}


def metric_interval(
    statistics: Float[np.ndarray, "samples statistics"],
    metric: ValueOfSums,
    weights: Float[np.ndarray, "resamples samples"],
) -> Interval:
    return summarise(metric(statistics.sum(axis=0)), metric(weights @ statistics))


def difference_interval(
    statistics: Float[np.ndarray, "samples statistics"],
    others: Float[np.ndarray, "samples statistics"],
    metric: ValueOfSums,
    weights: Float[np.ndarray, "resamples samples"],
) -> Interval:
    """Returns the interval of one system's metric minus another's, on the same resamples."""
    return summarise(
        metric(statistics.sum(axis=0)) - metric(others.sum(axis=0)),
        metric(weights @ statistics) - metric(weights @ others),
    )


def summarise(estimate: Values | float, resampled: Values) -> Interval:
    """Returns the value on all samples with the interval of its values on the resamples."""
    low, high = np.quantile(with_value(resampled), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(estimate), float(low), float(high))


def with_value(resampled: Values) -> Float[np.ndarray, " drawn"]:
    """Returns the values that are no NaN.

    A resample may hold no image of a group: for a group of k images about one in e^k does, and says nothing about it.
    """
    resampled = np.asarray(resampled)
    return resampled[~np.isnan(resampled)]
