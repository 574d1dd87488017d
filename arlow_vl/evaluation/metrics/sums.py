"""Ratios of sums over samples, of which most metrics consist."""

import numpy as np
from jaxtyping import Float

Values = np.ndarray | np.floating
"""Of sums (..., columns), the values (...): of one row numpy makes a number."""


def ratio(part: Values, whole: Values) -> Values:
    """NaN where the whole is 0: there is no share of nothing, as in a resample that has drawn no sample of a kind."""
    part = np.asarray(part, dtype=np.float64)
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=np.asarray(whole) > 0)


def ratio_or_0(part: Values, whole: Values, samples: Values) -> Values:
    """The ratio, and 0 of samples that have nothing of the whole: answers of which none is a yes have no precision."""
    return ratio(part, np.where(np.asarray(whole) > 0, whole, samples))


def mean(sums: Float[np.ndarray, "*batch 2"]) -> Values:
    """Of sums of (points, samples)."""
    return ratio(sums[..., 0], sums[..., 1])
