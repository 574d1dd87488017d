"""How many images a difference of a given size needs to be seen, from the spread of what was measured.

For the paired t-test over images: normal quantiles, and Guenther's correction for the t distribution (Guenther, 1981,
The American Statistician 35(4)).
"""

import math
from statistics import NormalDist

import numpy as np

from arlow_vl.evaluation.statistics import LEVEL

SMALLEST = 1e-9
"""Of the differences that are asked for; below it numbers of images are beyond counting."""
_NORMAL = NormalDist()
Z_LEVEL = _NORMAL.inv_cdf((1 + LEVEL) / 2)


def required_images(difference: float, spread: float, *, power: float) -> int:
    """Images at which the paired t-test sees a true difference with this probability.

    `spread` is the standard deviation of the difference over images (`paired.jackknife_values`), in the same scale.

    Raises:
        ValueError: the difference is not positive, or the power not between 0 and 1.
    """
    _refuse(difference, power)
    needed = ((Z_LEVEL + _NORMAL.inv_cdf(power)) * spread / difference) ** 2 + Z_LEVEL**2 / 2
    return max(2, math.ceil(needed))


def detectable_difference(images: int, spread: float, *, power: float) -> float:
    """The smallest true difference that so many images show with this probability; infinite for fewer than three.

    Raises:
        ValueError: the power is not between 0 and 1.
    """
    _refuse(1.0, power)
    left = images - Z_LEVEL**2 / 2
    return (Z_LEVEL + _NORMAL.inv_cdf(power)) * spread / math.sqrt(left) if left > 0 else math.inf


def spread_of(values: np.ndarray) -> float:
    """Standard deviation over images."""
    return float(values.std(ddof=1))


def _refuse(difference: float, power: float) -> None:
    if not SMALLEST <= difference < math.inf:
        raise ValueError(f"the difference must be above 0, in the metric's own scale, got {difference}")
    if not 0.5 <= power < 1:
        raise ValueError(f"the power is a probability from 0.5 to below 1, such as 0.8, got {power}")
