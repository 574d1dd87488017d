"""Scores a task: the model beside its controls, with intervals and paired differences, for all items and by group.

The same predictions always give the same scores: `score_task` reads nothing else, and resamples with a fixed seed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arlow_vl.data.questions import UNNAMED_KIND
from arlow_vl.evaluation import bootstrap
from arlow_vl.evaluation.bootstrap import Interval, ValueOfSums
from arlow_vl.evaluation.numbers import FEWEST
from arlow_vl.evaluation.tasks.measures import first_words, is_exact, measure
from arlow_vl.evaluation.tasks.predictions import MODEL, PredictionRow
from arlow_vl.evaluation.tasks.task import PRIORS, Task

ALL, PRIOR_WRONG = "all", "where the prior is wrong"
Systems = Mapping[str, Sequence[PredictionRow]]


def score_task(task: Task, systems: Systems) -> dict[str, Any]:
    """Computes, by metric and group, the interval of every system and of the model's difference to every control.

    Raises:
        DataError: an item has no reference, or one that does not suit the metric.
    """
    rows = systems[MODEL]
    of_image = {image: place for place, image in enumerate(dict.fromkeys(row.image for row in rows))}
    places = np.array([of_image[row.image] for row in rows])
    weights = bootstrap.draw_weights(len(of_image))
    groups = groups_of(task, systems)
    scores: dict[str, Any] = {}
    measures = {system: measure(task.metrics, of) for system, of in systems.items()}
    for part, of_model in measures[MODEL].items():
        scores[part] = {"is_share": of_model.metric.is_share, "groups": {}}
        for group, mask in groups.items():
            statistics = {
                system: _by_image(of[part].statistics, mask, places, len(of_image)) for system, of in measures.items()
            }
            if np.isnan(of_model.metric.value(statistics[MODEL].sum(axis=0))):
                continue  # no scene of the group has the slot
            size = {"items": int(mask.sum()), "images": len(set(places[mask]))}
            scores[part]["groups"][group] = size | compare(statistics, of_model.metric.value, weights)
            if size["images"] == 1:  # every resample is the same, and shows no difference
                for difference in scores[part]["groups"][group]["differences"].values():
                    difference["outside_zero"] = False
    return {
        "items": len(rows),
        "images": len(of_image),
        "different_outputs": {name: len({row.output for row in of}) for name, of in systems.items()},
        "resamples": bootstrap.RESAMPLES,
        "seed": bootstrap.SEED,
        "level": bootstrap.LEVEL,
        "metrics": scores,
    }


def compare(statistics: Mapping[str, np.ndarray], value: ValueOfSums, weights: np.ndarray) -> dict[str, Any]:
    """Computes a metric's interval for each system, and for the model's difference to each control; rows are images."""
    values = {name: (value(of.sum(axis=0)), value(weights @ of)) for name, of in statistics.items()}
    estimate, resampled = values[MODEL]
    systems = {name: bootstrap.summarise(*of) for name, of in values.items()}
    differences = {
        name: bootstrap.summarise(estimate - of[0], resampled - of[1]) for name, of in values.items() if name != MODEL
    }
    return {
        "systems": {name: as_fields(interval) for name, interval in systems.items()},
        "differences": {name: fields_of_difference(interval) for name, interval in differences.items()},
    }


def as_fields(interval: Interval) -> dict[str, Any]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def fields_of_difference(interval: Interval) -> dict[str, Any]:
    return as_fields(interval) | {"outside_zero": interval.is_outside_zero}


def groups_of(task: Task, systems: Systems) -> dict[str, np.ndarray]:
    """Returns a mask over items, (items,) bool, for each group that is scored; all items come first."""
    rows = systems[MODEL]
    groups = {ALL: np.ones(len(rows), dtype=bool)}
    prior = next((name for name in ("question_prior", *PRIORS) if name in systems), None)
    if task.kind == "question" and prior:
        wrong = np.array([not is_exact(row) for row in systems[prior]])
        groups |= {PRIOR_WRONG: wrong} if wrong.any() else {}
    if "kind" in task.groups:
        kinds = [row.kind or UNNAMED_KIND for row in rows]
        for kind in sorted(set(kinds)):  # a kind named "all" must not replace the group of all items
            label = f"{kind} (kind)" if kind in (ALL, PRIOR_WRONG) else kind
            groups[label] = np.array([one == kind for one in kinds])
    if "first words" in task.groups:
        words = [first_words(row.prompt) for row in rows]
        groups |= {
            f"{word} ...": np.array([one == word for one in words])
            for word, count in sorted(Counter(words).items())
            if count >= FEWEST  # there are many more of these than kinds
        }
    return groups


def _by_image(statistics: np.ndarray, mask: np.ndarray, places: np.ndarray, images: int) -> np.ndarray:
    """Adds up the statistics of each image's items in the group."""
    sums = np.zeros((images, statistics.shape[1]))
    np.add.at(sums, places[mask], statistics[mask])
    return sums


def rows_of(scores: Mapping[str, Any]) -> dict[tuple[str, str, str, str], Any]:
    """Flattens the result of `score_task`: figures by metric, group, system and part of the interval."""
    figures = {}
    for metric, of_metric in scores["metrics"].items():
        for group, of_group in of_metric["groups"].items():
            for what in ("systems", "differences"):
                for system, interval in of_group[what].items():
                    label = system if what == "systems" else f"model minus {system}"
                    for end in ("estimate", "low", "high"):
                        figures[metric, group, label, end] = interval[end]
    return figures
