"""Scores a task: the model beside its controls, with intervals and paired differences, for all items and by group.

The same predictions always give the same scores: `score_task` reads nothing else, and resamples with a fixed seed.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from arlow_vl.data.questions import UNNAMED_KIND
from arlow_vl.evaluation import bootstrap
from arlow_vl.evaluation.bootstrap import Interval, ValueOfSums
from arlow_vl.evaluation.metrics.sums import Values
from arlow_vl.evaluation.numbers import FEWEST
from arlow_vl.evaluation.paired import is_scored, number_images, sums_by_image
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
    images = number_images([row.image for row in rows])
    groups = groups_of(task, systems)
    measures = {system: measure(task.metrics, of) for system, of in systems.items()}

    def by_image() -> Iterator[tuple[tuple[str, str, str], ValueOfSums, np.ndarray]]:
        """Yields (metric, group, system) with the metric's function and the sums of each image, one after the other."""
        for part, of_model in measures[MODEL].items():
            for (group, mask), (system, of) in itertools.product(groups.items(), measures.items()):
                yield (part, group, system), of_model.metric.value, sums_by_image(of[part].statistics, images, mask)

    estimates = {key: value(sums.sum(axis=0)) for key, value, sums in by_image()}
    resampled = bootstrap.resample(
        int(images.max()) + 1, lambda weights: {key: value(weights @ sums) for key, value, sums in by_image()}
    )
    scores: dict[str, Any] = {}
    for part, of_model in measures[MODEL].items():
        scores[part] = {"is_share": of_model.metric.is_share, "groups": {}}
        for group, mask in groups.items():
            values = {name: (estimates[part, group, name], resampled[part, group, name]) for name in systems}
            if np.isnan(values[MODEL][0]):
                continue  # no scene of the group has the slot
            size = {"items": int(mask.sum()), "images": len(set(images[mask]))}
            scores[part]["groups"][group] = size | compare(values)
            for name, difference in scores[part]["groups"][group]["differences"].items():
                pair = (sums_by_image(measures[one][part].statistics, images, mask) for one in (MODEL, name))
                scored = np.logical_or(*(is_scored(sums, of_model.metric.value) for sums in pair))
                difference["outside_zero"] &= int(scored.sum()) > 1  # of one image every resample is the same
    return {
        "items": len(rows),
        "images": int(images.max()) + 1,
        "different_outputs": {name: len({row.output for row in of}) for name, of in systems.items()},
        "resamples": bootstrap.RESAMPLES,
        "seed": bootstrap.SEED,
        "level": bootstrap.LEVEL,
        "metrics": scores,
    }


def compare(values: Mapping[str, tuple[Values, Values]]) -> dict[str, Any]:
    """Computes a metric's interval for each system, and for the model's difference to each control.

    `values` has the metric on all images and on each resample, by system.
    """
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
