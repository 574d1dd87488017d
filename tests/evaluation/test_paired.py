"""Paired tests: equal to the textbook where there is one, and right on average where there is none."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlow_vl.evaluation.bootstrap import draw_weights
from arlow_vl.evaluation.metrics.captions import bleu
from arlow_vl.evaluation.metrics.registry import METRICS
from arlow_vl.evaluation.metrics.scenes import PARTS, SLOTS
from arlow_vl.evaluation.metrics.sums import mean
from arlow_vl.evaluation.paired import (
    bootstrap_p,
    jackknife_values,
    number_images,
    paired_test,
    student_t_p,
    sums_by_image,
    t_test,
)

DICE = np.random.default_rng(0)


def points(values):
    return np.stack([values, np.ones(len(values))], axis=1)


def compared(sums, others, metric, weights):
    return paired_test(sums, others, metric, metric(weights @ sums) - metric(weights @ others))


# Two-sided 5% and 1% points of the t distribution, from the printed tables (Fisher and Yates).
@pytest.mark.parametrize(
    ("degrees", "t", "p"),
    [
        (1, 12.706, 0.05),
        (2, 4.303, 0.05),
        (10, 2.228, 0.05),
        (10, 3.169, 0.01),
        (30, 2.042, 0.05),
        (120, 2.617, 0.01),
        (10**6, 1.95996, 0.05),
    ],
)
def test_p_of_students_t_is_that_of_the_tables(degrees, t, p):
    assert student_t_p(t, degrees) == student_t_p(-t, degrees) == pytest.approx(p, rel=2e-3)


@given(st.floats(0, 30), st.integers(1, 400))
def test_p_of_students_t_is_the_integral_of_its_density(t, degrees):
    """Simpson's rule over atan, where the density is a power of the cosine."""
    angles = np.linspace(0, math.atan(t / math.sqrt(degrees)), 4001)
    heights = np.cos(angles) ** (degrees - 1)
    weights = np.ones(4001) + np.arange(4001) % 2 * 3 + (1 - np.arange(4001) % 2)
    weights[[0, -1]] = 1
    area = (weights * heights).sum() * (angles[1] - angles[0]) / 3
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    assert student_t_p(t, degrees) == pytest.approx(1 - 2 * scale * area, abs=1e-9)


def test_of_a_mean_the_jackknife_gives_back_the_values():
    values = DICE.normal(size=50)
    np.testing.assert_allclose(jackknife_values(points(values), mean), values, atol=1e-12)


def test_the_test_of_a_mean_is_the_paired_t_test():
    one, other = DICE.normal(size=(2, 40))
    found = compared(points(one), points(other), mean, draw_weights(40))
    differences = one - other
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(40))
    assert found.t_test_p == pytest.approx(student_t_p(t, 39))
    assert found.effect == pytest.approx(differences.mean() / differences.std(ddof=1))
    assert found.difference.estimate == pytest.approx(differences.mean())


def test_questions_about_one_image_count_as_one_image():
    """Ten questions that rise and fall together are no more evidence than one."""
    one, other = DICE.normal(size=(2, 30))
    images = number_images([f"image-{i}" for i in range(30) for _ in range(10)])
    many = [sums_by_image(points(np.repeat(values, 10)), images, np.ones(300, dtype=bool)) for values in (one, other)]
    found = compared(*many, mean, draw_weights(30))
    alone = compared(points(one), points(other), mean, draw_weights(30))
    assert (found.t_test_p, found.effect, found.images) == (
        pytest.approx(alone.t_test_p),
        pytest.approx(alone.effect),
        30,
    )
    assert found.bootstrap_p == alone.bootstrap_p


def test_sums_of_an_image_are_added_wherever_its_rows_stand():
    sums, images = np.array([[1.0, 1], [2, 1], [4, 1]]), number_images(["b", "a", "b"])
    np.testing.assert_array_equal(sums_by_image(sums, images, np.ones(3, dtype=bool)), [[5, 2], [2, 1]])
    np.testing.assert_array_equal(sums_by_image(sums, images, images == 1), [[0, 0], [2, 1]])


def test_without_a_difference_one_test_in_twenty_is_below_a_twentieth():
    """By both tests, though an image's three questions go right or wrong together; taken for 120 questions that have
    nothing to do with each other, a quarter of the trials would be. 250 trials put a share within 0.042 of 0.05."""
    dice, weights = np.random.default_rng(0), draw_weights(40, resamples=199)
    found = []
    for _ in range(250):
        one, other = (dice.normal(size=(40, 1)) + dice.normal(size=(40, 3)) / 2 for _ in range(2))
        rows = [np.column_stack([values.sum(axis=1), np.full(40, 3.0)]) for values in (one, other)]
        test = compared(*rows, mean, weights)
        found.append((test.t_test_p, test.bootstrap_p, t_test((one - other).ravel())[0]))
    of_images, resampled, of_questions = (np.array(found) < 0.05).mean(axis=0)
    assert (of_images, resampled) == pytest.approx((0.05, 0.05), abs=0.042)
    assert of_questions > 0.15


def test_a_bleu_that_is_no_mean_has_the_spread_that_resampling_gives():
    """The standard error of the jackknife and of the bootstrap agree within a tenth."""
    dice = np.random.default_rng(3)
    rows = dice.binomial([9, 7, 5, 3], [0.8, 0.6, 0.5, 0.4], size=(400, 4)).astype(float)
    rows = np.column_stack([rows, np.tile([9.0, 8, 7, 6, 9, 9], (400, 1))])

    def bleu_4(sums):
        return bleu(sums)[..., 3]

    values = jackknife_values(rows, bleu_4)
    resampled = bleu_4(draw_weights(400, resamples=2000) @ rows)
    assert values.std(ddof=1) / 20 == pytest.approx(resampled.std(), rel=0.1)
    assert values.mean() == pytest.approx(float(bleu_4(rows.sum(axis=0))), abs=1e-3)


def test_a_system_does_not_differ_from_itself():
    rows = points(DICE.normal(size=20))
    found = compared(rows, rows, mean, draw_weights(20))
    assert (found.bootstrap_p, found.t_test_p, found.effect) == (1, 1, 0)


def test_a_steady_difference_is_certain():
    rows = points(np.zeros(20))
    found = compared(points(np.ones(20)), rows, mean, draw_weights(20, resamples=99))
    assert (found.bootstrap_p, found.t_test_p, found.effect) == (0.02, 0, math.inf)


def test_p_of_the_bootstrap_counts_both_sides():
    assert bootstrap_p(np.array([1.0] * 97 + [-1.0] * 2)) == pytest.approx(2 * 3 / 100)


def test_resamples_without_an_image_of_the_group_are_no_evidence_against_a_difference():
    ours, theirs, weights = np.zeros((60, 2)), np.zeros((60, 2)), draw_weights(60)
    ours[:3], theirs[:3, 1] = 4, 4
    drawn = int((weights[:, :3].sum(axis=1) > 0).sum())
    found = compared(ours, theirs, mean, weights)
    assert drawn < 1000 and found.bootstrap_p == 2 / (drawn + 1) and found.difference.is_outside_zero


def test_images_without_the_slot_that_is_scored_are_not_tested():
    """Three of nine images have a written word."""
    word = METRICS["scene_word"].value
    ours, theirs = np.zeros((9, 2 * len(PARTS))), np.zeros((9, 2 * len(PARTS)))
    for rows, right in ((ours, [1, 1, 0]), (theirs, [0, 1, 0])):
        rows[:, 1], rows[:3, 2 * len(SLOTS)], rows[:3, 2 * len(SLOTS) + 1] = 1, right, 1
    found = compared(ours, theirs, word, draw_weights(9))
    alone = compared(points(np.array([1.0, 1, 0])), points(np.array([0.0, 1, 0])), mean, draw_weights(3))
    assert (found.images, found.t_test_p, found.effect) == (3, alone.t_test_p, alone.effect)


def test_one_image_is_no_test():
    with pytest.raises(ValueError, match="two images, image groups or documents at least to be tested, got 1"):
        compared(points(np.ones(1)), points(np.zeros(1)), mean, draw_weights(1))
    assert t_test(np.array([0.0, 0.0])) == (1, 0)
