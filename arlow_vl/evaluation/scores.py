"""All scores of a result folder, each beside its controls and with its interval, and a table of them for a terminal."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arlow_vl.evaluation import statistics as bootstrap
from arlow_vl.evaluation.metrics.captions import ORDERS, bleu, caption_scores
from arlow_vl.evaluation.metrics.vqa import Rule, vqa_scores
from arlow_vl.evaluation.results import MODEL, CaptionRow, QuestionRow, Task, read_json, read_tasks, write_json
from arlow_vl.evaluation.statistics import Interval, Metric
from arlow_vl.printing import visible

Statistics = dict[str, np.ndarray]
"""Sums of a metric by system: a row an image."""

SCALES = {"CIDEr-D": 10}
"""The largest value of a metric, where it is not 1."""
LARGE = 1e6

SYSTEM_TITLES = {
    "model": "model",
    "shuffled": "shown another image",
    "no_image": "shown no image",
    "most_frequent": "most frequent caption",
    "nearest_neighbour": "nearest training image",
    "question_prior": "answer from the question alone",
    "always_majority": "always the same answer",
}
TASK_TITLES = {
    "captions-test-known": "Captions of new images of known things",
    "captions-test-novel": "Captions of things never trained on",
    "easy-vqa-test": "Questions of easy-VQA",
}


def score_results(folder: Path, *, resamples: int = 1000, seed: int = 0, vqa_rule: Rule = "official") -> dict[str, Any]:
    """Scores every task, writes scores.json and returns what it holds.

    Raises:
        ValueError: there is nothing to score, or a control is missing.
        DataError: a file is broken.
    """
    scores: dict[str, Any] = {"level": bootstrap.LEVEL, "resamples": resamples, "seed": seed, "tasks": {}}
    for task in read_tasks(folder):
        scores["tasks"][task.name] = score_task(task, resamples=resamples, seed=seed, vqa_rule=vqa_rule)
    if text := read_json(folder / "text.json"):
        scores["text"] = text
    write_json(folder / "scores.json", scores)
    return scores


def score_task(task: Task, *, resamples: int, seed: int, vqa_rule: Rule) -> dict[str, Any]:
    """Metrics of a task: an interval of every system, and of the model's difference to every other."""
    rows = task.rows[MODEL]
    images = len({row.key for row in rows})
    scored: dict[str, Any] = {
        "kind": task.kind,
        "title": TASK_TITLES.get(task.name, task.name),
        "samples": len(rows),
        "images": images,
        "different_predictions": {name: len({row.prediction for row in of}) for name, of in task.rows.items()},
    }
    if task.kind == "captions":
        statistics, metrics = caption_statistics(task.rows)
    else:
        scored["rule"] = vqa_rule
        statistics, metrics, scored["empty_matches"] = question_statistics(task.rows, vqa_rule)
    weights = bootstrap.draw_weights(images, resamples=resamples, seed=seed)
    scored["metrics"] = {name: compare(of, metrics[name], weights) for name, of in statistics.items()}
    return scored


def caption_statistics(systems: Mapping[str, Sequence[CaptionRow]]) -> tuple[dict[str, Statistics], dict[str, Metric]]:
    """By metric the statistics of each system, and how to read sums of them. Document frequencies stay fixed."""
    references = {row.key: row.references for row in systems[MODEL]}
    if len(references) < len(systems[MODEL]):
        raise ValueError("an image has two lines in a caption task; give one line with all its references")
    scores = {name: caption_scores({r.key: r.prediction for r in rows}, references) for name, rows in systems.items()}
    ones = np.ones(len(references))
    statistics = {"CIDEr-D": {name: np.stack([of.cider_per_sample, ones], axis=1) for name, of in scores.items()}}
    metrics: dict[str, Metric] = {"CIDEr-D": bootstrap.mean}
    for order in range(ORDERS):
        statistics[f"BLEU-{order + 1}"] = {name: of.bleu_counts for name, of in scores.items()}
        metrics[f"BLEU-{order + 1}"] = lambda sums, order=order: bleu(sums)[..., order]
    return statistics, metrics


def question_statistics(
    systems: Mapping[str, Sequence[QuestionRow]], rule: Rule
) -> tuple[dict[str, Statistics], dict[str, Metric], dict[str, Any]]:
    """The same over all questions, then by kind. A row is an image: questions about one image are not independent.

    The third is what empty predictions would add by the official code, for the systems that have such.
    """
    rows = systems[MODEL]
    kinds, answers = [row.kind for row in rows], [row.answers for row in rows]
    of_key = {key: place for place, key in enumerate(dict.fromkeys(row.key for row in rows))}
    place = np.array([of_key[row.key] for row in rows])
    scores = {
        name: vqa_scores([row.prediction for row in of], answers, kinds, rule=rule) for name, of in systems.items()
    }
    points = {name: np.array(of.per_sample) for name, of in scores.items()}
    masks = {"all": np.ones(len(rows), dtype=bool)}
    masks |= {kind: np.array([row.kind == kind for row in rows]) for kind in sorted(set(kinds))}

    def by_image(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        counted = (np.bincount(place, of * mask, minlength=len(of_key)) for of in (values, np.ones(len(rows))))
        return np.stack(list(counted), axis=1)

    statistics = {kind: {name: by_image(of, mask) for name, of in points.items()} for kind, mask in masks.items()}
    empty = {
        name: {"questions": of.empty_matches, "accuracy_with_empty": of.accuracy_with_empty}
        for name, of in scores.items()
        if of.empty_matches
    }
    return statistics, dict.fromkeys(masks, bootstrap.mean), empty


def compare(statistics: Statistics, metric: Metric, weights: np.ndarray) -> dict[str, Any]:
    model = statistics[MODEL]
    systems = {name: bootstrap.metric_interval(of, metric, weights) for name, of in statistics.items()}
    differences = {
        name: bootstrap.difference_interval(model, of, metric, weights)
        for name, of in statistics.items()
        if name != MODEL
    }
    return {
        "systems": {name: as_fields(interval) for name, interval in systems.items()},
        "differences": {
            name: as_fields(interval) | {"outside_zero": interval.is_outside_zero}
            for name, interval in differences.items()
        },
    }


def as_fields(interval: Interval) -> dict[str, Any]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def format_table(scores: Mapping[str, Any]) -> str:
    """What `score_results` gives, as plain text: each system with its interval, then what the model has over it."""
    blocks = [format_task(task) for task in scores["tasks"].values()]
    percent = f"{scores['level']:.0%}"
    note = f"[low, high]: {percent} bootstrap interval over images. * the interval of a difference leaves out zero."
    return "\n\n".join([*blocks, note])


def format_task(task: Mapping[str, Any]) -> str:
    metrics = {name: task["metrics"][name] for name in shown_metrics(task)}
    is_percent = task["kind"] == "questions"
    first = next(iter(metrics.values()))
    table = [["", *(metric_title(name, is_percent=is_percent) for name in metrics)]]
    for system in first["systems"]:
        cells = [format_interval(metric["systems"][system], is_percent=is_percent) for metric in metrics.values()]
        table.append([system_title(system), *cells])
    table.append(["model minus"] + [""] * len(metrics))
    for system in first["differences"]:
        differences = [metric["differences"][system] for metric in metrics.values()]
        cells = [format_interval(of, is_percent=is_percent, is_difference=True) for of in differences]
        table.append([f"  {system_title(system)}", *cells])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([describe_task(task), *lines, *describe_empty(task)])


def describe_task(task: Mapping[str, Any]) -> str:
    title = visible(task["title"])
    if task["kind"] == "captions":
        return f"{title} ({task['samples']:,} images)"
    return f"{title} ({task['samples']:,} questions, {task['images']:,} images; rule: {task['rule']})"


def describe_empty(task: Mapping[str, Any]) -> list[str]:
    """A sentence for each system whose empty answers the official code would count as right."""
    return [
        f"{system_title(system)}: {of['questions']:,} predictions of which normalisation leaves nothing; the official "
        f"code counts them where nothing is left of the answer either: "
        f"{format_number(100 * of['accuracy_with_empty'], 1)}%"
        for system, of in task.get("empty_matches", {}).items()
    ]


def shown_metrics(task: Mapping[str, Any]) -> list[str]:
    return [name for name in task["metrics"] if name not in ("BLEU-2", "BLEU-3")]


def metric_title(name: str, *, is_percent: bool) -> str:
    """The metric with its scale."""
    return visible(f"{name}, %" if is_percent else f"{name}, {SCALES.get(name, 1)} at most")


def system_title(system: str) -> str:
    return SYSTEM_TITLES.get(system, visible(system.replace("_", " ")))


def format_number(value: float | int, digits: int, *, is_signed: bool = False) -> str:
    """The number with so many decimals; zero has no minus, and what would not fit a column is written as 1.2e+30."""
    if math.isfinite(value) and abs(value) >= LARGE:
        return f"{value:{'+' if is_signed else ''}.3g}"
    return f"{round(value, digits) + 0.0:{'+' if is_signed else ''}.{digits}f}"  # -0.0 + 0.0 is 0.0


def format_interval(interval: Mapping[str, Any], *, is_percent: bool, is_difference: bool = False) -> str:
    """As "0.512 [0.480, 0.541]", a difference with its sign and "*" if zero lies outside."""
    scale, digits = (100, 1) if is_percent else (1, 3)
    estimate, low, high = (
        format_number(scale * interval[name], digits, is_signed=is_difference) for name in ("estimate", "low", "high")
    )
    mark = " *" if is_difference and is_outside_zero(interval) else ""
    return f"{estimate} [{low}, {high}]{mark}"


def is_outside_zero(difference: Mapping[str, Any]) -> bool:
    """True for a difference whose interval leaves out zero also as it is printed."""
    printed = [round(difference[name], 3) for name in ("low", "high")]  # 0.1% is 0.001, too
    return difference["outside_zero"] and (printed[0] > 0 or printed[1] < 0)
