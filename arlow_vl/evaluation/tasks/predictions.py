"""Reads and writes the files of a result folder.

    <task>/run.json                       what determines the predictions: hashes of model, task and data, and settings
    <task>/<system>/predictions.jsonl     a line for each item: the model's under "model", each control's under its name
    <task>/metrics.json                   the scores, written last

predictions.jsonl grows by whole lines while the model answers, batch by batch in any order; once complete it is sorted
into the order of the items. A partial line that a kill leaves is cut off by the next run.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from arlow_vl.errors import DataError
from arlow_vl.json_text import json_text
from arlow_vl.locks import one_process
from arlow_vl.printing import visible
from vision.whole_files import remove_remains, write_whole

MODEL = "model"
RUN, METRICS, PREDICTIONS, LOCK = "run.json", "metrics.json", "predictions.jsonl", "evaluate.lock"
SETTINGS, MADE_WITH, UNKNOWN = "settings", "made_with", "unknown"
OPTIONS = {"items": "--limit", "precision": "--precision", "features": "--features-dtype"}
"""Command-line options behind the entries of run.json."""
NAMED = 3
"""Largest number of fields that an error names."""
AGAIN = "run `arlow evaluate` again into another folder"
ALWAYS = ("id", "image", "prompt", "output", "references")
"""Fields that every line has."""


@dataclass(frozen=True, kw_only=True)
class PredictionRow:
    """A system's answer to one item, a line of predictions.jsonl."""

    id: str
    image: str
    """Name of the image (`Item.image`); items of one image are not independent and are resampled together."""
    prompt: str
    """The question; empty for a caption."""
    output: str
    references: list[str]
    kind: str = ""
    log_probability: float | None = None
    """Log-probability of the output, or of the whole document, in nats; None where the system has none."""
    choices: dict[str, float] | None = None
    """Log-probability of each answer that was compared, in nats."""
    tokens: int | None = None
    """Number of predicted tokens of a document; None for images."""
    bytes: int | None = None
    """Number of UTF-8 bytes of a document; None for images."""

    @property
    def asked(self) -> tuple[str, str, str, list[str], str]:
        """The fields that all systems share: the question, and its references."""
        return self.id, self.image, self.prompt, self.references, self.kind


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json_text(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads the JSON object in a file. Raises DataError if the file is missing or broken."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{visible(str(path))} is missing, so its folder is half written; finish it by the same `arlow evaluate`"
        ) from None
    except ValueError as error:
        raise DataError(f"{visible(str(path))}: not JSON ({visible(str(error))}); {AGAIN}") from None
    if not isinstance(value, dict):
        raise DataError(f"{visible(str(path))}: holds no JSON object; {AGAIN}")
    return value


def lock(output: Path) -> contextlib.AbstractContextManager[None]:
    """Locks a result folder while a command writes it. Raises DataError if another process holds the lock."""

    def refusal(process: str) -> DataError:
        shown = visible(str(output)), visible(process)
        return DataError(f"{shown[0]} is being written by process {shown[1]}; wait for it, or name another --output")

    return one_process(output / LOCK, refusal)


def start(
    folder: Path, run: Mapping[str, Any], settings: Mapping[str, Any], made_with: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """Opens the folder of a task, to begin a run or to resume the one that it holds.

    `run` has a hash or number for each thing that determines the predictions. `settings` has, under the same names, the
    values behind the hashes, so that a later run can tell what changed. `made_with` affects only rounding and may
    differ when a run is resumed.

    Returns:
        Each `made_with` that the predictions were made with, in order.

    Raises:
        DataError: the folder holds predictions of another model, task or data, or of unknown origin.
    """
    path = folder / RUN
    for place in (folder, *folder.glob("*/")):
        remove_remains(place, seconds=0)  # of a process that was killed: the folder of results is locked
    if not path.exists():
        if found := next(iter(sorted(folder.glob(f"*/{PREDICTIONS}"))), None):
            raise DataError(f"{visible(str(found))}: no {RUN} says what made these predictions; {AGAIN}")
        write_json(path, {**run, SETTINGS: settings, MADE_WITH: [made_with]})
        return [made_with]
    before = read_json(path)
    changed = [name for name, value in run.items() if before.get(name) != value]
    if "items" in changed:  # another limit chooses others
        changed = [name for name in changed if name != "choice"]
    if changed:
        kept = before.get(SETTINGS)
        was = {**before, **(kept if isinstance(kept, dict) and kept else dict.fromkeys(settings, UNKNOWN))}
        now = json.loads(json.dumps({**run, **settings}))  # as it would be read: a list for a tuple
        changes = "; ".join(_describe_change(name, was.get(name), now[name]) for name in changed)
        raise DataError(f"{visible(str(folder))} holds predictions of another run ({visible(changes)}); {AGAIN}")
    held = before.get(MADE_WITH, [])
    if (held and (folder / METRICS).exists()) or made_with in held:  # METRICS: the run was complete
        return held
    write_json(path, {**before, MADE_WITH: [*held, made_with]})
    return [*held, made_with]


def _describe_change(name: str, was: Any, now: Any) -> str:
    """Describes how an entry of `run` changed; for mappings, which of their fields."""
    if name == "choice":
        return "--limit chose other items"
    if was == UNKNOWN:
        return f"{name} was another"
    if was == now:  # same settings, another hash
        return f"{name} holds other bytes than it did"
    if isinstance(was, dict) and isinstance(now, dict):
        above = "" if name == "task" else f"{name}."
        before, after = dict(_fields(was, above)), dict(_fields(now, above))
        different = [field for field in {**before, **after} if before.get(field) != after.get(field)]
        rest = [f"{len(different) - NAMED:,} more"] if len(different) > NAMED else []
        return ", ".join([_describe_change(one, before.get(one), after.get(one)) for one in different[:NAMED]] + rest)
    return f"{OPTIONS.get(name, name)} was {_format_value(was)}, is {_format_value(now)}"


def _fields(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    """Yields each value of nested mappings with its path, such as `decoding.num_beams`."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _format_value(value: Any) -> str:
    return "not set" if value is None else f"{value!r:.80}"


class PredictionFile:
    """The predictions of one system, saved as they come.

    Raises:
        DataError: a line of the file is broken, occurs twice, or belongs to no item.
    """

    def __init__(self, folder: Path, system: str, ids: Sequence[str]) -> None:
        self.path = folder / system / PREDICTIONS
        self.ids = list(ids)
        self.rows: dict[str, PredictionRow] = {}
        self.is_ordered = True
        if self.path.exists():
            self._cut_torn_line()
            known = set(ids)
            for number, row in enumerate(read_rows(self.path), start=1):
                if row.id not in known:
                    raise DataError(
                        f"{visible(str(self.path))}:{number}: the task has no item {visible(repr(row.id))}; {AGAIN}"
                    )
                self.rows[row.id] = row
            self.is_ordered = list(self.rows) == self.ids[: len(self.rows)]

    def add(self, rows: Iterable[PredictionRow]) -> None:
        """Appends rows; those that are already saved stay as they are."""
        new = [row for row in rows if row.id not in self.rows]
        if not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.write("".join(map(line_of, new)).encode())
        start = len(self.rows)
        self.rows.update((row.id, row) for row in new)
        self.is_ordered &= [row.id for row in new] == self.ids[start : len(self.rows)]

    def finish(self) -> None:
        """Sorts the complete file into the order of the items."""
        assert len(self.rows) == len(self.ids), (len(self.rows), len(self.ids))
        if not self.is_ordered:
            write_whole(self.path, "".join(line_of(self.rows[name]) for name in self.ids))

    def _cut_torn_line(self) -> None:
        data = self.path.read_bytes()
        if data and not data.endswith(b"\n"):
            os.truncate(self.path, data.rfind(b"\n") + 1)


def line_of(row: PredictionRow) -> str:
    """Returns the line of a prediction; fields that are None or empty are left out unless every line has them."""
    values = {name: value for name, value in asdict(row).items() if value not in (None, "") or name in ALWAYS}
    return json_text(values, allow_nan=False) + "\n"


def read_rows(path: Path) -> list[PredictionRow]:
    """Reads the lines of a file. Raises DataError for a line that is broken or repeats an id."""
    rows, seen = [], set()
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = _row(json.loads(line))
            except (ValueError, TypeError, RecursionError) as error:
                raise DataError(
                    f"{visible(str(path))}:{number}: no prediction ({visible(str(error))}); {AGAIN}"
                ) from None
            if row.id in seen:
                raise DataError(f"{visible(str(path))}:{number}: id {visible(repr(row.id))} comes twice; keep one")
            seen.add(row.id)
            rows.append(row)
    return rows


def _row(values: Any) -> PredictionRow:
    if not isinstance(values, dict):
        raise ValueError(f"a {type(values).__name__}, not an object")
    known = {field.name for field in fields(PredictionRow)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"unknown field {unknown[0]!r}")
    if missing := [name for name in ALWAYS if name not in values]:
        raise ValueError(f"{missing[0]} is missing")
    for name in ("id", "image", "prompt", "output", "kind"):
        if not isinstance(values.get(name, ""), str):
            raise ValueError(f"{name} is no text")
    if not isinstance(values["references"], list) or not all(isinstance(one, str) for one in values["references"]):
        raise ValueError("references is no list of texts")
    choices = values.get("choices", {})
    if not isinstance(choices, dict):
        raise ValueError("choices is no object")
    numbers = [values.get("log_probability", 0.0), *choices.values()]
    if not all(isinstance(number, int | float) and abs(number) < math.inf for number in numbers):
        raise ValueError("a log-probability is no finite number")
    if not all(isinstance(values.get(name, 0), int) for name in ("tokens", "bytes")):
        raise ValueError("tokens or bytes is no whole number")
    return PredictionRow(**values)


def read_systems(folder: Path, controls: Sequence[str]) -> dict[str, list[PredictionRow]]:
    """Reads the predictions of a task by system, the model's first.

    Raises:
        DataError: a control is missing, a control's items differ from the model's, or there are no predictions.
    """
    systems = {}
    for name in (MODEL, *controls):
        path = folder / name / PREDICTIONS
        if not path.is_file():
            raise DataError(
                f"{visible(str(path))} is missing, and no score is given without its controls; finish it by the same "
                "`arlow evaluate`"
            )
        systems[name] = read_rows(path)
    asked = [row.asked for row in systems[MODEL]]
    if not asked:
        raise DataError(f"{visible(str(folder / MODEL / PREDICTIONS))}: no predictions; {AGAIN}")
    for name, rows in systems.items():
        theirs = [row.asked for row in rows]
        if theirs != asked:
            different = next((a[0] for a, b in zip(asked, theirs, strict=False) if a != b), "the last")
            raise DataError(
                f"{visible(str(folder / name / PREDICTIONS))}: other items than the model's, the first at "
                f"{visible(repr(different))} ({len(theirs):,} and {len(asked):,}); {AGAIN}"
            )
    return systems
