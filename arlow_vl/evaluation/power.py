"""Power analysis: the number of images that it takes to detect a difference of a given size.

The test is the paired t-test over images, approximated by normal quantiles with Guenther's correction for the t
distribution (Guenther, 1981, The American Statistician 35(4)).
"""

import math
from statistics import NormalDist

import numpy as np

from arlow_vl.evaluation.bootstrap import LEVEL

SMALLEST = 1e-9
"""The smallest difference that may be asked for; below it the number of images overflows."""
_NORMAL = NormalDist()
Z_LEVEL = _NORMAL.inv_cdf((1 + LEVEL) / 2)


def required_images(difference: float, spread: float, *, power: float) -> int:
    """Returns the number of images at which the paired t-test detects a true difference with probability `power`.

    `spread` is the standard deviation over images of the difference (`paired.jackknife_values`), on the same scale.

    Raises:
        ValueError: the difference is not positive, or the power not from 0.5 to below 1.
    """
    _refuse(difference, power)
    needed = ((Z_LEVEL + _NORMAL.inv_cdf(power)) * spread / difference) ** 2 + Z_LEVEL**2 / 2
    return max(2, math.ceil(needed))


def detectable_difference(images: int, spread: float, *, power: float) -> float:
    """Returns the smallest true difference that `images` detect with probability `power`; infinite for too few images.

    Raises:
        ValueError: the power is not from 0.5 to below 1.
    """
    _refuse(1.0, power)
    left = images - Z_LEVEL**2 / 2
    return (Z_LEVEL + _NORMAL.inv_cdf(power)) * spread / math.sqrt(left) if left > 0 else math.inf


def spread_of(values: np.ndarray) -> float:
    """Returns the standard deviation over images, with one degree of freedom taken off."""
    return float(values.std(ddof=1))


def _refuse(difference: float, power: float) -> None:
    if not SMALLEST <= difference < math.inf:
        raise ValueError(f"the difference must be above 0, in the metric's own scale, got {difference}")
    if not 0.5 <= power < 1:
        raise ValueError(f"the power is a probability from 0.5 to below 1, such as 0.8, got {power}")
