"""Charts of any numbers, also of those that no run should give."""

import math
import re

import pytest

from arlow_vl.evaluation.report.charts import Curve, gate_bar, interval_bar, plot_curves, tick_marks

NUMBERS = [0.0, -0.0, 1e-320, 1e-12, 0.5, 1e15, 1e30, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("largest", NUMBERS)
def test_a_bar_has_a_width_from_0_to_100(value, largest):
    interval = dict.fromkeys(("estimate", "low", "high"), value)
    for bar in (interval_bar(interval, largest=largest, label="a"), gate_bar(value, largest=largest)):
        assert all(0 <= float(share) <= 100 for share in re.findall(r'"([^"%]+)%"', bar))


@pytest.mark.parametrize("value", [-0.0, -0.0001])
def test_a_closed_gate_has_no_minus(value):
    assert 'aria-label="+0.000"' in gate_bar(value, largest=1.0)


@pytest.mark.parametrize("low", [0.0, 1e-320, 0.5, 7e9, 1e29])
@pytest.mark.parametrize("span", [0.0, 1e-320, 1e-12, 0.3, 1e9, 1e29])
def test_any_span_has_a_few_ticks(low, span):
    marks = tick_marks(low, low + span)
    assert 1 <= len(marks) <= 8 and all(map(math.isfinite, marks))


def test_a_curve_of_one_point_at_zero_is_drawn_without_a_minus():
    plot = plot_curves([Curve("train", "train", [(0.0, -0.0)])], label="a")
    assert "nan" not in plot.svg and "-0" not in [label for label, _ in plot.y_ticks]
