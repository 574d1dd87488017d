"""Formats figures for tables: decimals, intervals, and a star at a difference whose interval excludes zero."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from arlow_vl.evaluation.bootstrap import LEVEL

LARGE = 1e6
FEWEST = 10
"""Images, or documents, below which a figure is marked as based on few."""


def legend(shown: Iterable[str] = ()) -> str:
    """Returns the legend of tables with `format_interval` cells, by what is resampled; none given: images."""
    return f"[low, high]: {LEVEL:.0%} bootstrap interval over {plurals(shown)}. * it leaves out zero."


def plurals(shown: Iterable[str]) -> str:
    """Returns "images or documents" for the two; none given: images."""
    return " or ".join(sorted({f"{one}s" for one in shown}, reverse=True)) or "images"


def format_number(value: float | int, digits: int, *, is_signed: bool = False) -> str:
    """Formats a number with so many decimals. Zero has no minus; from `LARGE` on it is written as 1.2e+30."""
    if math.isfinite(value) and abs(value) >= LARGE:
        return f"{value:{'+' if is_signed else ''}.3g}"
    return f"{round(value, digits) + 0.0:{'+' if is_signed else ''}.{digits}f}"  # -0.0 + 0.0 is 0.0


def format_count(count: int, images: int) -> str:
    """Formats the number of items or images behind a figure, marked "(few)" below `FEWEST` images."""
    return f"{count:,}{' (few)' if images < FEWEST else ''}"


def few_note(images: Iterable[int], shown: str = "images") -> list[str]:
    """Returns the note that explains the mark of `format_count`; empty where no figure has it."""
    return [f"(few): fewer than {FEWEST} {shown}, a score that says little"] if min(images) < FEWEST else []


def scale_of(*, is_percent: bool) -> tuple[int, int]:
    """Returns the factor by which a score is multiplied for print, and its number of decimals."""
    return (100, 1) if is_percent else (1, 3)


def format_interval(interval: Mapping[str, Any], *, is_percent: bool, is_difference: bool = False) -> str:
    """Formats an interval as "0.512 [0.480, 0.541]"; a difference has its sign, and "*" if zero lies outside."""
    scale, digits = scale_of(is_percent=is_percent)
    estimate, low, high = (
        format_number(scale * interval[name], digits, is_signed=is_difference) for name in ("estimate", "low", "high")
    )
    mark = " *" if is_difference and is_outside_zero(interval) else ""
    return f"{estimate} [{low}, {high}]{mark}"


def is_outside_zero(difference: Mapping[str, Any]) -> bool:
    """True for a difference whose interval excludes zero, also after rounding for print."""
    printed = [round(difference[name], 3) for name in ("low", "high")]  # 0.1% is 0.001, too
    return difference["outside_zero"] and (printed[0] > 0 or printed[1] < 0)
