"""Two systems on the same samples: their difference with an interval, two tests, and its size.

Samples of one image are not independent, so images are what is drawn again and counted: sums are added up image by
image first. The tests hold for any metric of sums, also for those that are no mean of samples (BLEU, POPE's F1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from arlow_vl.evaluation.statistics import NOISE, Interval, ValueOfSums, summarise, with_value


@dataclass(frozen=True)
class PairedTest:
    """One system's metric minus another's."""

    difference: Interval
    bootstrap_p: float
    """Two-sided: twice the share of resamples on the other side of zero, never below 2 / (resamples + 1)."""
    t_test_p: float
    """Two-sided, of the paired t-test over images (see `jackknife_values`)."""
    effect: float
    """Mean difference of an image over its standard deviation (Cohen's d of pairs); 0 where there is no difference."""
    images: int
    """Images that have a sample to score."""


def sums_by_image(
    sums: Float[np.ndarray, "samples columns"], images: Sequence[str]
) -> Float[np.ndarray, "images columns"]:
    """Adds up the rows of each image; images in the order of their first sample."""
    place = {image: row for row, image in enumerate(dict.fromkeys(images))}
    rows = np.zeros((len(place), sums.shape[1]))
    np.add.at(rows, [place[image] for image in images], sums)
    return rows


def is_scored(sums: Float[np.ndarray, "images columns"], metric: ValueOfSums) -> Bool[np.ndarray, " images"]:
    """True for images that have a sample of the metric: it has a value of the image alone."""
    return ~np.isnan(metric(sums))


def paired_test(
    sums: Float[np.ndarray, "images columns"],
    others: Float[np.ndarray, "images columns"],
    metric: ValueOfSums,
    weights: Float[np.ndarray, "resamples images"],
) -> PairedTest:
    """Tests `sums` minus `others`, rows of the same images; `weights` are of `statistics.draw_weights`.

    Raises:
        ValueError: fewer than two images have a sample of the metric.
    """
    is_either = is_scored(sums, metric) | is_scored(others, metric)
    ours, theirs = sums[is_either], others[is_either]
    if len(ours) < 2:
        raise ValueError(f"a difference needs two images at least to be tested, got {len(ours)}; evaluate more")
    resampled = np.asarray(metric(weights @ sums) - metric(weights @ others))
    difference = summarise(metric(sums.sum(axis=0)) - metric(others.sum(axis=0)), resampled)
    of_images = jackknife_values(ours, metric) - jackknife_values(theirs, metric)
    return PairedTest(difference, bootstrap_p(resampled), *t_test(of_images), len(ours))


def bootstrap_p(resampled: Float[np.ndarray, " resamples"]) -> float:
    """Two-sided p of "no difference", from resampled differences."""
    found = with_value(resampled)
    tail = min(int((found <= NOISE).sum()), int((found >= -NOISE).sum()))
    return min(1.0, 2 * (tail + 1) / (len(found) + 1))


def jackknife_values(sums: Float[np.ndarray, "images columns"], metric: ValueOfSums) -> Float[np.ndarray, " images"]:
    """What each image adds to the metric: n times its value on all images, minus n - 1 times that without the image.

    Of a mean these are the values of the images themselves, so that the t-test is the usual one; of any other metric
    their mean is nearly the metric and their variance over n that of the metric (Tukey's pseudo-values).
    """
    total, images = sums.sum(axis=0), len(sums)
    return images * metric(total) - (images - 1) * np.asarray(metric(total - sums))


def t_test(differences: Float[np.ndarray, " images"]) -> tuple[float, float]:
    """Two-sided p of "their mean is 0", and the mean over the standard deviation."""
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if abs(mean) <= NOISE:
        return 1.0, 0.0
    if spread <= NOISE * abs(mean):
        return 0.0, math.copysign(math.inf, mean)
    effect = mean / spread
    return student_t_p(effect * math.sqrt(len(differences)), len(differences) - 1), effect


def student_t_p(t: float, degrees: int) -> float:
    """The share of Student's t distribution beyond t on both sides: the incomplete beta function I_x(degrees/2, 1/2)
    with x = degrees / (degrees + t^2), as a continued fraction (Numerical Recipes, 6.4)."""
    if t == 0:
        return 1.0
    a, b, x = degrees / 2, 0.5, degrees / (degrees + t * t)
    beyond = t * t / (degrees + t * t)  # 1 - x, also where that is next to nothing
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x)) * beyond**b
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1 - front * _beta_fraction(b, a, beyond) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Lentz's method; a few dozen terms are enough on this side of (a + 1) / (a + b + 2)."""
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / (1 + term * d), 1 + term / c
            fraction *= d * c
        if abs(d * c - 1) < 1e-14:
            break
    return fraction
