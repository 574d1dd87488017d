"""The result folder: what a run of the evaluation leaves behind, and what scores and reports are made from.

    meta.json                      what was evaluated and how (see `write_report` for its keys)
    text.json                      the text model before and after the vision stage
    <task>/<system>.jsonl          one line a caption or a question, in the same order for every system of a task
    scores.json, report.html       written by `score_results` and `write_report`

A line of a caption task: {"key", "prediction", "references": [...]}.
A line of a question task: {"key", "question", "prediction", "answers": [...], "kind"}.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from arlow_vl.errors import DataError
from vision.whole_files import write_whole

TaskKind = Literal["captions", "questions"]

MODEL = "model"
CONTROLS: Mapping[TaskKind, tuple[str, ...]] = {
    "captions": ("shuffled", "no_image", "most_frequent", "nearest_neighbour"),
    "questions": ("shuffled", "no_image", "question_prior", "always_majority"),
}
"""Without a score of each of these, the model's score says nothing and is not given."""


@dataclass(frozen=True, kw_only=True)
class CaptionRow:
    key: str
    prediction: str
    references: list[str]


@dataclass(frozen=True, kw_only=True)
class QuestionRow:
    key: str
    question: str
    prediction: str
    answers: list[str]
    kind: str
    """Scores are given by kind too: "other" and "yes/no" of easy-VQA."""


Row = CaptionRow | QuestionRow


@dataclass(frozen=True)
class Task:
    """The rows of every system of a task: "model" first, its controls, then any others by name."""

    name: str
    kind: TaskKind
    rows: dict[str, list[Any]]


def write_predictions(folder: Path, task: str, system: str, rows: Iterable[Row]) -> Path:
    """Writes the file of one system; it is whole or not there."""
    path = folder / task / f"{system}.jsonl"
    write_whole(path, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))
    return path


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if the file is missing. Raises DataError for one that is broken."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); write it again with `arlow evaluate`") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds no JSON object; write it again with `arlow evaluate`")
    return value


def read_tasks(folder: Path) -> list[Task]:
    """All tasks of a result folder.

    Raises:
        ValueError: there is no task, or the model's predictions lack a control's beside them.
        DataError: a file is broken, or the systems of a task were asked different things.
    """
    tasks = [read_task(path) for path in sorted(folder.glob("*/")) if any(path.glob("*.jsonl"))]
    if not tasks and any(folder.glob("*/run.json")):
        raise ValueError(
            f"{folder} holds results of `arlow evaluate --task`, whose scores are in each <task>/metrics.json; "
            "`arlow reproduce` derives them again"
        )
    if not tasks:
        raise ValueError(f"{folder} holds no predictions (<task>/model.jsonl); run `arlow evaluate` first")
    return tasks


def read_task(folder: Path) -> Task:
    systems = {path.stem: read_rows(path) for path in sorted(folder.glob("*.jsonl"))}
    kind: TaskKind = "questions" if isinstance(next(iter(systems.values()))[0], QuestionRow) else "captions"
    if missing := [name for name in (MODEL, *CONTROLS[kind]) if name not in systems]:
        raise ValueError(
            f"{folder}: no score without its controls, and {', '.join(missing)} is missing; evaluate it too"
        )
    order = [MODEL, *CONTROLS[kind]]
    order += [name for name in systems if name not in order]
    asked = [ask(row) for row in systems[MODEL]]
    for name in order:
        if [ask(row) for row in systems[name]] != asked:
            raise DataError(
                f"{folder / name}.jsonl: other samples or another order than in model.jsonl; evaluate both again"
            )
    return Task(folder.name, kind, {name: systems[name] for name in order})


def ask(row: Row) -> dict[str, Any]:
    """All of a row but the prediction."""
    return {name: value for name, value in asdict(row).items() if name != "prediction"}


def read_rows(path: Path) -> list[Row]:
    """Rows of one system. Raises DataError naming the line that is broken."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(parse_row(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}:{number}: not a line of predictions ({error!r}); evaluate again") from error
    if not rows or len({type(row) for row in rows}) > 1:
        raise DataError(f"{path}: no predictions, or captions mixed with questions; evaluate again")
    return rows


def parse_row(fields: Mapping[str, Any]) -> Row:
    """Raises KeyError, TypeError or ValueError for fields that are missing or of another type."""
    row_class: Any = QuestionRow if "question" in fields else CaptionRow
    row = row_class(**{name: fields[name] for name in row_class.__dataclass_fields__})
    for name, value in vars(row).items():
        texts = value if name in ("references", "answers") else [value]
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name} is {value!r}")
    return row
