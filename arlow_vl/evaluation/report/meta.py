"""What meta.json says of an evaluation, checked before the page shows it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arlow_vl.errors import DataError
from arlow_vl.evaluation.results import read_json

META_DEFAULTS: Mapping[str, Any] = {"title": "Arlow-VL: results", "summary": "", "hardware": ""} | {
    **{name: {} for name in ("checkpoint", "decode", "versions", "wall_seconds", "gates")},
    **{name: [] for name in ("data", "reproduce", "curves")},
}


def read_meta(path: Path) -> dict[str, Any]:
    """All keys that the page shows (see `write_report`), those that the file lacks empty.

    Raises:
        DataError: the file is broken, or the value of a key is of another kind.
    """
    meta = {**META_DEFAULTS, **read_json(path)}
    is_right = {
        **{name: isinstance(meta[name], str) for name in ("title", "summary", "hardware")},
        **{name: isinstance(meta[name], dict) for name in ("decode", "versions")},
        **{name: has_numbers(meta[name]) for name in ("gates", "wall_seconds")},
        "checkpoint": meta["checkpoint"] == {} or has_texts(meta["checkpoint"], "path", "sha256"),
        "data": isinstance(meta["data"], list) and all(has_texts(row, "name", "license") for row in meta["data"]),
        "reproduce": isinstance(meta["reproduce"], list),
        "curves": isinstance(meta["curves"], list) and all(is_curve(curve) for curve in meta["curves"]),
    }
    if wrong := [name for name, right in is_right.items() if not right]:
        raise DataError(f"{path}: {wrong[0]} is not what `arlow evaluate` writes there; correct it or take it out")
    return meta


def has_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(number, int | float) for number in value.values())


def has_texts(value: Any, *names: str) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in names)


def is_curve(curve: Any) -> bool:
    """A curve with the name of its run, or with lists of [step, loss]."""
    if not isinstance(curve, dict) or not isinstance(curve.get("unigram_entropy"), int | float | None):
        return False
    if "run" in curve:
        return isinstance(curve["run"], str)
    lists = [curve.get(name, []) for name in ("train", "validation")]
    return all(isinstance(points, list) and all(map(is_point, points)) for points in lists)


def is_point(point: Sequence[Any]) -> bool:
    return isinstance(point, list) and len(point) == 2 and all(isinstance(number, int | float) for number in point)
