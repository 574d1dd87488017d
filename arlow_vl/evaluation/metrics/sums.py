"""Ratios of sums over samples; most metrics are one."""

import numpy as np
from jaxtyping import Float

Values = np.ndarray | np.floating
"""Values (...) of sums (..., columns); numpy returns a scalar for a single row."""


def ratio(part: Values, whole: Values) -> Values:
    """Divides; NaN where the whole is 0, as in a resample without any sample of a kind."""
    part = np.asarray(part, dtype=np.float64)
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=np.asarray(whole) > 0)


def ratio_or_0(part: Values, whole: Values, samples: Values) -> Values:
    """Divides; 0 where there are samples but the whole is 0: the precision of answers among which none is a yes."""
    return ratio(part, np.where(np.asarray(whole) > 0, whole, samples))


def mean(sums: Float[np.ndarray, "*batch 2"]) -> Values:
    """Returns the mean from sums of (points, samples)."""
    return ratio(sums[..., 0], sums[..., 1])
