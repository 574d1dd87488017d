"""The results of a folder, read whole: what compares them, shows them and derives them again begins here."""

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
"""Folders that a sentence names."""


@dataclass(frozen=True)
class Results:
    """What a folder holds of one task."""

    folder: Path
    task: Task
    told: dict[str, Any]
    """metrics.json: the scores, and how they came to be."""
    systems: dict[str, list[PredictionRow]]
    """The model's predictions first, then those of each control."""


def read_results(folder: Path) -> list[Results]:
    """The tasks of a result folder, by their names, or the one whose own folder this is.

    Raises:
        DataError: the folder holds no results, or a part of them is missing or broken.
    """
    return [_read(path) for path in task_folders(folder)]


def task_folders(folder: Path) -> list[Path]:
    """The folders of the tasks whose results these are.

    Raises:
        DataError: there are none; where some are one or two steps from here, it names their folder.
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
