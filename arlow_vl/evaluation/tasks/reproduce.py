"""Recomputes the figures of a result folder from its predictions alone, and compares them one by one."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from arlow_vl.data.text_files import shown_source
from arlow_vl.errors import DataError
from arlow_vl.evaluation.bootstrap import NOISE
from arlow_vl.evaluation.tasks import predictions
from arlow_vl.evaluation.tasks.items import open_samples
from arlow_vl.evaluation.tasks.perplexity import hash_documents
from arlow_vl.evaluation.tasks.places import TaskData
from arlow_vl.evaluation.tasks.results import Results, broken, read_results
from arlow_vl.evaluation.tasks.scoring import rows_of, score_task
from arlow_vl.evaluation.tasks.task import Task
from arlow_vl.models.folder_files import hash_model
from arlow_vl.printing import visible
from vision.whole_files import sha256_of_file


class Row(NamedTuple):
    """A figure or hash, as recomputed."""

    what: str
    found: str
    is_equal: bool | None
    """None: the model or data that it needs are not here, or the folder was not scored by the metric."""

    def __str__(self) -> str:
        verdict = {True: "equal", False: "UNEQUAL", None: "not here"}[self.is_equal]
        return f"{verdict:8}  {self.what}  {self.found}"


def reproduce(folder: Path) -> Iterator[Row]:
    """Yields a row for each hash and each score of each task of a result folder.

    Raises:
        DataError: the folder holds no results, or a part of them is missing or broken.
    """
    for results in read_results(folder):
        try:
            yield from _rows(results)
        except (KeyError, TypeError, AttributeError) as error:
            raise broken(results.folder / predictions.METRICS, repr(error)) from None


def _rows(results: Results) -> Iterator[Row]:
    task, metrics, name = results.task, results.metrics_json, results.task.name
    yield _compared(f"{name}: task", metrics["task_sha256"], task.sha256)
    yield _compared(f"{name}: model {metrics['model']['path']}", metrics["model"]["sha256"], _model(metrics))
    source = shown_source(metrics["data"]["source"])
    yield _compared(f"{name}: data {source}", metrics["data"]["sha256"], _data(task, metrics["data"]))
    for system, sha256 in metrics["predictions"].items():
        found = sha256_of_file(results.folder / system / predictions.PREDICTIONS)
        yield _compared(f"{name}: predictions of {system}", sha256, found)
    before, now = rows_of(metrics["scores"]), rows_of(score_task(task, results.systems))
    for key in {**before, **now}:
        figure, was, found = ", ".join(key), before.get(key), now.get(key)
        is_equal = _is_equal(was, found) if key[0] in metrics["scores"]["metrics"] else None
        difference = f" (was {was!r})" if is_equal is False else ""
        yield Row(visible(f"{name}: {figure}"), f"{found!r}{difference}", is_equal)


def _is_equal(was: Any, found: Any) -> bool:
    """True for equal figures, up to rounding, as processors add the same numbers in different orders."""
    return was == found or (None not in (was, found) and math.isclose(was, found, rel_tol=NOISE, abs_tol=NOISE))


def _compared(what: str, was: str, found: str | None) -> Row:
    metrics = (found or was)[:12] + (f" (was {was[:12]})" if found not in (None, was) else "")
    return Row(visible(what), metrics, None if found is None else found == was)


def _model(result: dict[str, Any]) -> str | None:
    path = Path(result["model"]["path"])
    return hash_model(path) if path.is_dir() else None


def _data(task: Task, data: dict[str, Any]) -> str | None:
    """Returns the fingerprint of the data; None if they can no longer be read."""
    try:
        if task.kind == "text":
            return hash_documents(data["source"])
        return open_samples(task, TaskData(data["source"], data["images"], data["format"])).fingerprint
    except (DataError, OSError):
        return None
