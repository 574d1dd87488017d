"""Ratios of sums over samples, of which most metrics consist."""

import numpy as np
from jaxtyping import Float

Values = np.ndarray | np.floating
"""Of sums (..., columns), the values (...): of one row numpy makes a number."""


def ratio(part: Values, whole: Values) -> Values:
    """0 where the whole is 0: a resample that has drawn no sample of a kind."""
    part = np.asarray(part, dtype=np.float64)
    return np.divide(part, whole, out=np.zeros_like(part), where=np.asarray(whole) > 0)


def mean(sums: Float[np.ndarray, "*batch 2"]) -> Values:
    """Of sums of (points, samples)."""
    return ratio(sums[..., 0], sums[..., 1])
