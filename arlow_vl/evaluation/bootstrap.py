"""Paired bootstrap intervals of a score, and of the difference of two systems.

Every metric here is a function of sums over samples (of n-grams, points or questions), so a resample is a row of
weights, and the sums of all resamples are one matrix product. All systems share the rows, which makes the bootstrap
paired (Koehn, 2004, W04-3250).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from arlow_vl.evaluation.metrics.sums import Values

LEVEL = 0.95
RESAMPLES, SEED = 1000, 0
NOISE = 1e-9
"""Largest difference that is taken for rounding: processors add float64 numbers in different orders."""

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
    drawn = np.random.default_rng(seed).integers(samples, size=(resamples, samples))
    drawn += samples * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * samples)
    return counts.reshape(resamples, samples).astype(np.float64)


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
