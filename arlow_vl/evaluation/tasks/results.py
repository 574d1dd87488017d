"""Reads the results of a folder, for comparison, reports and reproduction."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arlow_vl.errors import DataError
from arlow_vl.evaluation.tasks import predictions
from arlow_vl.evaluation.tasks.predictions import PredictionRow
from arlow_vl.evaluation.tasks.task import Task, parse_task
from arlow_vl.printing import visible
from vision.whole_files import sha256_of_file

NAMED = 3
"""Largest number of folders that an error names."""


@dataclass(frozen=True)
class Results:
    """Results of one task."""

    folder: Path
    task: Task
    metrics_json: dict[str, Any]
    """Contents of metrics.json: the scores, and how they were made."""
    systems: dict[str, list[PredictionRow]]
    """The model's predictions first, then those of each control."""


def read_results(folder: Path) -> list[Results]:
    """Reads the tasks of a result folder, sorted by name, or the one task whose own folder this is.

    Raises:
        DataError: the folder holds no results, or a part of them is missing or broken.
    """
    return [_read(path) for path in task_folders(folder)]


def task_folders(folder: Path) -> list[Path]:
    """Returns the folders of the tasks in a result folder.

    Raises:
        DataError: there are none; results a level or two away are named.
    """
    if _is_of_task(folder):
        return [folder]
    if found := _tasks_in(folder):
        return found
    shown = visible(str(folder))
    for above in folder.absolute().parents[:2]:  # as results/easy-vqa/model
        if _is_of_task(above):
            raise DataError(f"{shown} is a part of the results in {visible(str(above))}; name that folder")
    if not folder.is_dir():
        raise DataError(f"{shown} is no folder; `arlow evaluate --output FOLDER` writes one with results")
    if below := sorted(path for path in folder.iterdir() if path.is_dir() and _tasks_in(path)):
        named = ", ".join(visible(str(path)) for path in below[:NAMED])
        raise DataError(f"{shown} holds no results itself, folders inside it do; name one of them, as {named}")
    raise DataError(f"{shown} holds no results (<task>/{predictions.RUN}); run `arlow evaluate` first")


def _is_of_task(folder: Path) -> bool:
    return (folder / predictions.RUN).is_file()


def _tasks_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{predictions.RUN}"))


def _read(folder: Path) -> Results:
    where = folder / predictions.METRICS
    metrics_json = predictions.read_json(where)
    if not isinstance(metrics_json.get("task"), dict):
        raise broken(where, "task")
    task = parse_task(_as_yaml(metrics_json["task"]), visible(str(where)))
    return Results(folder, task, metrics_json, predictions.read_systems(folder, task.controls))


def refuse_changed(results: Results) -> None:
    """Raises DataError if predictions are no longer those that were scored."""
    scored = results.metrics_json.get("predictions")
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
    """Returns the error for a part of metrics.json that is missing or malformed."""
    return DataError(f"{visible(str(path))}: {visible(str(what))} is missing or of another kind; {predictions.AGAIN}")


def _as_yaml(task: dict[str, Any]) -> dict[str, Any]:
    """Returns the task as in its YAML, without the parts that are None."""
    return {name: value for name, value in task.items() if value is not None}
