"""Formats the scores of a task as a table for a terminal: rows are systems, columns metrics; the groups follow."""

from collections.abc import Mapping, Sequence
from typing import Any

from arlow_vl.evaluation.numbers import FEWEST, few_note, format_count, format_interval
from arlow_vl.evaluation.tasks.measures import titled
from arlow_vl.evaluation.tasks.predictions import MODEL
from arlow_vl.evaluation.tasks.scoring import ALL
from arlow_vl.printing import number_of, visible

TITLES = {
    "model": "model",
    "shuffled": "shown another image",
    "blank_image": "shown a blank image",
    "no_image": "shown no image",
    "most_frequent": "most frequent text",
    "question_prior": "answer from the question alone",
    "nearest_neighbour": "most similar image's text",
    "class_means": "caption of the nearest mean",
    "unigram": "frequencies of single tokens",
}
MOST_COLUMNS = 4
HIDDEN = ("BLEU-2", "BLEU-3")


def format_scores(result: Mapping[str, Any]) -> str:
    """Formats the contents of a task's metrics.json as plain text."""
    scores = result["scores"]
    metrics = [name for name in scores["metrics"] if name not in HIDDEN]
    shown = shown_in(result)
    size = f"{number_of(scores['items'], 'item')}, {number_of(scores['images'], shown)}"
    lines = [f"{visible(result['task']['title'])} ({size})"]
    if scores["images"] < FEWEST:
        lines.append(f"warning: fewer than {FEWEST} {shown}s, scores that say little")
    for start in range(0, len(metrics), MOST_COLUMNS):
        lines += _table(scores, metrics[start : start + MOST_COLUMNS])
    lines += _groups(scores, metrics[0], shown)
    if shared := result.get("overlap", {}).get("items"):
        lines.append(f"warning: {shared:,} of {number_of(scores['items'], 'item')} show an image of the training data")
    if warning := result.get("asked_otherwise"):
        lines.append(f"warning: {visible(warning)}")
    return "\n".join(lines)


def _table(scores: Mapping[str, Any], shown: list[str]) -> list[str]:
    metrics = {name: scores["metrics"][name] for name in shown}
    first = metrics[shown[0]]["groups"][ALL]
    table = [["", *(titled(name, is_share=of["is_share"]) for name, of in metrics.items())]]
    for system in first["systems"]:
        cells = [_cell(of, ALL, "systems", system) for of in metrics.values()]
        table.append([TITLES.get(system, visible(system)), *cells])
    for system in first["differences"]:
        cells = [_cell(of, ALL, "differences", system) for of in metrics.values()]
        table.append([f"  model minus {TITLES.get(system, visible(system))}", *cells])
    return aligned(table)


def shown_in(result: Mapping[str, Any]) -> str:
    """Returns what items are resampled by: document, image, or image group where items share images with others.

    Older results do not say it, and took items of different images for independent.
    """
    return result.get("shown", "document" if result["task"]["kind"] == "text" else "image")


def images_of(group: Mapping[str, Any]) -> int:
    """Returns the number of images of a group; older results have only its number of items."""
    return group.get("images", group["items"])


def _groups(scores: Mapping[str, Any], metric: str, shown: str) -> list[str]:
    """Formats the first metric by group: the model, and the best control of each group."""
    of = scores["metrics"][metric]
    groups = {name: group for name, group in of["groups"].items() if name != ALL}
    if not groups:
        return []
    table = [[metric, "items", "model", "best control", ""]]
    for name, group in groups.items():
        controls = {system: one["estimate"] for system, one in group["systems"].items() if system != MODEL}
        best = max(controls, key=lambda system: controls[system])
        cells = [_cell(of, name, "systems", system) for system in (MODEL, best)]
        size = format_count(group["items"], images_of(group))
        table.append([f"  {visible(name)}", size, *cells, TITLES.get(best, visible(best))])
    return [*aligned(table), *few_note(map(images_of, groups.values()), f"{shown}s")]


def _cell(of: Mapping[str, Any], group: str, what: str, system: str) -> str:
    interval = of["groups"][group][what][system]
    return format_interval(interval, is_percent=of["is_share"], is_difference=what == "differences")


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
