"""Captions of every system on the same images, side by side: scores with intervals, and paired differences."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arlow_vl.evaluation.bootstrap import Interval, difference_interval, draw_weights, metric_interval
from arlow_vl.evaluation.metrics.registry import METRICS, Prediction, metric_sums
from experiments.benchmarks.measure import table

CIDER, EXACT = "cider_d", "vqa_exact_match"
Outputs = Mapping[str, str]
"""Texts that a system wrote, by the image's key."""


def read_outputs(folder: Path) -> dict[str, str]:
    """A system's predictions, out of the folder that `arlow evaluate` left of it.

    By the sample's key, which an item's id begins with: of samples with the same image "image" has one name.
    """
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"].rpartition("?")[0]: row["output"] for row in map(json.loads, lines)}


def sums_of(outputs: Outputs, captions: Mapping[str, str]) -> dict[str, np.ndarray]:
    """(images, columns) of both metrics, in the order of `captions`, which are the references by key."""
    predictions = [
        Prediction(id=key, image=key, text=outputs[key], references=[caption]) for key, caption in captions.items()
    ]
    return metric_sums({name: METRICS[name] for name in (CIDER, EXACT)}, predictions)


def scored(
    systems: Mapping[str, Outputs], captions: Mapping[str, str], differences: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """CIDEr-D and exact match of each system, and of each pair the first one's CIDEr-D less the second's.

    Intervals are those of `arlow evaluate`: 95%, a bootstrap over images, which pairs share.
    """
    sums = {name: sums_of(outputs, captions) for name, outputs in systems.items()}
    weights = draw_weights(len(captions))
    value = METRICS[CIDER].value
    return {
        "images": len(captions),
        "systems": {
            name: {
                "CIDEr-D": _plain(metric_interval(of[CIDER], value, weights)),
                "exact, %": 100 * float(METRICS[EXACT].value(of[EXACT].sum(axis=0))),
            }
            for name, of in sums.items()
        },
        "differences": {
            f"{one} - {other}": _plain(difference_interval(sums[one][CIDER], sums[other][CIDER], value, weights))
            for one, other in differences
        },
    }


def _plain(interval: Interval) -> dict[str, float]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def format_table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of systems and one of differences; a column a task."""
    names = [f"{name}, {of['images']} images" for name, of in tasks.items()]
    first = next(iter(tasks.values()))
    systems = [[system, *(_system(of["systems"][system]) for of in tasks.values())] for system in first["systems"]]
    differences = [
        [pair, *(_cell(of["differences"][pair], signed=True) for of in tasks.values())] for pair in first["differences"]
    ]
    tables = (table(["CIDEr-D [95%], exact", *names], systems), table(["difference in CIDEr-D", *names], differences))
    return "\n\n".join(tables)


def _system(of: Mapping[str, Any]) -> str:
    return f"{_cell(of['CIDEr-D'])}, {of['exact, %']:.1f}%"


def _cell(of: Mapping[str, float], *, signed: bool = False) -> str:
    estimate, low, high = (f"{of[key]:{'+' if signed else ''}.3f}" for key in ("estimate", "low", "high"))
    star = " *" if signed and of["low"] * of["high"] > 0 else ""
    return f"{estimate} [{low}, {high}]{star}"
