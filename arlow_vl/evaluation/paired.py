"""Compares two systems on the same samples: the difference with an interval, two significance tests, an effect size.

Samples of one image are not independent, so the unit of resampling and counting is the image: sums are added up by
image first. The tests hold for any metric of sums, also for those that are no mean over samples (BLEU, POPE's F1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from arlow_vl.evaluation.bootstrap import NOISE, Interval, ValueOfSums, summarise, with_value


@dataclass(frozen=True)
class PairedTest:
    """One system's metric minus another's."""

    difference: Interval
    bootstrap_p: float
    """Two-sided: twice the share of resamples on the other side of zero, never below 2 / (resamples + 1)."""
    t_test_p: float
    """Two-sided, of the paired t-test over images (see `jackknife_values`)."""
    effect: float
    """Mean difference per image over its standard deviation (Cohen's d of pairs); 0 where there is no difference."""
    images: int
    """Images with a sample that the metric scores."""


def number_images(images: Sequence[str]) -> Int[np.ndarray, " samples"]:
    """Numbers the images from 0 in the order of their first sample."""
    place = {image: row for row, image in enumerate(dict.fromkeys(images))}
    return np.array([place[image] for image in images])


def sums_by_image(
    sums: Float[np.ndarray, "samples columns"],
    images: Int[np.ndarray, " samples"],
    mask: Bool[np.ndarray, " samples"],  # True: counts
) -> Float[np.ndarray, "images columns"]:
    """Adds up the rows of each image; `images` are those of `number_images`."""
    rows = np.zeros((int(images.max()) + 1, sums.shape[1]))
    np.add.at(rows, images[mask], sums[mask])
    return rows


def is_scored(sums: Float[np.ndarray, "images columns"], metric: ValueOfSums) -> Bool[np.ndarray, " images"]:
    """True for images with a sample that the metric scores: its value on that image alone is no NaN."""
    return ~np.isnan(metric(sums))


def paired_test(
    sums: Float[np.ndarray, "images columns"],
    others: Float[np.ndarray, "images columns"],
    metric: ValueOfSums,
    resampled: Float[np.ndarray, " resamples"],
) -> PairedTest:
    """Tests the metric of `sums` minus that of `others`, rows of the same images.

    `resampled` is that difference on each resample of the images (`bootstrap.resample`).

    Raises:
        ValueError: fewer than two images have a sample that the metric scores.
    """
    is_either = is_scored(sums, metric) | is_scored(others, metric)
    ours, theirs = sums[is_either], others[is_either]
    if len(ours) < 2:
        raise ValueError(
            f"a difference needs two images, image groups or documents at least to be tested, got {len(ours)}; "
            "evaluate more"
        )
    difference = summarise(metric(sums.sum(axis=0)) - metric(others.sum(axis=0)), resampled)
    of_images = jackknife_values(ours, metric) - jackknife_values(theirs, metric)
    return PairedTest(difference, bootstrap_p(resampled), *t_test(of_images), len(ours))


def bootstrap_p(resampled: Float[np.ndarray, " resamples"]) -> float:
    """Returns the two-sided p-value of "no difference", from resampled differences."""
    found = with_value(resampled)
    tail = min(int((found <= NOISE).sum()), int((found >= -NOISE).sum()))
    return min(1.0, 2 * (tail + 1) / (len(found) + 1))


def jackknife_values(sums: Float[np.ndarray, "images columns"], metric: ValueOfSums) -> Float[np.ndarray, " images"]:
    """Tukey's jackknife pseudo-values: n times the metric on all images, minus n - 1 times that without each image.

    For a mean these are the images' own values, so the t-test is the usual one. For any other metric their mean
    approximates the metric, and their variance over n its variance.
    """
    total, images = sums.sum(axis=0), len(sums)
    return images * metric(total) - (images - 1) * np.asarray(metric(total - sums))


def t_test(differences: Float[np.ndarray, " images"]) -> tuple[float, float]:
    """Returns the two-sided p-value of "the mean is 0", and the mean over the standard deviation."""
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if abs(mean) <= NOISE:
        return 1.0, 0.0
    if spread <= NOISE * abs(mean):
        return 0.0, math.copysign(math.inf, mean)
    effect = mean / spread
    return student_t_p(effect * math.sqrt(len(differences)), len(differences) - 1), effect


def student_t_p(t: float, degrees: int) -> float:
    """Returns the two-sided tail probability of Student's t distribution.

    It is the incomplete beta function I_x(degrees/2, 1/2) with x = degrees / (degrees + t^2), as a continued fraction
    (Numerical Recipes, 6.4).
    """
    if t == 0:
        return 1.0
    a, b, x = degrees / 2, 0.5, degrees / (degrees + t * t)
    beyond = t * t / (degrees + t * t)  # 1 - x, also where that is next to nothing
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x)) * beyond**b
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1 - front * _beta_fraction(b, a, beyond) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Evaluates the continued fraction by Lentz's method; below (a + 1) / (a + b + 2) a few dozen terms are enough."""
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
