"""The results of a folder, read whole: what compares them, shows them and derives them again begins here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arlow_vl.errors import DataError
from arlow_vl.evaluation.tasks import predictions
from arlow_vl.evaluation.tasks.predictions import Prediction
from arlow_vl.evaluation.tasks.task import Task, parse_task
from arlow_vl.models.folders import sha256_of_file
from arlow_vl.printing import visible


@dataclass(frozen=True)
class Results:
    """What a folder holds of one task."""

    folder: Path
    task: Task
    told: dict[str, Any]
    """metrics.json: the scores, and how they came to be."""
    systems: dict[str, list[Prediction]]
    """The model's predictions first, then those of each control."""


def read_results(folder: Path) -> list[Results]:
    """The tasks of a result folder, by their names.

    Raises:
        DataError: the folder holds no results, or a part of them is missing or broken.
    """
    paths = sorted(path.parent for path in folder.glob(f"*/{predictions.RUN}"))
    if not paths:
        raise DataError(
            f"{visible(str(folder))} holds no results (<task>/{predictions.RUN}); run `arlow evaluate` first"
        )
    return [_read(path) for path in paths]


def _read(folder: Path) -> Results:
    where = folder / predictions.METRICS
    told = predictions.read_json(where)
    if not isinstance(told.get("task"), dict):
        raise broken(where, "task")
    task = parse_task(_as_yaml(told["task"]), visible(str(where)))
    return Results(folder, task, told, predictions.read_systems(folder, task.controls))


def refuse_changed(results: Results) -> None:
    """Raises DataError where predictions are no longer those that were scored."""
    scored = results.told.get("predictions")
    if not isinstance(scored, dict):
        raise broken(results.folder / predictions.METRICS, "predictions")
    for system in results.systems:
        path = results.folder / system / predictions.PREDICTIONS
        if scored.get(system) != sha256_of_file(path):
            raise DataError(
                f"{visible(str(path))}: other predictions than those that {predictions.METRICS} scores; score them by "
                "the same `arlow evaluate`"
            )


def broken(path: Path, what: object) -> DataError:
    """The error for a part of metrics.json that is not as `arlow evaluate` writes it."""
    return DataError(f"{visible(str(path))}: {visible(str(what))} is missing or of another kind; {predictions.AGAIN}")


def _as_yaml(task: dict[str, Any]) -> dict[str, Any]:
    """The task as its YAML said it: without the parts that it does not have."""
    return {name: value for name, value in task.items() if value is not None}
