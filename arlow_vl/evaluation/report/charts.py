"""Draws small charts as inline SVG without scripts: bars with whiskers, curves, and gates about zero.

Lengths are percentages, so that a chart fills its container; text is HTML around it and keeps its size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from arlow_vl.evaluation.numbers import format_number

Points = Sequence[tuple[float, float]]

BUCKETS = 160
"""Maximum number of points of a drawn curve; longer ones are averaged in buckets."""

HUGE = 1e30


@dataclass(frozen=True)
class Curve:
    """A named line of a chart."""

    name: str
    style: str
    """CSS class of the report's stylesheet, such as "train"."""
    points: Points


@dataclass(frozen=True)
class Plot:
    """Parts of a chart of curves, for the template; ticks are (label, per cent from the left or the top)."""

    svg: Markup
    x_ticks: list[tuple[str, float]]
    y_ticks: list[tuple[str, float]]


def interval_bar(interval: Mapping[str, Any], *, largest: float, label: str) -> Markup:
    """Draws a bar from zero to the estimate, with a whisker over the interval; `largest` fills the width."""
    value, low, high = (100 * share(interval[name], largest) for name in ("estimate", "low", "high"))
    return Markup(
        '<svg class="bar" role="img" aria-label="{}"><rect class="track" width="100%" height="100%"/>'
        '<rect class="fill" width="{:.2f}%" height="100%"/><g class="whisker">'
        '<line x1="{low:.2f}%" x2="{high:.2f}%" y1="50%" y2="50%"/>'
        '<line x1="{low:.2f}%" x2="{low:.2f}%" y1="28%" y2="72%"/>'
        '<line x1="{high:.2f}%" x2="{high:.2f}%" y1="28%" y2="72%"/></g></svg>'
    ).format(label, value, low=low, high=high)


def gate_bar(value: float | int, *, largest: float | int) -> Markup:
    """Draws a bar to the left or right of zero."""
    width = 50 * share(abs(value), largest)
    return Markup(
        '<svg class="bar" role="img" aria-label="{}"><rect class="track" width="100%" height="100%"/>'
        '<rect class="fill" x="{:.2f}%" width="{:.2f}%" height="100%"/>'
        '<line class="zero" x1="50%" x2="50%" y1="0" y2="100%"/></svg>'
    ).format(format_number(value, 3, is_signed=True), 50 - width if value < 0 else 50, width)


def share(value: float | int, largest: float | int) -> float:
    """Returns the value as a share of the largest, clamped to 0 to 1; 0 for NaN."""
    if math.isnan(value) or not 0 < largest < math.inf:
        return 0.0
    return min(max(value / largest, 0.0), 1.0)


def plot_curves(curves: Sequence[Curve], *, label: str) -> Plot:
    """Draws curves over a common horizontal axis that starts at 0; `label` describes the chart to screen readers."""
    thinned = [(curve, thin(curve.points)) for curve in curves]
    values = [y for _, points in thinned for _, y in points]
    steps = [x for _, points in thinned for x, _ in points]
    y_marks, x_marks = tick_marks(min(values), max(values)), tick_marks(0.0, max(steps))
    left, right, bottom, top = 0, max(steps), min(y_marks[0], min(values)), max(y_marks[-1], max(values))

    def across(x: float) -> float:
        return 100 * (x - left) / (right - left or 1)

    def down(y: float) -> float:
        return 100 * (top - y) / (top - bottom or 1)

    lines = Markup("").join(
        Markup('<line class="grid" x1="0" x2="100" y1="{0:.2f}" y2="{0:.2f}"/>').format(down(y)) for y in y_marks
    )
    for curve, points in thinned:
        path = " ".join(f"{across(x):.2f},{down(y):.2f}" for x, y in points)
        lines += Markup('<polyline class="{}" points="{}"/>').format(curve.style, path)
    svg = Markup('<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>')
    return Plot(
        svg.format(label, lines),
        [(f"{x:,.0f}", across(x)) for x in x_marks if x <= right],
        [(f"{y + 0.0:g}", down(y)) for y in y_marks],
    )


def is_drawable(number: float | int) -> bool:
    """False for NaN, infinities, and numbers so large that nothing else would be visible."""
    return abs(number) < HUGE


def thin(points: Points) -> Points:
    """Averages runs of points so that at most `BUCKETS` remain; fewer points stay as they are."""
    if len(points) <= BUCKETS:
        return points
    size = math.ceil(len(points) / BUCKETS)
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(math.fsum(x for x, _ in run) / len(run), math.fsum(y for _, y in run) / len(run)) for run in runs]


def tick_marks(low: float, high: float, most: int = 6) -> list[float]:
    """Returns about `most` round numbers that span low to high."""
    raw = (high - low) / (most - 1)
    raw = raw if raw > 1e-9 else 1.0  # smaller steps vanish in the rounding below
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10, 20) if magnitude * factor >= raw)
    first = math.floor(low / step)
    return [round((first + i) * step, 10) for i in range(math.ceil(high / step) - first + 1)]
