"""How many images a difference needs, against simulated tests."""

import math

import numpy as np
import pytest

from arlow_vl.evaluation.paired import t_test
from arlow_vl.evaluation.power import detectable_difference, required_images, spread_of


@pytest.mark.parametrize(("difference", "power"), [(0.5, 0.8), (1.0, 0.9), (0.3, 0.6)])
def test_so_many_images_see_the_difference_as_often_as_asked(difference, power):
    """1,500 simulated experiments put the share within 0.04 of the power (3 standard errors)."""
    images = required_images(difference, 1.0, power=power)
    dice = np.random.default_rng(1)
    seen = [t_test(dice.normal(difference, 1.0, size=images))[0] < 0.05 for _ in range(1500)]
    assert np.mean(seen) == pytest.approx(power, abs=0.04)


def test_half_the_difference_needs_four_times_the_images():
    assert required_images(0.01, 0.4, power=0.8) == pytest.approx(4 * required_images(0.02, 0.4, power=0.8), rel=1e-2)


@pytest.mark.parametrize("images", [10, 200, 5000])
def test_the_smallest_difference_that_images_show_needs_so_many(images):
    difference = detectable_difference(images, 0.4, power=0.8)
    assert required_images(difference, 0.4, power=0.8) == pytest.approx(images, abs=1)


def test_one_image_shows_nothing():
    assert detectable_difference(1, 0.4, power=0.8) == math.inf


def test_the_spread_is_the_standard_deviation_of_a_sample():
    assert spread_of(np.array([1.0, 3.0])) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(
    ("difference", "power", "sentence"),
    [
        (0.0, 0.8, "above 0"),
        (-1.0, 0.8, "above 0"),
        (math.nan, 0.8, "above 0"),
        (math.inf, 0.8, "above 0"),
        (1e-300, 0.8, "above 0"),
        (1.0, 1.0, "0.5 to below 1"),
        (1.0, 0.2, "from 0.5 to"),
    ],
)
def test_what_cannot_be_asked_is_refused(difference, power, sentence):
    with pytest.raises(ValueError, match=sentence):
        required_images(difference, 1.0, power=power)
